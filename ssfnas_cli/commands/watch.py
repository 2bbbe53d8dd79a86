"""`ssfnas runs --watch`: a table of runs on the terminal, which is refreshed until Ctrl-C."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.artifacts.run_list import DamagedRun, find_runs, seconds_since_update, shown_state
from ssfnas_cli.console import box_style, format_duration, plain_console, stdout
from ssfnas_cli.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SECONDS = 2.0  # between refreshes
ORDER = ("running", "interrupted", "stopped", "given up", "diverged", "damaged", "done")  # what matters most, first


class Row(NamedTuple):
    """A run in the table."""

    name: str
    state: str
    progress: str
    left: str
    figure: str
    age: float


def watch_runs(folders: Sequence[Path]) -> None:
    """Draw until Ctrl-C or SIGTERM, and leave the last table on the terminal."""
    from rich.live import Live

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # the cursor must be shown again
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background job starts with Ctrl-C ignored
    console = plain_console(stdout())
    try:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                live.update(draw(rows_of(folders), console), refresh=True)
                time.sleep(SECONDS)
    except KeyboardInterrupt:
        return  # that is how one leaves


def rows_of(folders: Sequence[Path]) -> list[Row]:
    """The runs of folders, those that need attention first, then those that changed last."""
    runs = [run for folder in folders if folder.is_dir() for run in find_runs(folder)]
    # Runs of several folders may have the same names.
    rows = [_row(run, str(run.path) if len(folders) > 1 else run.path.name) for run in runs]
    return sorted(rows, key=lambda row: (ORDER.index(row.state), row.age))


def _row(run: RunFolder | DamagedRun, name: str) -> Row:
    if isinstance(run, DamagedRun):
        return Row(name, "damaged", "", "", "", 0.0)
    age = seconds_since_update(run)
    try:
        status = run.status()
        state = shown_state(run, status)
    except InputError:
        return Row(name, "damaged", "", "", "", age)
    last = status.get("last", {})
    epochs = status.get("epochs")  # a correction that trains nothing has 0
    of = "" if epochs == 0 else f"{status.get('epoch', 0)}/{epochs or '?'}"
    left = _seconds_left(run, status) if state == "running" else None
    progress = f"{status.get('phase') or ''} {of}".strip()
    return Row(name, state, progress, "" if left is None else format_duration(left), _figure(last), age)


def _seconds_left(run: RunFolder, status: dict[str, Any]) -> float | None:
    """Of the phase, at the pace of its epochs so far; None before the end of its first."""
    try:
        lines = run.metrics()
    except InputError:
        return None
    seconds = {
        here: [line["elapsed_seconds"] for line in lines if (line["phase"] == status.get("phase")) is here]
        for here in (True, False)
    }
    if not seconds[True] or not status.get("epochs"):
        return None
    spent = seconds[True][-1] - max(seconds[False], default=0.0)
    return spent / len(seconds[True]) * max(0, status["epochs"] - len(seconds[True]))


def _figure(last: dict[str, Any]) -> str:
    """The accuracy that says most, or else the loss."""
    names = ("accuracy_test", "accuracy_alpha_half", "probe_accuracy_alpha_half", "train_accuracy", "loss")
    name = next((name for name in names if isinstance(last.get(name), int | float)), None)
    return "" if name is None else f"{name} {last[name]:.4g}"


def draw(rows: Sequence[Row], console: Console) -> Table:
    """The table, cut to the height of the terminal."""
    from rich.table import Table
    from rich.text import Text

    room = max(1, console.height - 6)
    shown, hidden = rows[:room], len(rows) - room
    running = sum(row.state == "running" for row in rows)
    more = f"; {hidden} more not shown" if hidden > 0 else ""
    table = Table(box=box_style(), caption=Text(f"{len(rows)} runs, {running} running{more}; Ctrl-C leaves"))
    table.caption_justify = "left"
    table.add_column("run", overflow="ellipsis", no_wrap=True, ratio=1)
    for name in ("state", "epoch", "left", "figure", "changed"):
        table.add_column(name, no_wrap=True, justify="right" if name in ("left", "changed") else "left")
    for row in shown:
        style = "bold" if row.state == "running" else "dim" if row.state == "done" else ""
        cells = [row.name, row.state, row.progress, row.left, row.figure, f"{format_duration(row.age)} ago"]
        table.add_row(*map(Text, cells), style=style)
    return table
