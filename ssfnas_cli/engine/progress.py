"""Display of progress: a live bar on a terminal, and a line per interval elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol

from ssfnas_cli.console import error_console, format_duration, log
from ssfnas_cli.machine import memory_bytes
from ssfnas_cli.results.health import FIGURES

FORECAST_STEPS, FORECAST_SECONDS = 20, 5.0  # until the pace is known well enough to foretell the end
ADVISED_SECONDS = 1800.0  # a phase that takes longer says what would make it faster
MIN_BAR = 8  # columns


class _Named(Protocol):
    """A phase. It may have a `unit`, what users call its epochs, and an `advice`, what would make it faster."""

    name: str
    epochs: int


class Progress:
    """Shows the progress of a phase: a bar on a terminal, and lines in the log elsewhere."""

    def __init__(self, phase: _Named, log_seconds: float):
        self.phase, self.log_seconds = phase, log_seconds
        self.unit, self.advice = getattr(phase, "unit", "epoch"), getattr(phase, "advice", "")
        self._logged_at = time.monotonic()
        self._first_update: tuple[float, float] | None = None
        self._steps, self._forecast = 0, False
        self._last: dict[str, str] = {}  # accuracies of the epoch before
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
        if self._first_update is None:  # the first step also warms up, so the pace is that of the steps after it
            self._first_update = (now, share)
        self._steps += 1
        if not self._forecast and (self._steps > FORECAST_STEPS or now - self._first_update[0] > FORECAST_SECONDS):
            self._say_forecast(now, share)
        if self._bar is None and now - self._logged_at < self.log_seconds:
            return
        means = {name: f"{name} {total / step:.4g}" for name, total in sums.items()}
        place = f"{self.unit} {epoch + 1}/{self.phase.epochs} step {step}/{num_steps}"
        left = self._remaining(now, share)
        if self._bar is not None:
            self._draw(share, [*left, place], {**self._last, **means})
        else:
            log.info("%s %s: %s", self.phase.name, place, ", ".join([*means.values(), *left, *_memory()]))
            self._logged_at = now

    def _draw(self, share: float, always: list[str], means: Mapping[str, str]) -> None:
        """The bar, with as many facts as the terminal has room for: time and place, accuracies, losses, memory."""
        room = self._bar.console.width - len(self.phase.name) - MIN_BAR - 2
        judged = [
            text
            for ending in ("accuracy", "accuracy_alpha_half", "loss")
            for name, text in means.items()
            if name.endswith(ending)
        ]
        facts = ", ".join(always)
        for text in [*judged, *_memory()]:
            if len(facts) + len(text) + 2 <= room:
                facts += f", {text}"
        self._bar.update(self._task, completed=share, facts=facts)

    def _say_forecast(self, now: float, share: float) -> None:
        """Once, near the start, also where no bar is drawn: how long it will take."""
        seconds = self._seconds_left(now, share)
        if seconds is not None:
            self._forecast = True
            epochs = f"{self.phase.epochs} {self.unit}{'' if self.phase.epochs == 1 else 's'}"
            log.info("%s: about %s left of all %s", self.phase.name, in_words(seconds), epochs)
            if seconds > ADVISED_SECONDS and self.advice:
                log.info("%s", self.advice)

    def end_epoch(self, line: Mapping[str, Any]) -> None:
        """Log the metrics of an epoch."""
        hidden = ("step_seconds", "elapsed_seconds", *FIGURES)  # a search says its health at its end
        shown = {k: v for k, v in line.items() if isinstance(v, float) and k not in hidden}
        facts = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
        self._last = {name: f"{name} {value:.4g}" for name, value in shown.items() if "accuracy" in name}
        pace = f"; {line['step_seconds']} s a step" if "step_seconds" in line else ""
        log.info("%s %s %d/%d: %s%s", self.phase.name, self.unit, line["epoch"], self.phase.epochs, facts, pace)
        self._logged_at = time.monotonic()

    def _remaining(self, now: float, share: float) -> list[str]:
        seconds = self._seconds_left(now, share)
        return [] if seconds is None else [f"{format_duration(seconds)} left"]

    def _seconds_left(self, now: float, share: float) -> float | None:
        """At the pace since the first step; None if there is no pace yet."""
        assert self._first_update is not None
        began, share_then = self._first_update
        return None if share <= share_then else (now - began) / (share - share_then) * (1 - share)


def _memory() -> list[str]:
    held = memory_bytes()
    return [] if held is None else [f"{held / 2**20:.0f} MB"]


def in_words(seconds: float) -> str:
    """`40 seconds`, `4 minutes` or `2.5 hours`."""
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} seconds"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"
