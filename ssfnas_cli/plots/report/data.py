"""The data sets of the runs: what they hold, and how their labels are distributed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ssfnas_cli.artifacts.dataset import DataSet, Manifest
from ssfnas_cli.errors import InputError
from ssfnas_cli.plots import distribution
from ssfnas_cli.plots.distribution import Distribution
from ssfnas_cli.plots.report.blocks import Block, Details, Facts, Note, Part, Section, Table
from ssfnas_cli.plots.report.material import Material, note_of, picture
from ssfnas_cli.results.facts import RunFacts

MAX_ROWS = 1000  # classes that are listed


def section(material: Material) -> Section:
    """A part for each data set."""
    by_hash: dict[str, list[RunFacts]] = {}
    for run in material.runs:
        by_hash.setdefault(run.data[1], []).append(run)
    return Section("data", "Data", [Part(runs[0].data[0], _blocks(runs)) for runs in by_hash.values()])


def open_data(run: RunFacts) -> DataSet:
    """The data set of a run, of which only the manifest need be there.

    Raises:
        InputError: it is not there any more, or is another one.
    """
    path, sha256 = Path(run.run.config["data"]["path"]), run.data[1]
    data = DataSet.open(path, splits=())
    if data.sha256 != sha256:
        raise InputError(f"{path}: is another data set now (sha256 {data.sha256[:12]}, not {sha256[:12]})")
    return data


def _blocks(runs: Sequence[RunFacts]) -> list[Block]:
    try:
        data = open_data(runs[0])
    except InputError as error:
        return [note_of("The data set cannot be shown", error), *_from_evaluations(runs)]
    splits = {name: data.counts(name) for name in data.splits}
    shown = Distribution(data.path.name, data.class_names, splits["train"])
    images = ", ".join(f"{sum(counts):,} {name}" for name, counts in splits.items())
    blocks: list[Block] = [
        Facts([*_facts(data.manifest), ("images", images), ("folder", str(data.path))]),
        _chart(shown),
    ]
    if len(data.class_names) <= MAX_ROWS:
        rows = [[name, *(f"{counts[c]:,}" for counts in splits.values())] for c, name in enumerate(data.class_names)]
        table = Table("Images of each class in each split", ["class", *splits], rows)
        blocks.append(Details("Images of each class, in numbers", [table]))
    return [*blocks, *_remarks(data.manifest)]


def _facts(manifest: Manifest) -> list[tuple[str, str]]:
    colours = "grey" if manifest.channels == 1 else "colour"
    factor = [] if manifest.mu is None else [("imbalance factor", f"{manifest.mu:g}")]
    return [
        ("source", manifest.source),
        ("distribution", manifest.dist),
        *factor,
        ("seed", str(manifest.seed)),
        ("classes", f"{len(manifest.class_names):,}"),
        ("image size", f"{manifest.image_size} x {manifest.image_size}, {colours}"),
    ]


def _chart(shown: Distribution) -> Block:
    def alt() -> str:
        pairs = sorted(zip(shown.counts, shown.class_names, strict=True))
        (least, small), (most, large) = pairs[0], pairs[-1]
        return (
            f"Bar chart of {sum(shown.counts):,} training images by class: {most:,} of the largest class, {large}, and "
            f"{least:,} of the smallest, {small}"
        )

    return picture("Training images of each class", alt, partial(distribution.draw, [shown]))


def _from_evaluations(runs: Sequence[RunFacts]) -> list[Block]:
    """What evaluations recorded of a data set that is not there any more."""
    for run in runs:
        if run.evaluation:
            return [_chart(Distribution(run.data[0], run.evaluation["class_names"], run.evaluation["train_counts"]))]
    return []


def _remarks(manifest: Manifest) -> list[Block]:
    notes: list[Block] = []
    if manifest.short_classes:
        named = ", ".join(f"{one.name} ({one.kept:,} of {one.share:,})" for one in manifest.short_classes)
        notes.append(Note(f"Classes with fewer images than the distribution would give them: {named}"))
    if manifest.skipped.count:
        files = ", ".join(manifest.skipped.files)
        notes.append(Note(f"{manifest.skipped.count:,} files could not be read and were left out: {files}"))
    return notes
