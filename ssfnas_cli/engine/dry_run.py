"""What a search or a retraining will take, from a few of its real steps: `--dry-run`.

Everything is resolved, checked and built as the run itself does it. Then each thing that an epoch consists of is done
a few times by the run's own code: steps of full batches and of the last one, evaluation, a checkpoint (in a temporary
folder). By then the process has held what the run holds, so its peak memory is the prediction. No run folder is
written.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ssfnas_cli import stop
from ssfnas_cli.artifacts.checkpoint import save_checkpoint
from ssfnas_cli.artifacts.dataset import Split
from ssfnas_cli.artifacts.genotype import Genotype
from ssfnas_cli.console import log
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.loop import Diverged, Phase, seed_step
from ssfnas_cli.engine.retrain import build_retrain, plan_retrain
from ssfnas_cli.engine.search import build_search, plan_search
from ssfnas_cli.engine.search_phase import SearchPhase
from ssfnas_cli.engine.session import RunPlan
from ssfnas_cli.engine.train_phase import TrainPhase
from ssfnas_cli.machine import environment, peak_memory_bytes
from ssfnas_cli.nets.count import count_params
from ssfnas_cli.settings import RetrainSettings, SearchSettings, Training

MIN_STEPS, MAX_STEPS, ENOUGH_SECONDS = 5, 30, 10.0  # timed: at least, at most, and in between until this has passed
EVALUATION_BATCH, EVALUATION_BATCHES = 256, 3  # images, as the evaluation takes them; timed batches


class TimedPhase(Phase, Protocol):
    """A phase whose evaluation can be timed."""

    @property
    def settings(self) -> Training:
        """Of the run."""

    def evaluated(self) -> dict[str, tuple[Split, np.ndarray]]:
        """What the end of an epoch evaluates."""


Evaluate = Callable[[Split, np.ndarray], float]


def dry_search(settings: SearchSettings, output: Path | None, force: bool) -> dict[str, Any]:
    """Predict the search that `run_search` would make of the same arguments.

    Returns:
        What `search --dry-run` prints: seconds (medians) and bytes, and what they were measured with.

    Raises:
        Stopped: at once when asked to, as there is nothing to save.
        OutputExistsError: the run's folder holds another run; the search would refuse, too.
        Diverged: in these first steps.
    """
    with stop.interruptible("in a dry run; it leaves nothing behind"):
        plan = plan_search(settings, output)
        _look_for_result(plan, force)
        device, phase = build_search(plan)
        warmup = min(plan.settings.warmup_epochs, phase.epochs)  # type: ignore[attr-defined]
        # Epochs without alpha steps cost less than the others.
        stretches = [Stretch(phase, 0, warmup), Stretch(phase, warmup, phase.epochs - warmup)]
        mixing = phase.strategy.mixing(1 / phase.epochs)

        def estimate() -> None:
            with phase.estimated_statistics(mixing):
                pass

        figures = predict(stretches, lambda split, rows: phase.accuracy(split, rows, mixing), estimate)
    chosen = {name: getattr(plan.settings, name).name for name in ("strategy", "relax", "loss")}
    chosen["order"] = plan.settings.order  # type: ignore[attr-defined]
    num_params = sum(weight.numel() for weight in phase.weights)
    return _facts(plan, device, phase, num_params, chosen) | figures


def dry_retrain(
    genotype: Genotype | None, settings: RetrainSettings, output: Path | None, force: bool, other_data: bool
) -> dict[str, Any]:
    """Predict the retraining that `run_retrain` would make of the same arguments, its pretraining included.

    Returns and raises what `dry_search` does.
    """
    with stop.interruptible("in a dry run; it leaves nothing behind"):
        plan, card = plan_retrain(genotype, settings, output, other_data)
        _look_for_result(plan, force)
        device, phases, model = build_retrain(plan, card)
        stretches = [Stretch(phase, 0, phase.epochs) for phase in phases]
        figures = predict(stretches, phases[-1].accuracy)
    resolved = plan.settings
    chosen = {name: getattr(resolved, name).name for name in ("network", "loss", "pretrain")}
    chosen["pretrain_epochs"] = phases[0].epochs if len(phases) > 1 else 0
    chosen["num_aux_params"] = count_params(model.aux) if model.aux is not None else 0
    return _facts(plan, device, phases[-1], count_params(model), chosen) | figures


def _look_for_result(plan: RunPlan, force: bool) -> None:
    if plan.result(force) is not None:
        log.info("%s is done: without --dry-run there would be nothing to do", plan.path)


def _facts(
    plan: RunPlan, device: Device, phase: SearchPhase | TrainPhase, num_params: int, chosen: Mapping[str, Any]
) -> dict[str, Any]:
    """What the figures were measured with."""
    settings = plan.settings
    return {
        "kind": "dry-run",
        "of": plan.kind,
        "path": str(plan.path),
        "data": str(plan.data.path.resolve()),
        **chosen,
        **{name: getattr(settings, name) for name in ("epochs", "batch_size", "channels", "layers")},
        "num_params": num_params,
        "computed_by": _computed_by(*phase.model.encoder.count_compiled()),
        "workers": settings.workers,
        "precision": settings.precision,
        **environment(),
        **device.facts(),
    }


def _computed_by(compiled: int, every: int) -> str:
    """What computes the candidate ops: compiled kernels, torch, or each its share."""
    if compiled in (0, every):
        return "compiled kernels" if compiled else "torch"
    return f"compiled kernels for {compiled} of {every} ops, torch for the others"


class Stretch(NamedTuple):
    """Epochs of a phase that cost alike: `epochs` of them from `first` on."""

    phase: SearchPhase | TrainPhase
    first: int
    epochs: int


def predict(
    stretches: Sequence[Stretch], evaluate: Evaluate, prepare: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Seconds and bytes of a run, from a few steps of phases that have just been built (and are spent by it).

    The process must have done nothing larger before: its own peak is the predicted one.

    Args:
        stretches: in order; those without epochs are left out.
        evaluate: what the end of an epoch does with the rows of a split.
        prepare: what it does once before.
    """
    stretches = [stretch for stretch in stretches if stretch.epochs]
    for stretch in stretches:
        for split, _ in stretch.phase.evaluated().values():
            _touch(split)
    built = time.monotonic() - stop.STARTED
    timed = [_time_stretch(stretch, evaluate, prepare) for stretch in stretches]
    last = timed[-1]
    setup = built + sum(one.steps.warm_up_seconds for one in timed)
    whole = setup + sum(stretch.epochs * one.epoch_seconds for stretch, one in zip(stretches, timed, strict=True))
    settings = stretches[-1].phase.settings
    return {
        "step_seconds": round(statistics.median(last.steps.all), 4),
        "step_seconds_range": [round(min(last.steps.all), 4), round(max(last.steps.all), 4)],
        "timed_steps": len(last.steps.all),
        "steps_per_epoch": last.steps.num_steps,
        "setup_seconds": round(setup, 1),
        "evaluation_seconds": round(last.evaluation_seconds, 2),
        "checkpoint_seconds": round(last.save_seconds, 2),
        "epoch_seconds": round(last.epoch_seconds, 1),
        "phases": [
            {"phase": stretch.phase.name, "epochs": stretch.epochs, "epoch_seconds": round(one.epoch_seconds, 1)}
            for stretch, one in zip(stretches, timed, strict=True)
        ],
        "total_seconds": round(whole, 1),
        "peak_memory_bytes": peak_memory_bytes(),
        "checkpoint_bytes": max(one.checkpoint_bytes for one in timed),
        # The new checkpoint is written before an old one goes.
        "disk_bytes": max(one.checkpoint_bytes for one in timed) * (settings.keep_checkpoints + 1),
    }


class StepTimes(NamedTuple):
    """Wall seconds of an epoch's steps, input included as in a run's metrics.

    `of_step` has the timings by number of step; `last_share` is the last batch's images over a full one's;
    `warm_up_seconds` is what the first steps took beyond the usual.
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


class TimedStretch(NamedTuple):
    """The parts of a stretch's epoch."""

    steps: StepTimes
    evaluation_seconds: float
    save_seconds: float
    checkpoint_bytes: int
    epoch_seconds: float


def _time_stretch(stretch: Stretch, evaluate: Evaluate, prepare: Callable[[], None]) -> TimedStretch:
    phase = stretch.phase
    steps = _time_steps(phase, stretch.first)
    evaluation = _seconds_of(prepare) + _time_evaluation(list(phase.evaluated().values()), evaluate)
    save, num_bytes = _time_checkpoint(phase)
    seconds = steps.epoch_seconds + evaluation + save
    seconds += save * math.floor(seconds / (60 * phase.settings.save_minutes))
    return TimedStretch(steps, evaluation, save, num_bytes, seconds)


def _time_steps(phase: TimedPhase, epoch: int) -> StepTimes:
    """Steps of an epoch from its first one on, over and over if it is short; before them the last and a full one.

    These two warm up: kernels are chosen or compiled for both shapes, and momentum comes to be. The full one is second,
    as a change of shape costs the step after it some memory to be found again.
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


def _over_and_over(phase: TimedPhase, epoch: int) -> Iterator[tuple[int, Any]]:
    """(number, batch) of an epoch's steps, again and again."""
    while True:
        yield from enumerate(phase.batches(epoch, 0))


def _step(phase: TimedPhase, epoch: int, step: int, batch: Any) -> int:
    """One step as the loop takes it; how many images it saw."""
    stop.raise_if_requested()
    seed_step(phase.seed, epoch, step)
    try:
        values = phase.step(epoch, step, batch)
    except FloatingPointError as error:
        raise Diverged(f"dry run: {error} at step {step}: training diverges at once") from None
    for name, value in values.items():
        if not math.isfinite(value):
            raise Diverged(f"dry run: {name} is {value} at step {step}: training diverges at once")
    parts = [batch] if hasattr(batch, "labels") else batch  # a search has several
    return sum(len(part.labels) for part in parts if part is not None)


def _touch(split: Split) -> None:
    """Read every image once: mapped files count as this process's memory, and an epoch reads them all."""
    for start in range(0, len(split), EVALUATION_BATCH):
        split.rows(np.arange(start, min(start + EVALUATION_BATCH, len(split))))


def _time_evaluation(evaluated: list[tuple[Split, np.ndarray]], evaluate: Evaluate) -> float:
    """Seconds of all evaluation at the end of an epoch, from some batches of the largest split."""
    if not evaluated:
        return 0.0
    split, rows = max(evaluated, key=lambda one: len(one[1]))
    some = rows[: EVALUATION_BATCH * EVALUATION_BATCHES]
    evaluate(split, some[:EVALUATION_BATCH])
    stop.raise_if_requested()
    seconds = _seconds_of(lambda: evaluate(split, some))
    return seconds * sum(len(rows) for _, rows in evaluated) / len(some)


def _time_checkpoint(phase: TimedPhase) -> tuple[float, int]:
    """Seconds and bytes of a checkpoint, written where temporary files go."""
    with tempfile.TemporaryDirectory(prefix="ssfnas-dry-run-") as name:
        folder = Path(name)
        seconds = _seconds_of(lambda: save_checkpoint(folder, phase.tensors(), {}, keep=1))
        return seconds, sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _seconds_of(act: Callable[[], Any]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began
