"""Running the cells of a sweep here: child processes of the same program, so many at a time, each when it is ready."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssfnas_cli import stop
from ssfnas_cli.console import format_duration, log, printable
from ssfnas_cli.machine import usable_cores
from ssfnas_cli.sweep.cells import Cell

PAUSE = 0.05  # seconds between looks at the children
SEEN = 4096  # bytes at the end of a log that are read for its error
PROGRAM = (sys.executable, "-P", "-m", "ssfnas_cli")  # -P: a file of the current folder must not stand in for a module

DONE, FAILED, NOT_RUN, STOPPED, WAITING = "done", "failed", "not run", "stopped", "waiting"


@dataclass
class Progress:
    """Where a cell stands: one of the states above, the error or the cell that failed, and the seconds it took."""

    cell: Cell
    state: str = WAITING
    why: str = ""
    seconds: float = 0.0

    @property
    def facts(self) -> dict[str, Any]:
        """For programs."""
        why = {"error": self.why} if self.why else {}
        return {"name": self.cell.name, "stage": self.cell.stage, "state": self.state, **why}


@dataclass
class _Child:
    progress: Progress
    process: subprocess.Popen[bytes]
    log: Path
    start: int  # where what it says begins in the log
    began: float


class Runner:
    """Runs cells whose needs are done, at most `jobs` at a time, until none is left or a stop is requested."""

    def __init__(
        self, cells: Sequence[Cell], is_done: Callable[[Cell], bool], folder: Path, jobs: int = 1, threads: int = 0
    ):
        """Plan the run.

        Args:
            cells: all of them, each behind those that it needs.
            is_done: whether there is nothing to do for a cell; asked when its turn comes.
            folder: where the folder `logs` goes, with what each cell said.
            jobs: how many at a time.
            threads: what each child takes unless its command says; 0: what it takes by itself.
        """
        self.progress = {cell.name: Progress(cell) for cell in cells}
        self.is_done, self.logs, self.jobs, self.threads = is_done, folder / "logs", jobs, threads
        self.children: list[_Child] = []

    def run(self, max_time: float | None = None) -> str | None:
        """Run them.

        Args:
            max_time: seconds since the program started after which to stop, or None.

        Returns:
            What has stopped it, or None if every cell is done, has failed or could not be run.
        """
        try:
            return self._run(max_time)
        except BaseException as error:
            self._end_children("error")
            if isinstance(error, Exception):  # a second Ctrl-C is none: it does not wait
                for child in self.children:
                    child.process.wait()
            raise

    def _run(self, max_time: float | None) -> str | None:
        asked = None
        while True:
            if asked is None and (asked := stop.requested_by(max_time)) is not None:
                self._end_children(asked)
            if asked is None:
                self._start_ready()
            if not self.children:
                return asked or stop.requested_by(max_time)  # it may have come while none was running
            time.sleep(PAUSE)
            for child in list(self.children):
                if child.process.poll() is not None:
                    self.children.remove(child)
                    self._close(child, asked)

    def _start_ready(self) -> None:
        for progress in self.progress.values():
            if len(self.children) >= self.jobs or stop.requested_by(None):
                return
            if progress.state != WAITING or progress in [child.progress for child in self.children]:
                continue
            needed = [self.progress[name] for name in progress.cell.needs]
            missing = next((one for one in needed if one.state in (FAILED, NOT_RUN)), None)
            if missing is not None:
                progress.state, progress.why = NOT_RUN, f"{missing.cell.name} {_past(missing.state)}"
            elif all(one.state == DONE for one in needed):
                if self.is_done(progress.cell):
                    progress.state = DONE
                    log.debug("%s: is done", progress.cell.name)
                else:
                    self._start(progress)

    def _start(self, progress: Progress) -> None:
        """Start a child in a session of its own: a Ctrl-C of the terminal is ours, and we ask it to stop."""
        cell = progress.cell
        self.logs.mkdir(parents=True, exist_ok=True)
        path = self.logs / f"{cell.name}.log"
        argv = cell.with_threads(self.threads)
        environ = ({"OMP_NUM_THREADS": str(self.threads)} if self.threads else {}) | dict(os.environ)
        with path.open("ab") as stream:
            stream.write(f"$ {cell.command}\n".encode())
            stream.flush()
            start = stream.tell()
            process = subprocess.Popen(
                [*PROGRAM, *argv], stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=environ,
                start_new_session=True,
            )  # fmt: skip
        log.info("started %s", cell.name)
        self.children.append(_Child(progress, process, path, start, time.monotonic()))

    def _close(self, child: _Child, asked: str | None) -> None:
        progress, code = child.progress, child.process.returncode
        progress.seconds = time.monotonic() - child.began
        name, took = progress.cell.name, format_duration(progress.seconds)
        if code == 0:
            progress.state = DONE
            log.info("done %s (%s; %d of %d)", name, took, self.count(DONE), len(self.progress))
        elif asked is not None and code in (75, 130, -signal.SIGTERM, 128 + signal.SIGTERM):
            progress.state = STOPPED
            log.info("stopped %s (%s)", name, took)
        else:
            progress.state, progress.why = FAILED, last_error(child.log, child.start, code)
            log.warning("%s failed: %s (see %s)", name, progress.why, child.log)

    def _end_children(self, asked: str) -> None:
        if self.children:
            log.info("%s: asking %d to save and stop", asked, len(self.children))
        for child in self.children:
            child.process.send_signal(signal.SIGTERM)

    def count(self, *states: str) -> int:
        """How many cells are in one of these states."""
        return sum(progress.state in states for progress in self.progress.values())


def _past(state: str) -> str:
    return "has failed" if state == FAILED else "was not run"


def last_error(path: Path, start: int, code: int) -> str:
    """The error that ended a child: the last line of its log that is one, else its last line and how it ended.

    Args:
        path: the log.
        start: where what the child said begins.
        code: its exit code; that of a signal is negative.
    """
    with path.open("rb") as stream:
        stream.seek(max(start, path.stat().st_size - SEEN))
        lines = [line for line in stream.read().decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ssfnas: ") and not line.startswith("ssfnas: warning: ")]
    if code < 0:
        return f"it was killed by {signal.Signals(-code).name}" + (
            " (out of memory?)" if code == -signal.SIGKILL else ""
        )
    if errors:
        return printable(errors[-1].removeprefix("ssfnas: "))
    said = printable(lines[-1]) if lines else "it said nothing"
    return f"exit code {code}: {said}"


def share_of_threads(jobs: int) -> int:
    """Threads of each of so many processes; 0 (each takes what it takes) for a single one."""
    return 0 if jobs == 1 else max(1, usable_cores() // jobs)
