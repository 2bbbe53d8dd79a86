"""The trained networks of a report: their accuracy by class, what they confuse, and their mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from ssfnas_cli.console import format_duration
from ssfnas_cli.errors import InputError
from ssfnas_cli.plots import calibration, classes, confusion
from ssfnas_cli.plots import evaluations as read
from ssfnas_cli.plots.report import cells, mistakes
from ssfnas_cli.plots.report.blocks import Block, Details, Facts, Note, Part, Section, Table, Text
from ssfnas_cli.plots.report.curves import curve_blocks
from ssfnas_cli.plots.report.material import Material, having, is_evaluated, note_of, picture, runs_of
from ssfnas_cli.results.facts import RunFacts
from ssfnas_cli.results.grouping import Group

MAX_CONFUSIONS = 10
NAMED = 20  # classes whose accuracies the text of a picture tells


def section(material: Material) -> Section:
    """Figures of all networks together, then a part for each."""
    split = material.split
    blocks: list[Block] = list(material.compared.get("retrain", ()))
    if trained := having(material.networks, lambda run: bool(run.metrics)):
        blocks += curve_blocks(trained)
    if measured := having(material.networks, lambda run: is_evaluated(run, split)):
        blocks += _evaluated(measured, split)
    else:
        blocks.append(Note(f"No network is evaluated on {split}, so there are no figures by class."))
    for group in material.networks:
        blocks += [Part(run.path.name, _run_blocks(run, group, material)) for run in runs_of(group)]
    return Section("networks", "Networks", blocks)


# All networks together


def _evaluated(groups: Sequence[Group], split: str) -> list[Block]:
    try:
        found = read.evaluated(groups, split)
    except InputError as error:
        return [note_of("No figures by class", error)]
    draw = {name: partial(kind.draw, groups, split) for name, kind in _KINDS.items()}
    return [
        picture(f"Accuracy of each class on {split}", lambda: _classes_alt(groups, split, found), draw["classes"]),
        Details("Accuracy of each class, in numbers", [_classes_table(groups, split, found)]),
        picture(
            f"Which classes are taken for which on {split}, in percent of the true class",
            lambda: f"Confusion matrices. {'. '.join(_worst_in_words(groups, split, found.names))}",
            draw["confusion"],
            themed=False,
        ),
        *_worst(groups, split, found.names),
        picture(
            f"Calibration on {split}: how often a network is right where it is so sure",
            lambda: _calibration_alt(groups, split),
            draw["calibration"],
        ),
    ]


_KINDS = {"classes": classes, "confusion": confusion, "calibration": calibration}


def _classes_alt(groups: Sequence[Group], split: str, found: read.Classes) -> str:
    told = []
    for group in groups:
        means = {found.names[c]: value for c, value in enumerate(_means(group, split, found)) if value is not None}
        shown = [(found.names[c], means[found.names[c]]) for c in found.order if found.names[c] in means]
        if len(shown) > NAMED:
            shown = [min(shown, key=lambda pair: pair[1]), max(shown, key=lambda pair: pair[1])]
        told.append(f"{group.label}: {', '.join(f'{name} {value:.0f} %' for name, value in shown)}")
    return f"Accuracy of each class, those with the most training images first. {'. '.join(told)}"


def _means(group: Group, split: str, found: read.Classes) -> list[float | None]:
    return [None if value is None else value[0] for value in read.per_class(group, split, found.names)]


def _classes_table(groups: Sequence[Group], split: str, found: read.Classes) -> Table:
    """A row for each class, the largest first; a column for each group."""
    means = [_means(group, split, found) for group in groups]
    shown = lambda value: "no image" if value is None else f"{value:.1f}"
    rows = [[found.names[c], f"{found.counts[c]:,}", *(shown(of_group[c]) for of_group in means)] for c in found.order]
    header = ["class", "training images", *(group.label for group in groups)]
    return Table(f"Accuracy of each class on {split} in percent, mean over seeds", header, rows)


def _confusions(group: Group, split: str, names: Sequence[str]) -> list[tuple[int, int, int, int]]:
    """The most frequent confusions of a group: true class, predicted class, images, and images of the true class."""
    matrix = read.confusion(group, split, names)
    wrong = matrix - np.diag(np.diag(matrix))
    places = np.argsort(-wrong, axis=None, kind="stable")[:MAX_CONFUSIONS]
    pairs = [divmod(int(place), len(names)) for place in places]
    return [(a, b, int(wrong[a, b]), int(matrix[a].sum())) for a, b in pairs if wrong[a, b]]


def _worst_in_words(groups: Sequence[Group], split: str, names: Sequence[str]) -> list[str]:
    told = []
    for group in groups:
        worst = _confusions(group, split, names)[:3]
        words = [f"{names[a]} for {names[b]}, {images:,} of {of:,}" for a, b, images, of in worst]
        told.append(
            f"{group.label} most often takes {'; '.join(words)}" if words else f"{group.label} takes none wrong"
        )
    return told


def _worst(groups: Sequence[Group], split: str, names: Sequence[str]) -> list[Block]:
    tables: list[Block] = []
    for group in groups:
        try:
            worst = _confusions(group, split, names)
        except InputError:  # the picture's note says so
            return []
        rows = [[names[a], names[b], f"{images:,}", f"{of:,}"] for a, b, images, of in worst]
        header = ["true class", "taken for", "images", "of"]
        tables.append(Table(f"{group.label}: the most frequent confusions on {split}", header, rows))
    return [Details("The most frequent confusions, in numbers", tables)]


def _calibration_alt(groups: Sequence[Group], split: str) -> str:
    told = []
    for group in groups:
        bins = read.calibration(group, split)
        share = bins["num_images"] / max(bins["num_images"].sum(), 1)
        over = float(((bins["confidence"] - bins["accuracy"]) * share).sum())
        how = "too sure" if over > 0 else "not sure enough"
        told.append(f"{group.label}: on average {abs(100 * over):.1f} points {how}")
    return f"Reliability diagram, accuracy against confidence. {'. '.join(told)}"


# Each network


def _run_blocks(run: RunFacts, group: Group, material: Material) -> list[Block]:
    blocks: list[Block] = [Text(f"{group.label}, seed {run.seeds[-1]}")]
    if facts := _facts(run):
        blocks.append(Facts(facts))
    return [*blocks, *cells.blocks(run), *mistakes.blocks(run, material)]


def _facts(run: RunFacts) -> list[tuple[str, str]]:
    """What the network is, what it took, and what it comes from."""
    config, cost = run.run.config, run.cost
    facts = [
        (title, f"{cost[name]:,.0f}")
        for name, title in (("num_params", "weights"), ("num_macs", "multiply-adds"), ("steps", "steps"))
        if cost.get(name) is not None
    ]
    if cost.get("seconds"):
        facts.append(("time", format_duration(cost["seconds"] or 0.0)))
    origin = (config.get("genotype") or {}).get("provenance") or {}
    if origin.get("run"):
        facts.append(("genotype of", f"{origin['run']}, epoch {origin.get('epoch')}, rule {origin.get('rule')}"))
    adjustment = config.get("adjustment")
    if isinstance(adjustment, dict):
        result = run.run.status().get("result") or {}
        value = next((f", {name} {result[name]:g}" for name in ("tau", "temperature") if name in result), "")
        facts += [
            ("corrected by", f"{adjustment.get('method')}{value}"),
            ("correction of", str(adjustment.get("source"))),
        ]
    return facts
