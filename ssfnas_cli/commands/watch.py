"""`ssfnas runs --watch`: a table of runs on the terminal, which is refreshed until Ctrl-C."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.cells import cell_len, set_cell_size

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
    """The table, cut to the height and the width of the terminal.

    Only names are cut to the width, those of runs and of figures: a figure without its value says nothing. So the cells
    are cut here; rich would take from all columns alike.
    """
    from rich.table import Table
    from rich.text import Text

    room = max(1, console.height - 6)
    shown, hidden = rows[:room], len(rows) - room
    running = sum(row.state == "running" for row in rows)
    more = f"; {hidden} more not shown" if hidden > 0 else ""
    caption = Text(f"{len(rows)} runs, {running} running{more}; Ctrl-C leaves")
    table = Table(box=box_style(), caption=caption, min_width=min(console.width, len(caption)))
    table.caption_justify = "left"
    texts = {
        "run": [row.name for row in shown],
        "state": [row.state for row in shown],
        "epoch": [row.progress for row in shown],
        "left": [row.left for row in shown],
        "figure": [row.figure for row in shown],
        "changed": [f"{_coarse(row.age)} ago" for row in shown],
    }
    if not any(texts["left"]):
        del texts["left"]
    _cut_names(texts, console.width)
    for name in texts:
        right = name in ("left", "changed")
        table.add_column(name, no_wrap=True, overflow="ellipsis", justify="right" if right else "left")
    for row, *line in zip(shown, *texts.values(), strict=True):
        style = "bold" if row.state == "running" else "dim" if row.state == "done" else ""
        table.add_row(*map(Text, line), style=style)
    return table


def _cut_names(texts: dict[str, list[str]], width: int) -> None:
    """Cut the names of runs and of figures, in place, so that the columns are no wider than the terminal.

    A run's name keeps its end, where the seed is; a figure's its value.
    """
    needed = {title: max([len(title), *map(cell_len, column)]) for title, column in texts.items()}
    frame = 3 * len(texts) + 1
    room = width - frame - sum(needed[title] for title in texts if title not in ("run", "figure"))
    if needed["run"] + needed["figure"] <= room:
        return
    values = max((cell_len(figure.rpartition(" ")[2]) for figure in texts["figure"]), default=0)
    of_figure = max(min(needed["figure"], max(room - needed["run"], room // 2)), values, len("figure"))
    of_run = max(room - of_figure, len("run"))
    texts["run"] = [name if cell_len(name) <= of_run else _cut(name, of_run) for name in texts["run"]]
    for place, figure in enumerate(texts["figure"]):
        name, _, value = figure.rpartition(" ")
        if cell_len(figure) > of_figure:
            left = of_figure - cell_len(value) - 2
            texts["figure"][place] = f"{set_cell_size(name, left)}… {value}" if left > 0 else value


def _cut(name: str, width: int) -> str:
    """The beginning and the end of a name, which is where names of runs differ."""
    end = min(len(name), (width - 1) // 2)
    return f"{set_cell_size(name, width - 1 - cell_len(name[len(name) - end :]))}…{name[len(name) - end :]}"


def _coarse(seconds: float) -> str:
    """A time in its largest unit: `42 s`, `5 min`, `15 h`, `3 d`."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
