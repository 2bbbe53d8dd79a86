"""`--dry-run`: predict the time, memory and disk space of a search or retraining from a few of its real steps.

The settings are resolved, checked and built by the code of a real run. Then each part of an epoch is executed a few
times: steps with full batches and with the last batch, an evaluation, and a checkpoint (in a temporary folder). After
that the process has held everything that a run holds, so its peak memory is the prediction. No run folder is written.
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
from ssfnas_cli.engine.candidate_rounds import CandidateRounds
from ssfnas_cli.engine.candidate_trainings import CandidateTrainings
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.federated import FederatedSearch
from ssfnas_cli.engine.loop import Diverged, Phase, seed_for_step
from ssfnas_cli.engine.retrain import build_retrain, plan_retrain
from ssfnas_cli.engine.search import build_search, plan_search
from ssfnas_cli.engine.search_phase import SearchPhase
from ssfnas_cli.engine.session import RunPlan
from ssfnas_cli.engine.train_phase import TrainPhase
from ssfnas_cli.machine import environment, peak_memory_bytes
from ssfnas_cli.nets.count import count_params
from ssfnas_cli.settings import RetrainSettings, SearchSettings, Training

MIN_STEPS, MAX_STEPS, ENOUGH_SECONDS = 5, 30, 10.0  # steps to time, and when to stop between these bounds
EVALUATION_BATCH, EVALUATION_BATCHES = 256, 3  # images per batch (as in an evaluation), and batches to time


class TimedPhase(Phase, Protocol):
    """A phase whose evaluation can be timed."""

    @property
    def settings(self) -> Training:
        """The settings of the run."""

    def evaluation_rows(self, epoch: int) -> dict[str, tuple[Split, np.ndarray]]:
        """The splits, and the rows of them, that the network is run on at the end of an epoch."""


Evaluate = Callable[[Split, np.ndarray], float]


def predict_search(settings: SearchSettings, output: Path | None, force: bool) -> dict[str, Any]:
    """Predict the cost of the search that `run_search` would run with the same arguments.

    Returns:
        The output of `search --dry-run`: seconds (medians) and bytes, and what they were measured with.

    Raises:
        Stopped: a signal has arrived. There is nothing to save, so the dry run ends immediately.
        OutputExistsError: the run's folder holds another run, so the search would fail, too.
        Diverged: the search diverges in its first steps.
    """
    with stop.interruptible("in a dry run; it leaves nothing behind"):
        plan = plan_search(settings, output, force)
        _report_if_done(plan, force)
        device, phase = build_search(plan)
        groups = _groups_of_search(phase)
        mixing = lambda: phase.strategy.mixing(1 / phase.epochs)

        def estimate() -> None:
            if isinstance(phase, FederatedSearch):
                phase.equip_clients()
            with phase.estimated_statistics(mixing()):
                pass

        figures = predict_phases(groups, lambda split, rows: phase.accuracy(split, rows, mixing()), estimate)
        if phase.strategy.num_candidates and not phase.strategy.trains_candidates:
            figures = _with_candidates(figures, CandidateRounds(phase))
    chosen = {name: getattr(plan.settings, name).name for name in ("strategy", "relax", "loss")}
    chosen["order"] = plan.settings.order  # type: ignore[attr-defined]
    if isinstance(phase, FederatedSearch):
        rounds = phase.rounds
        chosen |= {"clients": rounds.num_clients, "clients_per_round": rounds.num_drawn}
        chosen |= {"local_steps": rounds.local_steps, "round_bytes": phase.round_bytes}
    num_params = sum(w.numel() for name, w in phase.model.named_parameters() if not name.startswith("probe."))
    return _facts(plan, device, phase, num_params, chosen) | figures


def _groups_of_search(phase: SearchPhase) -> list[EpochGroup]:
    """The epochs of a supernet, stage by stage, or the trainings of the candidates."""
    if phase.strategy.trains_candidates:
        trainings = _Trainings(phase)
        return [EpochGroup(trainings, 0, trainings.epochs)]
    groups = []
    for stage in phase.strategy.stages():
        warmup = min(phase.settings.warmup_epochs, stage.epochs)
        # Epochs without alpha steps take less time than the others.
        groups.append(EpochGroup(phase, stage.first, warmup))
        groups.append(EpochGroup(phase, stage.first + warmup, stage.epochs - warmup))
    return groups


class _Trainings(CandidateTrainings):
    """Trains another candidate in each step, since they differ in what a step takes."""

    def step(self, epoch: int, step: int, batch: Any) -> dict[str, float]:
        """A step, after which the candidate counts as judged."""
        values = super().step(epoch, step, batch)
        self.strategy.judge({"accuracy": 0.0, "balanced_accuracy": 0.0})
        return values


def _with_candidates(figures: Mapping[str, Any], rounds: CandidateRounds) -> dict[str, Any]:
    """The figures of the epochs, and the time of the candidates that are judged after them."""
    judge = lambda: rounds.step(rounds.training.epochs, 0, None)
    judge()  # to warm up
    stop.raise_if_requested()
    seconds, number = statistics.median(_seconds_of(judge) for _ in range(3)), rounds.strategy.num_rounds
    closing = number * (figures["evaluation_seconds"] + figures["checkpoint_seconds"])
    total = rounds.strategy.num_candidates * seconds + closing
    part = {"phase": "candidate rounds", "unit": "epoch", "epochs": number, "epoch_seconds": round(total / number, 3)}
    return {
        **figures,
        "phases": [*figures["phases"], part],
        "total_seconds": round(figures["total_seconds"] + total, 1),
    }


def predict_retrain(
    genotype: Genotype | None, settings: RetrainSettings, output: Path | None, force: bool, other_data: bool
) -> dict[str, Any]:
    """Predict the cost of the retraining that `run_retrain` would run with the same arguments, including pretraining.

    It returns and raises the same as `predict_search`.
    """
    with stop.interruptible("in a dry run; it leaves nothing behind"):
        plan, card = plan_retrain(genotype, settings, output, other_data, force)
        _report_if_done(plan, force)
        device, phases, model = build_retrain(plan, card)
        groups = [EpochGroup(phase, 0, phase.epochs) for phase in phases]
        figures = predict_phases(groups, phases[-1].accuracy)
    resolved = plan.settings
    chosen = {name: getattr(resolved, name).name for name in ("network", "loss", "pretrain")}
    chosen["pretrain_epochs"] = phases[0].epochs if len(phases) > 1 else 0
    chosen["num_aux_params"] = count_params(model.aux) if model.aux is not None else 0
    return _facts(plan, device, phases[-1], count_params(model), chosen) | figures


def _report_if_done(plan: RunPlan, force: bool) -> None:
    if plan.result(force) is not None:
        log.info("%s is done: without --dry-run there would be nothing to do", plan.path)


def _facts(
    plan: RunPlan, device: Device, phase: SearchPhase | TrainPhase, num_params: int, chosen: Mapping[str, Any]
) -> dict[str, Any]:
    """The configuration with which the figures were measured."""
    settings = plan.settings
    shape = [name for name in ("channels", "layers", "stem") if name not in settings.unused()]
    return {
        "kind": "dry-run",
        "of": plan.kind,
        "path": str(plan.path),
        "data": str(plan.data.path.resolve()),
        **chosen,
        **{name: getattr(settings, name) for name in ("epochs", "batch_size", *shape)},
        "num_params": num_params,
        "computed_by": _computed_by(*phase.model.encoder.count_compiled()),
        "workers": settings.workers,
        "precision": settings.precision,
        **environment(),
        **device.facts(),
    }


def _computed_by(compiled: int, total: int) -> str:
    """Describe what computes the ops: the compiled kernels, torch, or both."""
    if compiled in (0, total):
        return "compiled kernels" if compiled else "torch"
    return f"compiled kernels for {compiled} of {total} ops, torch for the others"


class EpochGroup(NamedTuple):
    """Consecutive epochs of a phase that take the same time: `epochs` of them, beginning with `first`."""

    phase: SearchPhase | CandidateTrainings | TrainPhase
    first: int
    epochs: int

    @property
    def last(self) -> int:
        """Its last epoch, which evaluates what any of them evaluates if it ends the phase."""
        return self.first + self.epochs - 1


def predict_phases(
    groups: Sequence[EpochGroup], evaluate: Evaluate, prepare: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Predict the seconds and bytes of a run from a few steps of its phases.

    The phases must have just been built and cannot be used afterwards. The process must not have used more memory
    before, because its peak is the prediction.

    Args:
        groups: the epochs of all phases, in order. Groups without epochs are ignored.
        evaluate: evaluates rows of a split, as the end of an epoch does.
        prepare: runs once before the evaluations of an epoch.
    """
    groups = [group for group in groups if group.epochs]
    for group in groups:
        for split, _ in group.phase.evaluation_rows(group.last).values():
            _read_images(split)
    built = time.monotonic() - stop.STARTED
    timed = [_time_group(group, evaluate, prepare) for group in groups]
    last = timed[-1]
    setup = built + sum(times.steps.warm_up_seconds for times in timed)
    total = setup + sum(group.epochs * times.epoch_seconds for group, times in zip(groups, timed, strict=True))
    settings = groups[-1].phase.settings
    checkpoint_bytes = max(times.checkpoint_bytes for times in timed)
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
            {
                "phase": group.phase.name,
                "unit": getattr(group.phase, "unit", "epoch"),  # what one of its epochs is
                "epochs": group.epochs,
                "epoch_seconds": round(times.epoch_seconds, 1),
            }
            for group, times in zip(groups, timed, strict=True)
        ],
        "total_seconds": round(total, 1),
        "peak_memory_bytes": peak_memory_bytes(),
        "checkpoint_bytes": checkpoint_bytes,
        # A new checkpoint is written before an old one is deleted.
        "disk_bytes": checkpoint_bytes * (settings.keep_checkpoints + 1),
    }


class StepTimes(NamedTuple):
    """Wall-clock seconds of the steps of an epoch, including the loading of their batches.

    Attributes:
        by_step: the timings of each step, by its number.
        num_steps: number of steps of an epoch.
        last_share: number of images in the last batch divided by that in a full batch.
        warm_up_seconds: additional time that the first steps took.
    """

    by_step: dict[int, list[float]]
    num_steps: int
    last_share: float
    warm_up_seconds: float

    @property
    def all(self) -> list[float]:
        """All timings."""
        return [seconds for timings in self.by_step.values() for seconds in timings]

    @property
    def epoch_seconds(self) -> float:
        """Predicted time of all steps of an epoch: the median of a step's timings, or else the median of all timings.

        If the last step was not timed, it gets its share of the median.
        """
        shares = [1.0] * (self.num_steps - 1) + [self.last_share]
        median = statistics.median(self.all)
        return sum(statistics.median(self.by_step.get(step, [median * share])) for step, share in enumerate(shares))


class GroupTimes(NamedTuple):
    """The times of the parts of one epoch of a group, in seconds, and the size of a checkpoint."""

    steps: StepTimes
    evaluation_seconds: float
    save_seconds: float
    checkpoint_bytes: int
    epoch_seconds: float


def _time_group(group: EpochGroup, evaluate: Evaluate, prepare: Callable[[], None]) -> GroupTimes:
    phase = group.phase
    steps = _time_steps(phase, group.first)
    evaluation = _seconds_of(prepare) + _time_evaluation(group, evaluate)
    save, num_bytes = _time_checkpoint(phase)
    seconds = steps.epoch_seconds + evaluation + save
    seconds += save * math.floor(seconds / (60 * phase.settings.save_minutes))
    return GroupTimes(steps, evaluation, save, num_bytes, seconds)


def _time_steps(phase: TimedPhase, epoch: int) -> StepTimes:
    """Time the steps of an epoch from the first one on; a short epoch is repeated.

    Before that, a step with the last batch and one with a full batch are taken to warm up: kernels are selected or
    compiled for both shapes, and the momentum buffers are allocated. The full batch comes second, because the step
    after a change of shape has to allocate memory.
    """
    num_steps = phase.num_steps(epoch)
    began = time.perf_counter()
    last_images, full_images = [
        _step(phase, epoch, step, next(phase.batches(epoch, step))) for step in (num_steps - 1, 0)
    ]
    warm_up = time.perf_counter() - began
    log.info("dry run: two steps to warm up took %.1f s; timing some more, evaluation and a checkpoint", warm_up)
    by_step: dict[int, list[float]] = {}
    began = mark = time.perf_counter()
    for taken, (step, batch) in enumerate(_repeat_steps(phase, epoch)):
        if taken == MAX_STEPS or (taken >= MIN_STEPS and mark - began >= ENOUGH_SECONDS):
            break
        _step(phase, epoch, step, batch)
        now = time.perf_counter()
        by_step.setdefault(step, []).append(now - mark)
        mark = now
    share = last_images / full_images
    median = statistics.median(seconds for timings in by_step.values() for seconds in timings)
    return StepTimes(by_step, num_steps, share, max(0.0, warm_up - median * (1 + share)))


def _repeat_steps(phase: TimedPhase, epoch: int) -> Iterator[tuple[int, Any]]:
    """Yield (number, batch) of the steps of an epoch, and repeat it endlessly."""
    while True:
        yield from enumerate(phase.batches(epoch, 0))


def _step(phase: TimedPhase, epoch: int, step: int, batch: Any) -> int:
    """Take one step as the training loop does, and return the number of its images."""
    stop.raise_if_requested()
    seed_for_step(phase.seed, epoch, step)
    try:
        values = phase.step(epoch, step, batch)
    except FloatingPointError as error:
        raise Diverged(f"dry run: {error} at step {step}: training diverges at once") from None
    for name, value in values.items():
        if not math.isfinite(value):
            raise Diverged(f"dry run: {name} is {value} at step {step}: training diverges at once")
    return _num_images(batch)


def _num_images(batch: Any) -> int:
    """The images of a batch; a step of a search has several batches, and one of clients has several of those."""
    if batch is None:
        return 0
    return len(batch.labels) if hasattr(batch, "labels") else sum(map(_num_images, batch))


def _read_images(split: Split) -> None:
    """Read every image once, as an epoch does, because pages of mapped files count as memory of this process."""
    for start in range(0, len(split), EVALUATION_BATCH):
        split.rows(np.arange(start, min(start + EVALUATION_BATCH, len(split))))


def _time_evaluation(group: EpochGroup, evaluate: Evaluate) -> float:
    """Predict the seconds of the evaluations of an epoch (the group's mean) from batches of the largest split."""
    by_epoch = [list(group.phase.evaluation_rows(epoch).values()) for epoch in range(group.first, group.last + 1)]
    evaluated = max(by_epoch, key=len)
    if not evaluated:
        return 0.0
    split, rows = max(evaluated, key=lambda pair: len(pair[1]))
    sample = rows[: EVALUATION_BATCH * EVALUATION_BATCHES]
    evaluate(split, sample[:EVALUATION_BATCH])
    stop.raise_if_requested()
    seconds = _seconds_of(lambda: evaluate(split, sample))
    images = statistics.mean(sum(len(rows) for _, rows in pairs) for pairs in by_epoch)
    return seconds * images / len(sample)


def _time_checkpoint(phase: TimedPhase) -> tuple[float, int]:
    """Write a checkpoint to a temporary folder and return its seconds and bytes."""
    with tempfile.TemporaryDirectory(prefix="ssfnas-dry-run-") as name:
        folder = Path(name)
        seconds = _seconds_of(lambda: save_checkpoint(folder, phase.tensors(), {}, keep=1))
        return seconds, sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _seconds_of(act: Callable[[], Any]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began
