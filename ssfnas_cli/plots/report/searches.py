"""The searches of a report: their accuracy, their health, and what each found."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import partial

from registry.space import CELL_TYPES
from ssfnas_cli.errors import InputError
from ssfnas_cli.plots import health
from ssfnas_cli.plots.alphas import Record, draw_heat
from ssfnas_cli.plots.report import cells, ranks
from ssfnas_cli.plots.report.blocks import Block, Items, Note, Part, Section, Text
from ssfnas_cli.plots.report.curves import curve_blocks
from ssfnas_cli.plots.report.material import Material, having, note_of, picture, runs_of
from ssfnas_cli.results.facts import RunFacts
from ssfnas_cli.results.grouping import Group
from ssfnas_cli.results.health import find_problems, health_in_words


def section(material: Material) -> Section:
    """Figures of all searches together, then a part for each."""
    blocks: list[Block] = list(material.compared.get("search", ()))
    begun = having(material.searches, lambda run: bool(run.metrics))
    if begun:
        blocks += curve_blocks(begun)
        blocks.append(picture("Search health over epochs", lambda: _health_alt(begun), partial(health.draw, begun)))
    blocks += ranks.table(material)
    for group in material.searches:
        blocks += [Part(run.path.name, _run_blocks(run, group, material)) for run in runs_of(group)]
    return Section("searches", "Searches", blocks)


def _health_alt(groups: Sequence[Group]) -> str:
    told = []
    for group in groups:
        for run in group.runs:
            words = "; ".join(health_in_words(run.metrics))
            told.append(f"{group.label}, seed {run.seeds[-1]}: {words}")
    return f"Line charts of the health of each search. At their ends: {'. '.join(told)}"


def _run_blocks(run: RunFacts, group: Group, material: Material) -> list[Block]:
    label = f"{group.label}, seed {run.seeds[-1]}"
    blocks: list[Block] = [Text(label)]
    if said := health_in_words(run.metrics):
        blocks.append(Items([sentence[:1].upper() + sentence[1:] for sentence in said]))
    blocks += [Note(one.sentence) for one in find_problems(run.metrics, shlex.quote(str(run.path)))]
    return [*blocks, _weights(run, label, material), *cells.blocks(run), *ranks.blocks(run, material)]


def _weights(run: RunFacts, label: str, material: Material) -> Block:
    weights = material.weights[run.path]
    if isinstance(weights, InputError):
        return note_of("The mixing weights cannot be drawn", weights)
    record = Record(label, run.run.config["settings"]["ops"], weights)
    return picture(
        "Mixing weights over epochs: edges from top to bottom, epochs from left to right, dark where a weight is large",
        lambda: _weights_alt(record),
        partial(draw_heat, record),
        themed=False,
    )


def _weights_alt(record: Record) -> str:
    told = []
    for kind in CELL_TYPES:
        last = record.weights[kind][-1]
        strongest = [record.ops[place] for place in last.argmax(1)]
        counts = {op: strongest.count(op) for op in dict.fromkeys(strongest)}
        ops = ", ".join(f"{op} on {num}" for op, num in sorted(counts.items(), key=lambda pair: -pair[1]))
        told.append(
            f"{kind} cell, strongest op of its {len(last)} edges at the end: {ops}; highest weight {last.max():.2f}"
        )
    epochs = len(record.weights[CELL_TYPES[0]]) - 1
    return f"Heat maps of the mixing weights over {epochs} epochs. {'. '.join(told)}"
