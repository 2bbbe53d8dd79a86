"""`ssfnas runs`: the runs of a folder, where they stand and what to do next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssfnas_cli.artifacts.run import DamagedRun, RunFolder, find_runs, seconds_since_update
from ssfnas_cli.commands import common
from ssfnas_cli.console import box_style, emit, printable, set_verbosity
from ssfnas_cli.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console


def command(
    folder: Annotated[Path, typer.Argument(help="A folder of run folders.")] = Path("runs"),
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    json: common.Json = False,
) -> None:
    """List runs with state, progress, last figures, age, and what to do next."""
    set_verbosity(quiet, verbose)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of runs")
    entries = [_entry(run) for run in find_runs(folder)]
    emit({"kind": "runs", "runs": entries}, json, lambda console: _show(console, entries))


def _entry(run: RunFolder | DamagedRun) -> dict[str, Any]:
    if isinstance(run, DamagedRun):
        return {"path": str(run.path), "kind": None, "age_seconds": 0, "state": "damaged", "next": run.why}
    entry: dict[str, Any] = {"path": str(run.path), "kind": run.kind, "age_seconds": round(seconds_since_update(run))}
    try:
        status = run.status()
    except InputError as error:
        return entry | {"state": "damaged", "next": str(error)}
    state = status["state"]
    if state == "running" and not run.is_locked():
        state = "interrupted"
    last = status.get("last", {})
    figures = {k: v for k, v in last.items() if ("loss" in k or "accuracy" in k) and isinstance(v, int | float)}
    return entry | {
        "state": state,
        "phase": status.get("phase"),
        "epoch": status.get("epoch", 0),
        "epochs": status.get("epochs"),
        "figures": figures,
        "next": _next(run, state),
    }


def _next(run: RunFolder, state: str) -> str:
    if state in ("stopped", "interrupted"):
        return "run the same command again: it goes on"
    if state == "running":
        return "wait"
    if state == "diverged":
        return "lower lr or alpha_lr, and --force"
    return f"ssfnas {'derive' if run.kind == 'search' else 'evaluate'} {run.path}"


def _show(console: Console, entries: list[dict[str, Any]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box_style())
    for column in ("run", "state", "progress", "last figures", "age", "next"):
        table.add_column(column, overflow="fold")
    for entry in entries:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in entry.get("figures", {}).items())
        progress = f"{entry.get('phase') or ''} {entry.get('epoch', 0)}/{entry.get('epochs') or '?'}"
        minutes = entry.get("age_seconds", 0) // 60
        shown_age = f"{minutes // 60}:{minutes % 60:02d} h"
        cells = (entry["path"], entry["state"], progress.strip(), figures, shown_age, entry["next"])
        table.add_row(*(escape(printable(cell)) for cell in cells))
    console.print(table)
