"""`ssfnas sweep`: a grid of whole pipelines from one file: printed, run here, or written for SLURM."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssfnas_cli import stop
from ssfnas_cli.commands import closing, common
from ssfnas_cli.console import emit, format_duration, log, printable, set_verbosity, write_text
from ssfnas_cli.errors import InputError, Stopped, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from ssfnas_cli.sweep.cells import Cell
    from ssfnas_cli.sweep.plan_file import PlanFile

NOUNS = {  # what the cells of a stage are called, one and more of them
    "data": ("data set", "data sets"),
    "search": ("search", "searches"),
    "derive": ("derivation", "derivations"),
    "retrain": ("retraining", "retrainings"),
    "adjust": ("correction", "corrections"),
    "evaluate": ("evaluation", "evaluations"),
}


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE.toml", help="The sweep; docs/sweeps.md says what it holds.")],
    run: Annotated[bool, typer.Option("--run", help="Run what is missing, here.")] = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs", "-j", min=1, help="With --run: cells at a time, which share the cores.", show_default="1"
        ),
    ] = None,
    slurm: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write SLURM arrays of what is missing into a folder.", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Take a few steps of each kind of search and retraining, and add up time and disk."
        ),
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Only cells of such names, and what they need; repeatable.", show_default="all"
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of all runs.", show_default="the file's, else runs/ and its name"),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A value of the file, as data.mu=[0.1,0.01]; repeatable."),
    ] = None,
    max_time: common.MaxTime = None,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    json: common.Json = False,
) -> None:
    """Expand a grid of pipelines: data set, search, derive, retrain, adjust, evaluate; 'compare' reads the result.

    Without --run, --slurm or --dry-run it prints the commands that are missing. Whatever made a run, it is not
    repeated, and one that was interrupted goes on.
    """
    stop.install_handlers()
    set_verbosity(quiet, verbose)
    _refuse_contradictions(run, slurm, dry_run, jobs, max_time)
    with stop.interruptible():
        from ssfnas_cli.sweep.cells import select
        from ssfnas_cli.sweep.grid import build_cells
        from ssfnas_cli.sweep.inputs import check_inputs, twins
        from ssfnas_cli.sweep.plan_file import read_plan
        from ssfnas_cli.sweep.state import missing

        limit = _seconds(max_time)
        plan = read_plan(file, sets or (), output)
        cells = select(build_cells(plan), only or ())
        left = missing(cells)
        try:
            check_inputs(plan, cells, left)
        except InputError as error:
            if run or dry_run:
                raise
            log.warning("%s", error)  # the commands may be for another machine, which has the sources
        for note in plan.notes:
            log.warning("%s", note)
        if same := twins(left):
            more = f" (and {len(same) - 1} more such pairs)" if len(same) > 1 else ""
            log.warning("%s and %s have the same settings: both are made%s", *same[0], more)
        if not run:
            log.info("%d cells, %d done, %d to do", len(cells), len(cells) - len(left), len(left))
    if run:
        _run(plan, cells, jobs or 1, limit, json)
    elif dry_run:
        _predict(left, jobs or 1, json)
    elif slurm is not None:
        _write_scripts(slurm, left, plan, json)
    else:
        _print(cells, left, json)


def _refuse_contradictions(
    run: bool, slurm: Path | None, dry_run: bool, jobs: int | None, max_time: str | None
) -> None:
    chosen = [name for name, given in {"--run": run, "--slurm": slurm, "--dry-run": dry_run}.items() if given]
    if len(chosen) > 1:
        raise UsageError(f"{chosen[0]} and {chosen[1]}: give one of them")
    if jobs is not None and not (run or dry_run):
        raise UsageError("--jobs: is for --run; under SLURM the queue decides")
    if max_time is not None and not run:
        raise UsageError("--max-time: is for --run")


def _seconds(max_time: str | None) -> float | None:
    """--max-time as the commands that train read it."""
    from ssfnas_cli.settings import AdjustSettings, load_settings

    return load_settings(AdjustSettings, flags={"max_time": max_time}).time_limit


def _print(cells: list[Cell], left: list[Cell], json: bool) -> None:
    if not json:
        write_text("".join(f"{cell.command}\n" for cell in left))
        return
    entries = []
    for cell in cells:
        place = {"path": str(cell.output), "command": cell.command}
        entries.append({"name": cell.name, "stage": cell.stage, "done": cell not in left, **place})
    emit({"kind": "sweep", "cells": entries}, json)


def _write_scripts(folder: Path, left: list[Cell], plan: PlanFile, json: bool) -> None:
    if not left:
        log.info("nothing is missing: no script is written")
        return
    from ssfnas_cli.sweep.slurm import write_scripts

    script = write_scripts(folder, left, plan.path, plan.output)
    emit({"kind": "sweep-scripts", "path": str(folder), "tasks": len(left)}, json)
    log.info("next: bash %s", script)


def _predict(left: list[Cell], jobs: int, json: bool) -> None:
    from ssfnas_cli.sweep.costs import predict
    from ssfnas_cli.sweep.runner import share_of_threads

    facts = predict(left, jobs, share_of_threads(jobs))
    emit(facts, json, lambda console: _show_costs(console, facts))
    if facts["failed"]:
        first = next(entry for entry in facts["cells"] if "error" in entry)
        raise InputError(
            f"{facts['failed']} of {len(facts['cells'])} runs cannot be predicted; {first['name']}: {first['error']}"
        )


def _show_costs(console: Console, facts: dict[str, Any]) -> None:
    from rich.table import Table

    from ssfnas_cli.console import box_style

    table = Table(box=box_style())
    for name in ("run", "time", "disk", "peak memory"):
        table.add_column(name, justify="left" if name == "run" else "right")
    for entry in facts["cells"]:
        if "error" in entry:
            table.add_row(entry["name"], printable(entry["error"]))
            continue
        size = [f"{entry[name] / 2**20:,.0f} MB" for name in ("disk_bytes", "peak_memory_bytes")]
        table.add_row(entry["name"], format_duration(entry["total_seconds"]), *size)
    size = [f"{facts[name] / 2**20:,.0f} MB" for name in ("disk_bytes", "peak_memory_bytes")]
    table.add_row(
        f"all {len(facts['cells']) - facts['failed']}", format_duration(facts["total_seconds"]), *size, style="bold"
    )
    console.print(table)
    if facts["jobs"] > 1:
        console.print(f"{facts['jobs']} at a time: {format_duration(facts['elapsed_seconds'])} at best")
    console.print(_what_is_counted(facts), soft_wrap=True)


def _what_is_counted(facts: dict[str, Any]) -> str:
    """Which cells the predicted time is of, and which it is not of."""
    counted, others = (
        [
            f"{facts[key][stage]} {words[facts[key][stage] != 1]}"
            for stage, words in NOUNS.items()
            if stage in facts[key]
        ]
        for key in ("counted", "not_counted")
    )
    processes = f"{facts['starts']} process{'es' if facts['starts'] != 1 else ''}"
    starts = f"the start of {processes} ({facts['start_seconds']:.1f} s each)"
    beside = f"{', '.join(others)}, and {starts}" if others else starts
    return f"the time is that of the steps of {' and '.join(counted) or 'no run'}; not in it: {beside}"


def _run(plan: PlanFile, cells: list[Cell], jobs: int, limit: float | None, json: bool) -> None:
    from ssfnas_cli.sweep import runner as running
    from ssfnas_cli.sweep.state import is_done

    runner = running.Runner(cells, is_done, plan.output, jobs, running.share_of_threads(jobs))
    asked = runner.run(limit)
    entries = [progress.facts for progress in runner.progress.values()]
    counts = {state: runner.count(state) for state in (running.DONE, running.FAILED, running.NOT_RUN)}
    facts = {"kind": "sweep", "path": str(plan.output), "counts": counts, "cells": entries}
    emit(facts, json, lambda console: _show_end(console, entries))
    done = f"{counts[running.DONE]} of {len(cells)} cells are done"
    if asked is not None and runner.count(running.WAITING, running.STOPPED):
        raise Stopped(f"stopped by {asked}: {done}; the same command goes on", stop.interrupted())
    if counts[running.FAILED]:
        first = next(progress for progress in runner.progress.values() if progress.state == running.FAILED)
        needed = "it" if counts[running.FAILED] == 1 else "them"
        behind = f", {counts[running.NOT_RUN]} that need {needed} were not run" if counts[running.NOT_RUN] else ""
        raise InputError(f"{counts[running.FAILED]} failed{behind}, {done}; {first.cell.name}: {first.why}")
    log.info("%s", done)
    if any(cell.stage == "evaluate" for cell in cells):
        closing.say_next("compare", str(plan.output))


def _show_end(console: Console, entries: list[dict[str, Any]]) -> None:
    """What is not done, and why."""
    for entry in entries:
        if entry["state"] != "done":
            why = f": {entry['error']}" if "error" in entry else ""
            console.print(f"{entry['state']:>8}  {entry['name']}{why}", soft_wrap=True)
