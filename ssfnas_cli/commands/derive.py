"""`ssfnas derive`: from a search run to a genotype."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from registry import OPS
from ssfnas_cli.artifacts.genotype import Genotype
from ssfnas_cli.commands import common, inputs, outputs
from ssfnas_cli.console import is_stream, log, set_verbosity
from ssfnas_cli.errors import UsageError


def command(
    run: Annotated[str, typer.Argument(help="Search run folder, or - for what search printed.")],
    rule: Annotated[
        str | None,
        typer.Option(help="darts, argmax, fairdarts, fairdarts-edge.", show_default="the relaxation's"),
    ] = None,
    threshold: Annotated[str, typer.Option(help="A number, or auto: 0.85, lowered where a node needs it.")] = "auto",
    epoch: Annotated[
        int | None, typer.Option(help="Which epoch's alphas; 0: the initial.", show_default="last")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Genotype file; default: stdout.")] = None,
    force: common.Force = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
) -> None:
    """Derive the genotype of a search run, from any of its epochs."""
    set_verbosity(quiet, verbose)
    value = _parse_threshold(threshold)
    outputs.refuse_existing(output, force)
    folder = inputs.open_run(run, "search", ["ssfnas_cli.engine.derive_run"])
    from ssfnas_cli.engine.derive_run import derive_run

    genotype = derive_run(folder, rule, value, epoch)
    for kind, cell in genotype.cells().items():
        live = cell.pruned()
        if live.dead_edges or live.dead_nodes:
            log.info("%s cell: %d edges from nodes without input will be pruned", kind, len(live.dead_edges))
    _warn_of_collapse(genotype)
    outputs.write_output(output, genotype.to_json(), force)
    if output is not None and not is_stream(output):
        log.info("next: %s", shlex.join(["ssfnas", "retrain", str(output)]))


def _warn_of_collapse(genotype: Genotype) -> None:
    """Searches are known to end in skip connections (Chu et al., FairDARTS), and such a cell learns nothing."""
    empty = [
        f"{kind} cell ({', '.join(f'{name} {count}' for name, count in cell.op_counts().items())})"
        for kind, cell in genotype.cells().items()
        if all(OPS.get(name).facts.parameter_free for name in cell.op_counts())
    ]
    if empty:
        log.warning(
            "the ops of the %s have no weights: the search may have collapsed; try another --epoch or a longer search",
            " and of the ".join(empty),
        )


def _parse_threshold(text: str) -> float | str:
    """Parse `auto` or a finite number."""
    if text == "auto":
        return text
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if value != value or value in (float("inf"), float("-inf")):
        raise UsageError(f"--threshold {text}: should be auto or a number such as 0.85")
    return value
