"""What search and retraining share around the training: choosing, opening and finishing the run folder."""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry.foreign import differing, foreign_plugins
from registry.samplers import Sampler
from ssfnas_cli import world
from ssfnas_cli.artifacts.claim import finished_result, open_for_writing, set_run_aside
from ssfnas_cli.artifacts.dataset import DataSet
from ssfnas_cli.artifacts.run import BESIDE_SETTINGS, TRAINING_VERSION, RunFolder
from ssfnas_cli.console import command_line, log
from ssfnas_cli.data.batches import mirroring, num_batches
from ssfnas_cli.engine import ranks
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.event_files import refuse_without_tensorboard
from ssfnas_cli.engine.loop import Loop
from ssfnas_cli.engine.ranks import sampled_lengths
from ssfnas_cli.engine.tracking import Tracking
from ssfnas_cli.errors import InputError
from ssfnas_cli.machine import environment
from ssfnas_cli.nets.stems import choose_stem
from ssfnas_cli.settings import Training, identity_hash

CURRENT_TRAINING = 2  # the training version: increase it when the same settings lead to a different training


@dataclass(frozen=True)
class RunPlan:
    """A run that is planned and not yet started.

    Attributes:
        kind: `search` or `retrain`.
        settings: resolved settings; `auto` as the stem is replaced by what it means.
        data: the data set.
        identity: the values that must be equal for another run to count as the same run.
        path: the run folder.
        config: additional values for config.json.
        stem_reason: why the network has that stem; empty if it has one of its own.
    """

    kind: str
    settings: Training
    data: DataSet
    identity: dict[str, Any]
    path: Path
    config: dict[str, Any]
    stem_reason: str

    def result(self, force: bool) -> dict[str, Any] | None:
        """The result of the run if it is done, or None if it must be started, resumed, or (with `force`) repeated.

        Raises:
            OutputExistsError: the folder holds another run or something else.
        """
        if force:
            return None
        return world.from_first(lambda: finished_result(self.path, self.kind, self.identity, self.identify))

    def is_in_folder(self) -> bool:
        """Whether the folder holds this run, done or not."""
        with contextlib.suppress(InputError):
            return self.identify(RunFolder.open(self.path, self.kind)) == self.identity
        return False

    def identify(self, run: RunFolder) -> dict[str, Any]:
        """The identity of an existing run."""
        return identity_of(run, type(self.settings))


def identity_of(run: RunFolder, model: type[Training]) -> dict[str, Any]:
    """The identity of an existing run. Settings that ssfnas gained after it was made have their default values."""
    try:
        settings = run.settings(model).resolve_plugins()
    except ValueError as error:  # it has obsolete settings or a missing plugin, so it is another run
        log.debug("%s: %s", run.path, error)
        return dict(run.config["identity"])
    return settings.identity() | extra_identity(run)


def extra_identity(run: RunFolder) -> dict[str, Any]:
    """The part of a run's identity that is not settings of its training."""
    return {
        key: value
        for key, value in run.config["identity"].items()
        if key in ("data_sha256", "genotype") or key.startswith(BESIDE_SETTINGS)
    }


def plan_run(
    kind: str,
    settings: Training,
    data: DataSet,
    extra_identity: Mapping[str, Any],
    names: Sequence[str],
    output: Path | None,
    config: Mapping[str, Any] | None = None,
    force: bool = False,
) -> RunPlan:
    """Plan a run.

    Args:
        kind: `search` or `retrain`.
        settings: resolved settings.
        data: the data set.
        extra_identity: the part of the identity that is neither settings nor data set.
        names: the values of settings that appear in the default name of the folder.
        output: the run folder; None means `runs/KIND-DATA-NAMES-sSEED-HASH`. The hash covers only settings that differ
            from the defaults, so the name does not change if ssfnas gains a setting.
        config: additional values for config.json.
        force: the run will be started over.
    """
    extra = {"data_sha256": data.sha256, **extra_identity}

    def plan_in(path: Path) -> RunPlan:
        resolved, reason = _resolve_stem(settings, data, None if force else path)
        return RunPlan(kind, resolved, data, resolved.identity() | extra, path, dict(config or {}), reason)

    if output is not None:
        return plan_in(output)
    begin = "-".join([kind, data.path.name, *names, f"s{settings.seed}"])
    path = Path("runs") / f"{begin}-{identity_hash(usual_stem(settings, data.image_size).changed_identity() | extra)}"
    if not path.exists():
        for other in sorted(path.parent.glob(f"{glob.escape(begin)}-????????")):
            if (plan := plan_in(other)).is_in_folder():
                log.info("%s is this run, under the name that an earlier ssfnas gave it", other)
                return plan
    return plan_in(path)


def _resolve_stem(settings: Training, data: DataSet, path: Path | None) -> tuple[Training, str]:
    """Settings with the stem that they mean, and why. A plain network has its own, so its settings stay as they are.

    Args:
        settings: of a run.
        data: its data set.
        path: the run's folder. If it holds a run that records no stem, `auto` means the stem which that run has.
    """
    if "stem" in settings.unused():
        return settings, ""
    stem, reason = choose_stem(settings.stem, data.image_size)
    if settings.stem == "auto" and stem != "cifar" and path is not None:
        with contextlib.suppress(InputError):
            if "stem" not in RunFolder.open(path).config["settings"]:
                stem, reason = "cifar", "the run was begun by an ssfnas that knew no other"
    return settings.model_copy(update={"stem": stem}), reason


def usual_stem(settings: Training, image_size: int) -> Training:
    """The same settings with `auto` as the stem if it means the same, so that the run has one name."""
    usual, _ = choose_stem("auto", image_size)
    return settings.model_copy(update={"stem": "auto"}) if settings.stem == usual else settings


@contextlib.contextmanager
def open_run(plan: RunPlan, device: Device, force: bool, tracking: Tracking) -> Iterator[tuple[RunFolder, Loop]]:
    """Create or reopen the run folder, hold its lock within the context, and yield it with the training loop.

    Build everything that can fail beforehand, so that a failure leaves no folder behind.
    """
    if plan.settings.tensorboard:
        refuse_without_tensorboard()
    _check_ranks(plan)
    if force and world.is_first():
        set_run_aside(plan.path)
    current = environment() | device.facts() | ranks.facts(plan.settings)
    if plugins := foreign_plugins():
        current["plugins"] = plugins
    flip, why = mirroring(plan.data, plan.settings)
    resolved = {"flip": {"value": flip, "why": why}, **tracking.resolved()}
    if plan.stem_reason:
        resolved["stem"] = {"value": plan.settings.stem, "why": plan.stem_reason}
    config = {
        "settings": plan.settings.model_dump(mode="json"),
        "changed": usual_stem(plan.settings, plan.data.image_size).changed_identity(),
        "data": {"path": str(plan.data.path.resolve()), "sha256": plan.data.sha256},
        "environment": current,
        "resolved": resolved,
        TRAINING_VERSION: CURRENT_TRAINING,
        "command": command_line(),
        **plan.config,
    }
    if not world.is_first():  # it trains along, and leaves the folder to the first rank
        run = RunFolder(plan.path, {"kind": plan.kind, "identity": plan.identity, **config})
        yield run, Loop(run, plan.settings)
        return
    with open_for_writing(plan.path, plan.kind, config, plan.identity, plan.identify) as run:
        _warn_of_another_training(run)
        warn_of_differences(run.config["environment"], current)
        ranks.warn_of_local_statistics(run.config["environment"], current)
        loop = Loop(run, plan.settings)
        # This message comes last, so that a run that is refused shows only the reason.
        mirrored = "mirrored at random" if flip else "not mirrored"
        log.info("images are %s in training (flip=%s: %s)", mirrored, plan.settings.flip, why)
        if plan.stem_reason:
            log.info("the network has the stem '%s': %s", plan.settings.stem, plan.stem_reason)
        tracking.say()
        yield run, loop


def warn_of_a_large_batch(settings: Training, sampler: Sampler) -> None:
    """Warn if all images that a sampler shows fit into one batch, so that an epoch is a single step."""
    num_images = min(sampled_lengths(sampler, settings.epochs))
    if num_batches(num_images, settings.batch_size) == 1:
        log.warning("--batch-size %d: an epoch has %d images, so it is one step", settings.batch_size, num_images)


def _check_ranks(plan: RunPlan) -> None:
    """Check that all ranks are about to train the same: their settings, and the data set that they read."""
    names = {"data_sha256": "data set (sha256)"}
    facts = {names.get(name, name): str(value) for name, value in plan.identity.items()}
    world.agree({**facts, "run folder": str(plan.path)})


def warn_of_differences(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Warn once if a resumed run may not be bit-equal to an uninterrupted one."""
    recorded, now = {"ranks": 1, **recorded}, {"ranks": 1, **now}  # one process records none
    changed = [
        f"{key} ({recorded.get(key)} then, {now.get(key)} now)"
        for key in ("processor", "torch", "threads", "kernels", "device", "ranks")
        if recorded.get(key) != now.get(key)
    ]
    if others := differing(recorded.get("plugins")):
        log.warning("the run goes on with another version of a plugin than it was begun with: %s", ", ".join(others))
    if changed:
        log.warning("the run goes on, but its last bits may differ from an undisturbed one's: %s", ", ".join(changed))


def _warn_of_another_training(run: RunFolder) -> None:
    recorded = run.config.get(TRAINING_VERSION, 1)
    if recorded != CURRENT_TRAINING:
        log.warning(
            "%s: was begun by an ssfnas that trains differently (training version %s, now %s); it goes on as today's",
            run.path,
            recorded,
            CURRENT_TRAINING,
        )


def finish(run: RunFolder, loop: Loop, settings: Training, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Mark a run as done and return its result, which the command prints now and whenever it is repeated."""
    last = loop.cursor.metrics[-1]
    result = {
        "kind": f"{run.kind}-run",
        "path": str(run.path),
        "state": "done",
        **facts,
        "epochs": settings.epochs,
        "data": run.config["data"]["path"],
        "data_sha256": run.config["data"]["sha256"],
        "seed": settings.seed,
        **{key: value for key, value in last.items() if "accuracy" in key},
        "elapsed_seconds": last["elapsed_seconds"],
    }
    progress = {"phase": last["phase"], "epoch": last["epoch"], "epochs": last["epoch"]}
    if world.is_first():
        run.write_done(result, **progress, last=last)
    log.info("done: %s", run.path)
    return result
