"""`ssfnas runs`: the runs of folders, where they stand and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.artifacts.run_list import DamagedRun, find_runs, seconds_since_update, shown_state
from ssfnas_cli.commands import common
from ssfnas_cli.commands.watch import watch_runs
from ssfnas_cli.console import emit, next_step, printable, set_verbosity, stdout
from ssfnas_cli.errors import InputError, UsageError
from ssfnas_cli.results.splits import main_split

if TYPE_CHECKING:
    from rich.console import Console


def command(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FOLDER", help="Folders of run folders.", show_default="runs"),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show a table that is refreshed every 2 s until Ctrl-C.")
    ] = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    json: common.Json = False,
) -> None:
    """List runs with state, progress, last figures, age, and what to do next."""
    set_verbosity(quiet, verbose)
    places = folders or [Path("runs")]
    for folder in places:
        if not folder.is_dir():
            raise InputError(
                f"{folder}: no such folder of runs: name the folder that holds them, as 'ssfnas runs FOLDER'"
            )
    if watch:
        if json or not stdout().isatty():
            raise UsageError("--watch: draws on a terminal, and this is none: leave it out to get the list once")
        watch_runs(places)
        return
    entries = [_entry(run) for folder in places for run in find_runs(folder)]
    damaged = [entry["path"] for entry in entries if entry["state"] == "damaged"]
    facts = {"kind": "runs", "runs": entries, "damaged": damaged}
    emit(facts, json, lambda console: _show(console, entries, damaged))


def _entry(run: RunFolder | DamagedRun) -> dict[str, Any]:
    if isinstance(run, DamagedRun):
        return {"path": str(run.path), "kind": None, "age_seconds": 0, "state": "damaged", "next": run.why}
    entry: dict[str, Any] = {"path": str(run.path), "kind": run.kind, "age_seconds": round(seconds_since_update(run))}
    if command := run.config.get("command"):
        entry["command"] = str(command)
    if isinstance(adjustment := run.config.get("adjustment"), dict):
        entry |= {"adjusted": str(adjustment.get("method")), "source": str(adjustment.get("source"))}
    derivation = run.config.get("derivation")
    if isinstance(derivation, dict):
        entry |= {"derived": str(derivation.get("rule")), "source": str(derivation.get("source"))}
    try:
        status = run.status()
    except InputError as error:
        return entry | {"state": "damaged", "next": str(error)}
    state = shown_state(run, status)
    tested = _tested(run)
    following = next_step(run.kind, run.path, state, entry.get("command", ""), is_evaluated=bool(tested))
    if derivation is not None and state == "done":
        following = shlex.join(["ssfnas", "retrain", str(run.path / "genotype.json")])
    last = status.get("last", {})
    figures = {k: v for k, v in last.items() if ("loss" in k or "accuracy" in k) and isinstance(v, int | float)}
    return entry | {
        "state": state,
        "phase": status.get("phase"),
        "epoch": status.get("epoch", 0),
        "epochs": status.get("epochs"),
        "figures": figures | tested,
        **({"reason": str(status["reason"])} if "reason" in status else {}),
        "next": following,
    }


def _tested(run: RunFolder) -> dict[str, float]:
    """The balanced accuracy that `evaluate` measured, on the split that `compare` takes, too; empty without it."""
    try:
        splits = (run.evaluation() or {}).get("splits") if run.kind == "retrain" else None
        if not isinstance(splits, dict) or not splits:
            return {}
        split = main_split(list(splits))
        return {f"{split}_balanced_accuracy": float(splits[split]["balanced_accuracy"])}
    except (InputError, KeyError, TypeError, ValueError):  # to evaluate it again mends the file
        return {}


def _show(console: Console, entries: Sequence[dict[str, Any]], damaged: Sequence[str]) -> None:
    """Some lines for each run: a table has no room for paths and commands, and cuts what one wants to copy."""
    from rich.padding import Padding

    for entry in entries:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in entry.get("figures", {}).items())
        epochs = entry.get("epochs")  # a correction that trains nothing has 0
        of = "" if epochs == 0 else f" {entry.get('epoch', 0)}/{epochs or '?'}"
        progress = f"{entry.get('phase') or ''}{of}".strip()
        minutes = entry["age_seconds"] // 60
        told = [entry["state"], progress, f"{minutes // 60}:{minutes % 60:02d} h ago"]
        if "source" in entry:
            told.append(f"{entry.get('adjusted') or entry['derived']} of {entry['source']}")
        console.print(printable(entry["path"]), style="bold", soft_wrap=True)
        console.print(Padding(", ".join(told), (0, 0, 0, 4)))
        if figures:
            console.print(Padding(figures, (0, 0, 0, 4)))
        if "reason" in entry:
            console.print(Padding(printable(entry["reason"]), (0, 0, 0, 4)))
        if entry["next"]:
            console.print(printable(f"    next: {entry['next']}"), soft_wrap=True)
    whole = len(entries) - sum(entry["state"] == "damaged" for entry in entries)
    said = f"{whole} run{'' if whole == 1 else 's'}"
    console.print(f"{said}, {len(damaged)} damaged" if damaged else said)
