"""Display of progress: a live bar on a terminal, and a line per interval elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol

from ssfnas_cli.console import error_console, log
from ssfnas_cli.machine import memory_bytes


class _Named(Protocol):
    name: str
    epochs: int


class Progress:
    """Shows the progress of a phase: a bar on a terminal, and lines in the log elsewhere."""

    def __init__(self, phase: _Named, log_seconds: float):
        self.phase, self.log_seconds = phase, log_seconds
        self._logged_at = time.monotonic()
        self._first_update: tuple[float, float] | None = None
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty() and log.isEnabledFor(20):
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as RichProgress

            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[facts]}"),
                console=error_console(),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.phase.name, total=1.0, facts="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, epoch: int, step: int, num_steps: int, sums: Mapping[str, float]) -> None:
        """Show the progress after a step."""
        share = (epoch + step / num_steps) / self.phase.epochs
        now = time.monotonic()
        if self._first_update is None:
            self._first_update = (now, share)
        if self._bar is None and now - self._logged_at < self.log_seconds:
            return
        means = {name: f"{name} {total / step:.4g}" for name, total in sums.items()}
        position = f"epoch {epoch + 1}/{self.phase.epochs} step {step}/{num_steps}"
        timing = [*self._remaining(now, share), *_memory()]
        if self._bar is not None:  # a narrow terminal cuts off the end, so the remaining time comes first
            quality = [text for name, text in means.items() if name.endswith(("loss", "accuracy"))]
            self._bar.update(self._task, completed=share, facts=", ".join([*timing, position, *quality]))
        else:
            log.info("%s %s: %s", self.phase.name, position, ", ".join([*means.values(), *timing]))
            self._logged_at = now

    def end_epoch(self, line: Mapping[str, Any]) -> None:
        """Log the metrics of an epoch."""
        shown = {k: v for k, v in line.items() if isinstance(v, float) and k not in ("step_seconds", "elapsed_seconds")}
        facts = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
        pace = f"; {line['step_seconds']} s a step" if "step_seconds" in line else ""
        log.info("%s epoch %d/%d: %s%s", self.phase.name, line["epoch"], self.phase.epochs, facts, pace)
        self._logged_at = time.monotonic()

    def _remaining(self, now: float, share: float) -> list[str]:
        assert self._first_update is not None
        first_time, first_share = self._first_update
        if share <= first_share:
            return []
        seconds = (now - first_time) / (share - first_share) * (1 - share)
        return [f"{format_duration(seconds)} left"]


def _memory() -> list[str]:
    held = memory_bytes()
    return [] if held is None else [f"{held / 2**20:.0f} MB"]


def format_duration(seconds: float) -> str:
    """Format a duration as `M:SS`, or as `H:MM:SS` from an hour on."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"
