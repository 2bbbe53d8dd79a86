"""What a search will take, from a few of its real steps: `ssfnas search --dry-run`.

Everything is resolved, checked and built as a search does it, and then each thing that an epoch consists of is done a
few times by the search's own code: steps of full batches and of the last one, evaluation, a checkpoint (in a temporary
folder). The process has then held what a search holds, so its peak is the prediction. No run folder is written.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssfnas_cli import stop
from ssfnas_cli.artifacts.checkpoint import save_checkpoint
from ssfnas_cli.artifacts.dataset import Split
from ssfnas_cli.artifacts.run import environment, finished
from ssfnas_cli.console import log
from ssfnas_cli.data.batches import Batch
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.loop import Diverged, peak_memory_bytes, seed_step
from ssfnas_cli.engine.search import plan_search
from ssfnas_cli.engine.search_phase import SearchPhase
from ssfnas_cli.nets.supernet import Supernet
from ssfnas_cli.settings import SearchSettings

MIN_STEPS, MAX_STEPS, ENOUGH_SECONDS = 5, 30, 10.0  # timed: at least, at most, and in between until this has passed
EVALUATION_BATCH, EVALUATION_BATCHES = 256, 3  # images, as the search's evaluation takes them; timed batches


def dry_run(settings: SearchSettings, output: Path | None, force: bool) -> dict[str, Any]:
    """Predict the search that `run_search` would make of the same arguments.

    Returns:
        What `search --dry-run` prints: seconds (medians) and bytes, and what they were measured with.

    Raises:
        Stopped: at once when asked to, as there is nothing to save.
        OutputExistsError: the run's folder holds another run; the search would refuse, too.
        Diverged: in these first steps.
    """
    with stop.waiting("in a dry run; it leaves nothing behind"):
        settings, data, identity, path = plan_search(settings, output)
        if not force and finished(path, "search", identity) is not None:
            log.info("%s is done: without --dry-run there would be nothing to do", path)
        data.verify()
        device = Device.of(settings)
        phase = SearchPhase(settings, data, device, lambda alphas: None)
        figures = predict(phase)
    return {
        "kind": "dry-run",
        "path": str(path),
        "data": str(data.path.resolve()),
        "relax": settings.relax.name,
        "loss": settings.loss.name,
        **{name: getattr(settings, name) for name in ("order", "epochs", "batch_size", "channels", "layers")},
        "num_params": sum(weight.numel() for weight in phase.weights),
        **figures,
        "computed_by": _computed_by(phase),
        "workers": settings.workers,
        "precision": settings.precision,
        **environment(),
        **device.facts(),
    }


def _computed_by(phase: SearchPhase) -> str:
    """What runs the candidate ops: compiled kernels, torch, or each its share."""
    assert isinstance(phase.model.encoder, Supernet)
    compiled, every = phase.model.encoder.count_compiled()
    if compiled in (0, every):
        return "compiled kernels" if compiled else "torch"
    return f"compiled kernels for {compiled} of {every} ops, torch for the others"


def predict(phase: SearchPhase) -> dict[str, Any]:
    """Seconds and bytes of a search, from a few steps of a phase that has just been built (and is spent by it).

    The process must have done nothing larger before: its own peak is the predicted one.
    """
    settings = phase.settings
    judged = list(phase.judged().values())
    for split, _ in judged:
        _touch(split)
    built = time.monotonic() - stop.STARTED
    stretches = [(first, epochs, _time_steps(phase, first)) for first, epochs in _stretches(settings)]
    progress = 1 / phase.epochs
    evaluation = _time_evaluation(phase, judged, progress)
    save, checkpoint_bytes = _time_checkpoint(phase)

    def epoch_seconds(steps: StepTimes) -> float:
        seconds = steps.epoch_seconds + evaluation + save
        return seconds + save * math.floor(seconds / (60 * settings.save_minutes))

    *_, steps = stretches[-1]
    setup = built + sum(times.warm_up_seconds for *_, times in stretches)
    whole = setup + sum(epochs * epoch_seconds(times) for _, epochs, times in stretches)
    return {
        "step_seconds": round(statistics.median(steps.all), 4),
        "step_seconds_range": [round(min(steps.all), 4), round(max(steps.all), 4)],
        "timed_steps": len(steps.all),
        "steps_per_epoch": steps.num_steps,
        "setup_seconds": round(setup, 1),
        "evaluation_seconds": round(evaluation, 2),
        "checkpoint_seconds": round(save, 2),
        "epoch_seconds": round(epoch_seconds(steps), 1),
        "search_seconds": round(whole, 1),
        "peak_memory_bytes": peak_memory_bytes(),
        "checkpoint_bytes": checkpoint_bytes,
        # The new checkpoint is written before an old one goes.
        "disk_bytes": checkpoint_bytes * (settings.keep_checkpoints + 1),
    }


def _stretches(settings: SearchSettings) -> list[tuple[int, int]]:
    """(first epoch, number of epochs) of epochs that cost alike: those without alpha steps, and the others."""
    without = min(settings.warmup_epochs, settings.epochs)
    return [(first, epochs) for first, epochs in ((0, without), (without, settings.epochs - without)) if epochs]


class StepTimes(NamedTuple):
    """Wall seconds of an epoch's steps, input included as in a run's metrics.

    `of_step` has the timings by number of step; `last_share` is the last batch's images over a full one's;
    `warm_up_seconds` what the first steps took beyond the usual.
    """

    of_step: dict[int, list[float]]
    num_steps: int
    last_share: float
    warm_up_seconds: float

    @property
    def all(self) -> list[float]:
        """Every timing."""
        return [seconds for timings in self.of_step.values() for seconds in timings]

    @property
    def epoch_seconds(self) -> float:
        """All steps of an epoch: a timed one by its timings, others by the median, the last by its share of it."""
        shares = [1.0] * (self.num_steps - 1) + [self.last_share]
        usual = statistics.median(self.all)
        return sum(statistics.median(self.of_step.get(step, [usual * share])) for step, share in enumerate(shares))


def _time_steps(phase: SearchPhase, epoch: int) -> StepTimes:
    """Steps of an epoch from its first one on, over and over where it is short; before them the last and a full one.

    These two warm up: kernels are chosen or compiled for both shapes, and momentum comes to be. The full one is second,
    as a change of shape costs the step after it some memory to be found anew.
    """
    num_steps = phase.num_steps(epoch)
    began = time.perf_counter()
    last, full = [_step(phase, epoch, step, next(phase.batches(epoch, step))) for step in (num_steps - 1, 0)]
    warm_up = time.perf_counter() - began
    log.info("dry run: two steps to warm up took %.1f s; timing some more, evaluation and a checkpoint", warm_up)
    of_step: dict[int, list[float]] = {}
    began = mark = time.perf_counter()
    for taken, (step, batch) in enumerate(_over_and_over(phase, epoch)):
        if taken == MAX_STEPS or (taken >= MIN_STEPS and mark - began >= ENOUGH_SECONDS):
            break
        _step(phase, epoch, step, batch)
        now = time.perf_counter()
        of_step.setdefault(step, []).append(now - mark)
        mark = now
    share = last / full
    usual = statistics.median(seconds for timings in of_step.values() for seconds in timings)
    return StepTimes(of_step, num_steps, share, max(0.0, warm_up - usual * (1 + share)))


def _over_and_over(phase: SearchPhase, epoch: int) -> Iterator[tuple[int, tuple[Batch, Batch]]]:
    """(number, batch) of an epoch's steps, again and again."""
    while True:
        yield from enumerate(phase.batches(epoch, 0))


def _step(phase: SearchPhase, epoch: int, step: int, batch: tuple[Batch, Batch]) -> int:
    """One step as the loop takes it; how many images it saw."""
    stop.leave_if_asked()
    seed_step(phase.seed, epoch, step)
    try:
        values = phase.step(epoch, step, batch)
    except FloatingPointError as error:
        raise Diverged(f"dry run: {error} at step {step}: training diverges at once") from None
    for name, value in values.items():
        if not math.isfinite(value):
            raise Diverged(f"dry run: {name} is {value} at step {step}: training diverges at once")
    return sum(len(part.labels) for part in batch)


def _touch(split: Split) -> None:
    """Read every image once: mapped files count as this process's memory, and an epoch reads them all."""
    for start in range(0, len(split), EVALUATION_BATCH):
        split.rows(np.arange(start, min(start + EVALUATION_BATCH, len(split))))


def _time_evaluation(phase: SearchPhase, judged: list[tuple[Split, np.ndarray]], progress: float) -> float:
    """Seconds of all evaluation at the end of an epoch, from some batches of the largest split."""
    split, rows = max(judged, key=lambda one: len(one[1]))
    some = rows[: EVALUATION_BATCH * EVALUATION_BATCHES]
    phase.accuracy(split, some[:EVALUATION_BATCH], progress)
    stop.leave_if_asked()
    seconds = _seconds_of(lambda: phase.accuracy(split, some, progress))
    return seconds * sum(len(rows) for _, rows in judged) / len(some)


def _time_checkpoint(phase: SearchPhase) -> tuple[float, int]:
    """Seconds and bytes of a checkpoint, written where temporary files go."""
    with tempfile.TemporaryDirectory(prefix="ssfnas-dry-run-") as name:
        folder = Path(name)
        seconds = _seconds_of(lambda: save_checkpoint(folder, phase.tensors(), {}, keep=1))
        return seconds, sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _seconds_of(act: Callable[[], Any]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began
