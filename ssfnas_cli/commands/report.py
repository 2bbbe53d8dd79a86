"""`ssfnas report`: one page that tells all about some runs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssfnas_cli.artifacts.metrics import EVALUATED
from ssfnas_cli.commands import common, inputs, outputs
from ssfnas_cli.console import is_stream, log, set_verbosity
from ssfnas_cli.errors import InputError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ssfnas_cli.plots.report.blocks import Block
    from ssfnas_cli.plots.report.material import Material, Shown
    from ssfnas_cli.results.facts import RunFacts
    from ssfnas_cli.results.selection import LeftOut, Selection

SUFFIXES = (".html", ".htm")
MISTAKES, MAX_NETWORKS = 12, 4  # of each network by default, and networks that are run by default


def command(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders of them; searches and retrainings.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="FILE.html; - for stdout.")] = Path("report.html"),
    split: Annotated[
        str,
        typer.Option(
            help=f"Of the data set, on which networks are looked at: {', '.join(EVALUATED)}.",
            autocompletion=common.one_of(EVALUATED),
        ),
    ] = "test",
    mistakes: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=200,
            help="How many of the most confident and of the worst mistakes of each network to show, which runs it on "
            "the split; 0: none.",
            show_default=f"{MISTAKES}; 0 for more than {MAX_NETWORKS} networks",
        ),
    ] = None,
    rank: Annotated[
        bool,
        typer.Option(
            "--rank",
            help="For each search, whether its supernet ranks the genotypes of the report's networks as their "
            "retrainings do; each genotype is measured in each supernet.",
        ),
    ] = False,
    sweep: common.SweepFile = None,
    device: common.DeviceName = None,
    threads: common.Threads = None,
    force: common.Force = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
) -> None:
    """Write a report of runs: one HTML page that holds everything and asks for nothing from outside.

    Data, curves, alphas, cells, tables, figures by class, confusion, mistakes as images, search health, settings,
    environment and the commands that make it all again. What an unfinished run lacks is said.
    """
    set_verbosity(quiet, verbose)
    if split not in EVALUATED:
        raise UsageError(f"--split {split}: should be one of {', '.join(EVALUATED)}")
    if not is_stream(output) and output.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--output {output}: should end in {' or '.join(SUFFIXES)}")
    outputs.refuse_existing(output, force)
    from ssfnas_cli.plots.report.contents import write
    from ssfnas_cli.results.selection import select_every_run

    selection = inputs.name_by_sweep(select_every_run(runs), sweep)
    material = gather(selection, split)
    if mistakes is None:
        mistakes = _usual_mistakes(material)
    if mistakes:
        material = find_mistakes(material, mistakes, device or "auto", threads or 0)
    if rank:
        material = find_ranks(material, {"device": device, "threads": threads})
    outputs.write_output(output, write(material), force)
    if not is_stream(output):
        log.info("%s", output)


def _usual_mistakes(material: Material) -> int:
    """How many mistakes are shown by default: none of many networks, since each has to be run."""
    num = len(_measured(material))
    if num <= MAX_NETWORKS:
        return MISTAKES
    log.info("mistakes of %d networks are not shown, since each has to be run: --mistakes %d shows them", num, MISTAKES)
    return 0


def _measured(material: Material) -> list[RunFacts]:
    """The networks that are evaluated on the split."""
    from ssfnas_cli.plots.report.material import is_evaluated

    return [run for run in material.runs if run.run.kind == "retrain" and is_evaluated(run, material.split)]


def gather(selection: Selection, split: str) -> Material:
    """What the runs say without their networks being run."""
    from ssfnas_cli.plots.report.material import Material, runs_of
    from ssfnas_cli.results.comparison import refuse_other_classes
    from ssfnas_cli.results.grouping import group_runs

    refuse_other_classes(selection.runs)
    of_kind = {kind: [run for run in selection.runs if run.run.kind == kind] for kind in ("search", "retrain")}
    searches, networks = group_runs(of_kind["search"]), group_runs(of_kind["retrain"])
    return Material(
        searches,
        networks,
        selection.left_out,
        [missing for run in selection.runs if (missing := _missing(run, split)) is not None],
        split,
        {kind: _compared(of_kind[kind], split) for kind in of_kind},
        {run.path: _weights(run) for group in searches for run in runs_of(group)},
        {},
    )


def _missing(run: RunFacts, split: str) -> LeftOut | None:
    """What a run lacks for a whole report, with the command that goes on."""
    from ssfnas_cli.plots.report.material import is_evaluated
    from ssfnas_cli.results.selection import LeftOut, what_is_missing

    missing = what_is_missing(run.run)
    if missing is not None or run.run.kind == "search" or is_evaluated(run, split):
        return missing
    command = shlex.join(["ssfnas", "evaluate", str(run.path), "--split", split])
    return LeftOut(run.path, f"is not evaluated on {split}", command)


def _compared(runs: Sequence[RunFacts], split: str) -> list[Block]:
    """The tables and the remarks of `compare` for the finished runs of a kind."""
    from ssfnas_cli.commands.compare import with_counts
    from ssfnas_cli.commands.compare_table import grids, notes
    from ssfnas_cli.plots.report.blocks import Details, Items, Table, turned_if_wide
    from ssfnas_cli.results.comparison import compare
    from ssfnas_cli.results.selection import Selection, what_is_missing

    ready = [run for run in runs if what_is_missing(run.run) is None]
    if not ready:
        return []
    selection = with_counts(Selection(ready, []))
    measured = {name for run in ready for name in (run.evaluation or {}).get("splits", {})}
    main = compare(selection, [split] if split in measured else [])
    (grid,) = grids(main)
    blocks: list[Block] = [turned_if_wide(Table(*grid))]
    others = [compare(selection, [name]) for name in EVALUATED if name in measured.difference(main.splits)]
    if others:
        tables = [
            Table(*grid)
            for one in others
            for grid in grids(replace(one, figures=[figure for figure in one.figures if figure.effect]))
        ]
        blocks.append(Details("The same on other splits", [turned_if_wide(table) for table in tables]))
    if told := notes(main):
        blocks.append(Details("What to mind", [Items(told)], is_open=True))
    return blocks


def _weights(run: RunFacts) -> Mapping[str, NDArray] | InputError:
    """The mixing weights of a search, or why there are none."""
    from ssfnas_cli.engine.derive_run import weights_of_run

    try:
        return weights_of_run(run.run)
    except InputError as error:
        return error


def find_mistakes(material: Material, num: int, device: str, threads: int) -> Material:
    """The material with the mistakes of every network that is evaluated on the split, or why there are none."""
    from ssfnas_cli.engine.device import Device
    from ssfnas_cli.engine.mistakes import mistakes_of_run
    from ssfnas_cli.plots.report.data import open_data
    from ssfnas_cli.plots.report.material import Shown

    place = Device(device, threads)
    found: dict[Path, Shown | InputError] = {}
    for run in _measured(material):
        assert run.evaluation
        images = run.evaluation["splits"][material.split]["num_images"]
        log.info("mistakes of %s on %s: %s images", run.path, material.split, f"{images:,}")
        try:
            open_data(run)
            found[run.path] = Shown(*mistakes_of_run(run.run, material.split, num, place))
        except InputError as error:
            found[run.path] = error
    return replace(material, mistakes=found)


def find_ranks(material: Material, execution: Mapping[str, Any]) -> Material:
    """The material with the rank consistency of every search, or why there is none.

    The genotypes are those of the networks that are evaluated on the split and trained as most of them are.
    """
    from ssfnas_cli.commands.rank import measure, with_own_names
    from ssfnas_cli.results.retrained import by_genotype, most_common_training

    given = {name: value for name, value in execution.items() if value is not None}
    genotypes = [run for run in _measured(material) if isinstance(run.run.config.get("genotype"), dict)]
    networks = most_common_training([run for run in genotypes if len(run.lineage) == 1])
    found: dict[Path, Mapping[str, Any] | InputError] = {}
    for run in material.runs:
        if run.run.kind != "search":
            continue
        entries = with_own_names(by_genotype(networks, run.data[1])[0])
        log.info("%s: asking the supernet of %d genotypes", run.path, len(entries))
        try:
            found[run.path] = measure(run.run, entries, "top1", material.split, "", given)
        except InputError as error:
            found[run.path] = error
    return replace(material, ranks=found)
