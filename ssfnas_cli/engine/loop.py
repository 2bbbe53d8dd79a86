"""The resumable training loop that search, pretraining and training share.

A phase provides batches by number, a training step, the end of an epoch, and the tensors that it changes. All random
numbers depend only on (seed, epoch, step). A checkpoint therefore consists of those tensors and a few numbers, and a
resumed run ends in the same state as an uninterrupted one, bit for bit.
"""

from __future__ import annotations

import contextlib
import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from torch import Tensor

from registry import collective
from registry.optimizers import Optimizer
from ssfnas_cli import stop, world
from ssfnas_cli.artifacts.checkpoint import Checkpoint, list_checkpoints, load_newest, save_checkpoint
from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.console import first_of, log, mend_divergence
from ssfnas_cli.engine.event_files import EventFile
from ssfnas_cli.engine.progress import Progress
from ssfnas_cli.engine.ranks import check_equal, checkpoint_of_first
from ssfnas_cli.errors import InputError, Stopped
from ssfnas_cli.machine import peak_memory_bytes
from ssfnas_cli.settings import Training


class Phase(Protocol):
    """A part of a run that trains one model, such as the pretraining."""

    name: str
    epochs: int
    seed: int
    is_spread: bool  # whether each rank holds a part of the tensors, which `tensors` brings together

    def num_steps(self, epoch: int) -> int:
        """The number of steps of an epoch."""

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        """Yield the batches of the steps `start`, `start + 1`, ... of an epoch."""

    def step(self, epoch: int, step: int, batch: Any) -> dict[str, float]:
        """Train on a batch and return values to be averaged over the epoch (see `registry.gpu.reported`)."""

    def end_epoch(self, epoch: int) -> dict[str, Any]:
        """End an epoch and return values for its line of metrics."""

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that the training changes, by name."""

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state that `tensors` returned, bit for bit."""

    def publish(self, folder: Path) -> None:
        """Write files that follow from the tensors. It is called after a resume and after each epoch's checkpoint."""


READ_SECONDS = 1.0  # between two times that the loop reads what a GPU has computed

Verdict = Callable[[Sequence[Mapping[str, Any]]], str | None]  # the metrics so far -> why a run is to end early


def never(lines: Sequence[Mapping[str, Any]]) -> str | None:
    """The verdict that lets every run go on to its end."""
    return None


class Diverged(InputError):
    """A loss, a weight or an alpha is no longer finite."""


class GivenUp(InputError):
    """A run that may be hopeless stopped early, as its settings ask. It can be resumed, but not by the same command."""


@dataclass
class Cursor:
    """The position of the training and its metrics so far, which checkpoints store as JSON."""

    phase: int = 0
    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    step_seconds: list[float] = field(
        default_factory=list
    )  # of this epoch's steps so far, including those before a resume
    seconds: float = 0.0
    metrics: list[dict[str, Any]] = field(default_factory=list)

    def begin_epoch(self, epoch: int) -> None:
        """Move to the start of an epoch."""
        self.epoch, self.step, self.sums, self.step_seconds = epoch, 0, {}, []


class Loop:
    """Runs phases in order and saves checkpoints.

    Args:
        run: the folder of the checkpoints and metrics. Its lock is checked before each save.
        settings: they configure saving, logging and the time limit.

    Raises:
        InputError: the run has checkpoints, but none can be loaded.
    """

    def __init__(self, run: RunFolder, settings: Training):
        self.run, self.settings = run, settings
        self.cursor = Cursor()
        self._restored_from: Checkpoint | None = checkpoint_of_first(self._load_newest)
        if self._restored_from is not None:
            self.cursor = _read_cursor(self._restored_from.state)
            log.info("resuming %s at %s", run.path, self._position())
        newest = list_checkpoints(run.checkpoints) if world.is_first() else []
        self._checkpoint = newest[-1].name if newest else None
        self._event_file: EventFile | None = None
        self._saved_at = time.monotonic()
        self._resumed_at = time.monotonic()
        self._unread: list[Mapping[str, Any]] = []  # the values of steps that a GPU may not have computed yet
        self._read_at = time.perf_counter()

    def _load_newest(self) -> Checkpoint | None:
        newest = load_newest(self.run.checkpoints)
        if newest is None and (missing := self.run.status_or_running().get("checkpoint")):
            raise InputError(f"{self.run.checkpoints / str(missing)}: is gone: put it back, or start over with --force")
        return newest

    def run_phase(self, index: int, phase: Phase, verdict: Verdict = never) -> None:
        """Run phase number `index`, or the rest of it. A phase that was already completed is skipped.

        Args:
            index: the number of the phase.
            phase: what to run.
            verdict: asked before every epoch, so also right after a resume, whether the run is to end early.

        Raises:
            GivenUp: the verdict is that the run is to end early. Everything is saved.
        """
        cursor = self.cursor
        if cursor.phase > index:
            return
        if cursor.phase < index:
            cursor.phase = index
            cursor.begin_epoch(0)
        elif self._restored_from is not None:
            self._restore(phase)
        self._publish(phase)
        self._status("running", phase)
        showing = Progress(phase, self.settings.log_seconds)
        with _left_alone_by_the_collector(), showing as progress, self._events() as self._event_file:
            while cursor.epoch < phase.epochs:
                self._give_up_if(verdict(cursor.metrics), phase)
                self._run_epoch(phase, progress)

    def _events(self) -> contextlib.AbstractContextManager[EventFile | None]:
        """The event file for TensorBoard with the epochs so far, if the settings ask for one."""
        if not self.settings.tensorboard or not world.is_first():
            return contextlib.nullcontext()
        return EventFile.begin(self.run.path, self.cursor.metrics)

    def _restore(self, phase: Phase) -> None:
        """Load the checkpoint. Tensors that an earlier version of ssfnas did not save keep their initial values."""
        assert self._restored_from is not None
        saved = self._restored_from.tensors
        if fit := getattr(phase, "fit", None):  # its tensors may have another shape later on
            fit(saved)
        initial = phase.tensors()
        # Drop tensors of the model that only an earlier version had. Keep all tensors of optimizers, which have none
        # before their first step.
        saved = {name: value for name, value in saved.items() if name in initial or not name.startswith("model.")}
        lacking = sorted(initial.keys() - saved.keys())
        if lacking:
            log.warning(
                "%s: its checkpoint is of an earlier ssfnas and lacks %s, which starts fresh: the run goes on, but its "
                "result differs from that of an uninterrupted run",
                self.run.path,
                first_of(lacking, 3),
            )
        try:
            phase.load({**initial, **saved})
        except (KeyError, RuntimeError, ValueError) as error:
            raise InputError(f"{self.run.path}: its checkpoint does not fit this run ({error}): --force") from error
        self._restored_from = None

    def _run_epoch(self, phase: Phase, progress: Progress) -> None:
        cursor = self.cursor
        num_steps = phase.num_steps(cursor.epoch)
        self._stop_if_requested(phase)
        self._read_at = time.perf_counter()
        for batch in self._batches(phase):
            seed_for_step(phase.seed, cursor.epoch, cursor.step)
            before = collective.traffic()
            try:
                values = phase.step(cursor.epoch, cursor.step, batch)
            except FloatingPointError as error:
                self._raise_diverged(phase, str(error))
            if world.size() > 1:
                values |= {f"{name}_per_step": float(num - before[name]) for name, num in collective.traffic().items()}
            cursor.step += 1
            self._unread.append(values)
            if self._read_is_due(values):
                self._read(phase)
                progress.update(cursor.epoch, cursor.step, num_steps, cursor.sums)
            self._stop_if_requested(phase)
            if self._save_is_due(phase):
                self.save(phase)
            if not self._unread:
                self._read_at = time.perf_counter()
        self._end_epoch(phase, progress)

    def _read_is_due(self, values: Mapping[str, Any]) -> bool:
        """Whether to read what steps reported: at once, unless it is on a GPU, which would have to be waited for."""
        waits = any(isinstance(value, Tensor) for value in values.values())
        return not waits or time.perf_counter() - self._read_at > READ_SECONDS

    def _read(self, phase: Phase) -> None:
        """Add up what the steps since the last time reported, and how long they took."""
        cursor, first = self.cursor, self.cursor.step - len(self._unread)
        for number, values in enumerate(self._unread, start=1):
            for name, value in values.items():
                found = float(value)
                if not math.isfinite(found):
                    cursor.step = first + number - 1
                    self._raise_diverged(phase, f"{name} is {found}")
                cursor.sums[name] = cursor.sums.get(name, 0.0) + found
        seconds = (time.perf_counter() - self._read_at) / max(1, len(self._unread))
        cursor.step_seconds += [round(seconds, 5)] * len(self._unread)
        self._unread, self._read_at = [], time.perf_counter()

    def _batches(self, phase: Phase) -> Iterator[Any]:
        """The rest of the epoch's batches. A request to stop that ends the wait for one saves first, as in a step."""
        try:
            yield from phase.batches(self.cursor.epoch, self.cursor.step)
        except Stopped:
            if world.size() == 1:  # other ranks wait for this one in the midst of their step, and cannot save with it
                self._stop_if_requested(phase)
            raise

    def _end_epoch(self, phase: Phase, progress: Progress) -> None:
        cursor = self.cursor
        self._read(phase)
        seed_for_step(phase.seed, cursor.epoch, cursor.step)
        line = {"phase": phase.name, "epoch": cursor.epoch + 1}
        line |= {name: total / cursor.step for name, total in cursor.sums.items()}
        line["steps"] = cursor.step
        line |= phase.end_epoch(cursor.epoch)
        for name, value in line.items():
            if isinstance(value, float) and not math.isfinite(value):
                self._raise_diverged(phase, f"{name} is {value}")
        if cursor.step_seconds:  # checkpoints of earlier versions have none
            line["step_seconds"] = round(statistics.median(cursor.step_seconds), 4)
        line["peak_memory_bytes"] = peak_memory_bytes()
        line["elapsed_seconds"] = round(self._elapsed_seconds(), 1)
        check_equal(phase.tensors())
        cursor.metrics.append(line)
        cursor.begin_epoch(cursor.epoch + 1)
        self.save(phase)
        self._publish(phase)
        if self._event_file is not None:
            self._event_file.add(line)
        progress.end_epoch(line)

    def _save_is_due(self, phase: Phase) -> bool:
        """Whether it is time for this rank to save, as the first rank's clock says."""
        due = world.is_first() and time.monotonic() - self._saved_at > 60 * self.settings.save_minutes
        return bool(world.largest(due)) if phase.is_spread else due

    def save(self, phase: Phase) -> None:
        """Save a checkpoint.

        Raises:
            Diverged: a tensor is not finite. No checkpoint is written.
            OutputExistsError: another process has taken over the folder.
        """
        self._read(phase)
        tensors = phase.tensors()
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                self._raise_diverged(phase, f"'{name}' is not finite")
        if not world.is_first():
            return
        self.run.check_lock()
        cursor = self.cursor
        state = {**vars(cursor), "seconds": self._elapsed_seconds()}
        path = save_checkpoint(self.run.checkpoints, tensors, state, self.settings.keep_checkpoints)
        self._checkpoint = path.name
        self._status("running", phase)
        self._saved_at = time.monotonic()

    def _stop_if_requested(self, phase: Phase) -> None:
        request = stop.agreed_request(self.settings.time_limit)
        if request is None:
            return
        self.save(phase)
        self._status("stopped", phase)
        raise Stopped(
            f"stopped by {request} at {self._position()}; saved in {self.run.path}: "
            "the same command goes on from there",
            interrupted=request == "SIGINT" or stop.interrupted(),
        )

    def _publish(self, phase: Phase) -> None:
        """Write the files that follow from what is saved."""
        if world.is_first():
            self.run.write_metrics(self.cursor.metrics)
            phase.publish(self.run.path)

    def _give_up_if(self, reason: str | None, phase: Phase) -> None:
        if reason is None:
            return
        self._status("stopped", phase, reason=reason)
        raise GivenUp(f"{self.run.path}: stopped after epoch {self.cursor.epoch}, and all of it is saved: {reason}")

    def _raise_diverged(self, phase: Phase, what: str) -> NoReturn:
        self._status("diverged", phase, reason=what)
        raise Diverged(
            f"{self.run.path}: {what} at {self._position()}: training has diverged. The last good checkpoint is kept; "
            f"{mend_divergence(self.run.kind)}"
        )

    def _status(self, state: str, phase: Phase, **facts: Any) -> None:
        if not world.is_first():
            return
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

    def _elapsed_seconds(self) -> float:
        return self.cursor.seconds + time.monotonic() - self._resumed_at

    def _position(self) -> str:
        return f"epoch {self.cursor.epoch + 1}, step {self.cursor.step}"


@contextlib.contextmanager
def _left_alone_by_the_collector() -> Iterator[None]:
    """Within, the garbage collector does not look at what is there now.

    Of a small network's step it would take a tenth to look at all modules of the network again and again.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _read_cursor(state: Mapping[str, Any]) -> Cursor:
    try:
        return Cursor(**state)
    except TypeError as error:
        raise InputError(f"checkpoint: its state does not fit this ssfnas ({error}): start over with --force") from None


def seed_for_step(seed: int, epoch: int, step: int) -> None:
    """Seed torch, numpy and random by (seed, epoch, step), so that checkpoints need no random state."""
    mixed = np.random.SeedSequence([seed, epoch, step]).generate_state(2, np.uint64)
    torch.manual_seed(int(mixed[0] >> np.uint64(1)))
    np.random.seed(int(mixed[1]) % 2**32)
    random.seed(int(mixed[1]))


def cosine(start: float, end: float, progress: float) -> float:
    """Cosine annealing from `start` at progress 0 to `end` at progress 1."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def set_lr(optimizer: Optimizer | torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr
