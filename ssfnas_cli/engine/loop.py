"""The resumable training loop: what a search, a pretraining and a fine-tuning have in common.

A phase supplies batches by number, a step, an end of epoch, and the tensors it changes. Everything random is a
function of (seed, epoch, step), so a checkpoint is those tensors and a few numbers, and a resumed run ends where
the undisturbed one would have, bit for bit.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from torch import Tensor

from ssfnas_cli import stop
from ssfnas_cli.artifacts.checkpoint import Checkpoint, list_checkpoints, load_newest, save_checkpoint
from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.console import log
from ssfnas_cli.engine.progress import Progress
from ssfnas_cli.errors import InputError, Stopped
from ssfnas_cli.machine import peak_memory_bytes
from ssfnas_cli.settings import Training


class Phase(Protocol):
    """One stretch of training."""

    name: str
    epochs: int
    seed: int

    def num_steps(self, epoch: int) -> int:
        """Steps of an epoch."""

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        """What the steps `start`, `start + 1`, ... of an epoch get."""

    def step(self, epoch: int, step: int, batch: Any) -> dict[str, float]:
        """Train on a batch; the values are averaged over the epoch."""

    def end_epoch(self, epoch: int) -> dict[str, Any]:
        """Close an epoch; what it says goes into the epoch's line of metrics."""

    def tensors(self) -> dict[str, Tensor]:
        """Everything that training changes, by name."""

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take `tensors` back, bit for bit."""

    def publish(self, folder: Path) -> None:
        """Write what follows from the tensors: called after a resume and after every epoch's checkpoint."""


class Diverged(InputError):
    """A loss, weight or alpha is no longer finite."""


@dataclass
class Cursor:
    """Where training stands, as JSON."""

    phase: int = 0
    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    step_seconds: list[float] = field(default_factory=list)  # of this epoch's steps so far, whoever took them
    seconds: float = 0.0
    metrics: list[dict[str, Any]] = field(default_factory=list)

    def begin_epoch(self, epoch: int) -> None:
        """To the start of an epoch."""
        self.epoch, self.step, self.sums, self.step_seconds = epoch, 0, {}, []


class Loop:
    """Runs phases in order, saving as it goes.

    Args:
        run: where checkpoints and metrics go; its lock is checked before each save.
        settings: saving, logging and time limits.
    """

    def __init__(self, run: RunFolder, settings: Training):
        self.run, self.settings = run, settings
        self.cursor = Cursor()
        self._pending: Checkpoint | None = load_newest(run.checkpoints)
        if self._pending is None and (lost := run.last_status().get("checkpoint")):
            raise InputError(f"{run.checkpoints / str(lost)}: is gone: put it back, or start over with --force")
        if self._pending is not None:
            self.cursor = _read_cursor(self._pending.state)
            log.info("resuming %s at %s", run.path, self._place())
        newest = list_checkpoints(run.checkpoints)
        self._checkpoint = newest[-1].name if newest else None
        self._max_time = None if settings.max_time == "none" else float(settings.max_time)
        self._saved_at = time.monotonic()
        self._resumed_at = time.monotonic()

    def run_phase(self, index: int, phase: Phase) -> None:
        """Run phase number `index`, or what is left of it. A phase that a checkpoint lies beyond is passed over."""
        cursor = self.cursor
        if cursor.phase > index:
            return
        if cursor.phase < index:
            cursor.phase = index
            cursor.begin_epoch(0)
        elif self._pending is not None:
            self._take_back(phase)
        self.run.write_metrics(cursor.metrics)
        phase.publish(self.run.path)
        self._status("running", phase)
        with Progress(phase, self.settings.log_seconds) as progress:
            while cursor.epoch < phase.epochs:
                self._run_epoch(phase, progress)

    def _take_back(self, phase: Phase) -> None:
        """Load the checkpoint. What an earlier ssfnas did not keep in it starts fresh, with one warning."""
        assert self._pending is not None
        saved, fresh = self._pending.tensors, phase.tensors()
        # What only an earlier ssfnas knew. Optimizers' states come to be in the first step, so fresh ones have none.
        saved = {name: value for name, value in saved.items() if name in fresh or not name.startswith("model.")}
        lacking = sorted(fresh.keys() - saved.keys())
        if lacking:
            log.warning(
                "%s: its checkpoint is of an earlier ssfnas and lacks %s, which starts fresh: the run goes on, but it "
                "does not end where an undisturbed one would have",
                self.run.path,
                ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""),
            )
        try:
            phase.load({**fresh, **saved})
        except (KeyError, RuntimeError, ValueError) as error:
            raise InputError(f"{self.run.path}: its checkpoint does not fit this run ({error}): --force") from error
        self._pending = None

    def _run_epoch(self, phase: Phase, progress: Progress) -> None:
        cursor = self.cursor
        num_steps = phase.num_steps(cursor.epoch)
        self._stop_if_asked(phase)
        mark = time.perf_counter()
        for batch in phase.batches(cursor.epoch, cursor.step):
            seed_step(phase.seed, cursor.epoch, cursor.step)
            try:
                values = phase.step(cursor.epoch, cursor.step, batch)
            except FloatingPointError as error:
                self._diverge(phase, str(error))
            for name, value in values.items():
                if not math.isfinite(value):
                    self._diverge(phase, f"{name} is {value}")
                cursor.sums[name] = cursor.sums.get(name, 0.0) + value
            cursor.step += 1
            cursor.step_seconds.append(round(time.perf_counter() - mark, 5))
            progress.update(cursor.epoch, cursor.step, num_steps, cursor.sums)
            self._stop_if_asked(phase)
            if time.monotonic() - self._saved_at > 60 * self.settings.save_minutes:
                self.save(phase)
            mark = time.perf_counter()
        self._end_epoch(phase, progress)

    def _end_epoch(self, phase: Phase, progress: Progress) -> None:
        cursor = self.cursor
        seed_step(phase.seed, cursor.epoch, cursor.step)
        line = {"phase": phase.name, "epoch": cursor.epoch + 1}
        line |= {name: total / cursor.step for name, total in cursor.sums.items()}
        line |= phase.end_epoch(cursor.epoch)
        for name, value in line.items():
            if isinstance(value, float) and not math.isfinite(value):
                self._diverge(phase, f"{name} is {value}")
        if cursor.step_seconds:  # a checkpoint of before they were kept brings none
            line["step_seconds"] = round(statistics.median(cursor.step_seconds), 4)
        line["peak_memory_bytes"] = peak_memory_bytes()
        line["elapsed_seconds"] = round(self._seconds(), 1)
        cursor.metrics.append(line)
        cursor.begin_epoch(cursor.epoch + 1)
        self.save(phase)
        self.run.write_metrics(cursor.metrics)
        phase.publish(self.run.path)
        progress.end_epoch(line)

    def save(self, phase: Phase) -> None:
        """Checkpoint now.

        Raises:
            Diverged: a tensor is not finite; nothing is written.
            OutputExistsError: the folder was taken over.
        """
        tensors = phase.tensors()
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                self._diverge(phase, f"'{name}' is not finite")
        self.run.check_lock()
        cursor = self.cursor
        state = {**vars(cursor), "seconds": self._seconds()}
        path = save_checkpoint(self.run.checkpoints, tensors, state, self.settings.keep_checkpoints)
        self._checkpoint = path.name
        self._status("running", phase)
        self._saved_at = time.monotonic()

    def _stop_if_asked(self, phase: Phase) -> None:
        why = stop.requested_by(self._max_time)
        if why is None:
            return
        self.save(phase)
        self._status("stopped", phase)
        raise Stopped(
            f"stopped by {why} at {self._place()}; saved in {self.run.path}: the same command goes on from there",
            interrupted=stop.interrupted(),
        )

    def _diverge(self, phase: Phase, what: str) -> NoReturn:
        self._status("diverged", phase, reason=what)
        raise Diverged(
            f"{self.run.path}: {what} at {self._place()}: training has diverged. The last good checkpoint is kept; "
            "try a lower '--set lr=' or '--set alpha_lr=', with --force or another -o"
        )

    def _status(self, state: str, phase: Phase, **facts: Any) -> None:
        cursor = self.cursor
        last = cursor.metrics[-1] if cursor.metrics else {}
        self.run.write_status(
            state,
            phase=phase.name,
            epoch=cursor.epoch,
            epochs=phase.epochs,
            step=cursor.step,
            last=last,
            checkpoint=self._checkpoint,
            **facts,
        )

    def _seconds(self) -> float:
        return self.cursor.seconds + time.monotonic() - self._resumed_at

    def _place(self) -> str:
        return f"epoch {self.cursor.epoch + 1}, step {self.cursor.step}"


def _read_cursor(state: Mapping[str, Any]) -> Cursor:
    try:
        return Cursor(**state)
    except TypeError as error:
        raise InputError(f"checkpoint: its state does not fit this ssfnas ({error}): start over with --force") from None


def seed_step(seed: int, epoch: int, step: int) -> None:
    """Seed torch, numpy and random from (seed, epoch, step), so that no random state outlives a step."""
    mixed = np.random.SeedSequence([seed, epoch, step]).generate_state(2, np.uint64)
    torch.manual_seed(int(mixed[0] >> np.uint64(1)))
    np.random.seed(int(mixed[1]) % 2**32)
    random.seed(int(mixed[1]))


def cosine(start: float, end: float, progress: float) -> float:
    """Cosine annealing from `start` to `end` as progress goes from 0 to 1 (stepwise)."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """One learning rate for every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
