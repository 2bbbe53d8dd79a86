"""The cells of a run's genotype, as a picture and as a table."""

from __future__ import annotations

import shlex

from ssfnas_cli.artifacts.genotype import Genotype, read_genotype
from ssfnas_cli.errors import InputError
from ssfnas_cli.plots.cell_picture import CELLS, TITLES, render
from ssfnas_cli.plots.report.blocks import Block, Details, Note, Picture, Table
from ssfnas_cli.plots.report.material import note_of
from ssfnas_cli.results.facts import RunFacts


def blocks(run: RunFacts) -> list[Block]:
    """The cells, or what is missing; nothing for a plain network, which has none."""
    path = run.path / "genotype.json"
    if not path.exists():
        if run.run.kind == "retrain":
            return []
        command = shlex.join(["ssfnas", "derive", str(run.path)])
        return [Note("The search has not derived its genotype yet. One can be derived of where it stands:", command)]
    try:
        genotype = read_genotype(path)
    except InputError as error:
        return [note_of("The cells cannot be drawn", error)]
    svg = render(genotype, CELLS, "svg")
    return [
        Picture("The cells", _in_words(genotype), svg, themed=False),
        Details("The cells as tables", [_table(genotype, kind) for kind in CELLS]),
    ]


def _in_words(genotype: Genotype) -> str:
    told = []
    for kind, cell in genotype.cells().items():
        ops = ", ".join(f"{count} {op}" for op, count in cell.op_counts().items())
        told.append(f"{TITLES[kind]} of {len(cell.pruned().nodes)} nodes with {ops}")
    return f"Graphs of the two cells. {'. '.join(told)}. Their edges are in the tables below."


def _table(genotype: Genotype, kind: str) -> Table:
    cell = genotype.cells()[kind]
    names = {0: "0 (cell before the last)", 1: "1 (last cell)"}
    rows = [[str(edge.target), names.get(edge.source, str(edge.source)), edge.op] for edge in cell.pruned().edges]
    concat = ", ".join(map(str, cell.pruned().concat))
    return Table(f"{TITLES[kind]}; its output is the nodes {concat}", ["node", "takes from", "by"], rows, numbers=False)
