"""`ssfnas plot-genotype`: the cells as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ssfnas_cli.commands import common, inputs, outputs
from ssfnas_cli.console import is_stream, log, set_verbosity
from ssfnas_cli.errors import UsageError

CELLS = {"normal": ("normal",), "reduce": ("reduce",), "both": ("normal", "reduce")}


def command(
    genotype: Annotated[
        str,
        typer.Argument(
            help="Genotype file, run folder, - for a pipe that brings either, or a name: DARTS_V2, random-3, …",
            autocompletion=inputs.genotype_names,
        ),
    ],
    cell: Annotated[str, typer.Option(help="normal, reduce or both.")] = "both",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="FILE.svg, .png, .pdf or .dot; - for SVG on stdout.")
    ] = Path("genotype.svg"),
    force: common.Force = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
) -> None:
    """Draw the cells of a genotype or of a run. Nodes without input are marked."""
    set_verbosity(quiet, verbose)
    if cell not in CELLS:
        raise UsageError(f"--cell {cell}: should be one of {', '.join(CELLS)}")
    from ssfnas_cli.plots.cell_picture import FORMATS, render

    suffix = outputs.picture_format(output, FORMATS)
    parsed, _ = inputs.read_genotype_or_run(genotype)
    outputs.refuse_existing(output, force)
    outputs.write_output(output, render(parsed, CELLS[cell], suffix), force)
    if not is_stream(output):
        log.info("%s", output)
