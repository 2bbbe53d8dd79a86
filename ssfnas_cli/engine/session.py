"""What search and retraining share around the training: choosing, opening and finishing the run folder."""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssfnas_cli.artifacts.dataset import DataSet
from ssfnas_cli.artifacts.run import RunFolder, finished_result, open_for_writing, set_run_aside, warn_of_differences
from ssfnas_cli.console import command_line, log
from ssfnas_cli.data.batches import mirroring
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.event_files import refuse_without_tensorboard
from ssfnas_cli.engine.loop import Loop
from ssfnas_cli.errors import InputError
from ssfnas_cli.machine import environment
from ssfnas_cli.settings import Training, identity_hash

RECIPE = 2  # increase it when the same settings lead to a different training; config.json records it


@dataclass(frozen=True)
class RunPlan:
    """A run that is planned and not yet started.

    Attributes:
        kind: `search` or `retrain`.
        settings: resolved settings.
        data: the data set.
        identity: the values that must be equal for another run to count as the same run.
        path: the run folder.
        config: additional values for config.json.
    """

    kind: str
    settings: Training
    data: DataSet
    identity: dict[str, Any]
    path: Path
    config: dict[str, Any]

    def result(self, force: bool) -> dict[str, Any] | None:
        """The result of the run if it is done, or None if it must be started, resumed, or (with `force`) repeated.

        Raises:
            OutputExistsError: the folder holds another run or something else.
        """
        return None if force else finished_result(self.path, self.kind, self.identity, self.identify)

    def identify(self, run: RunFolder) -> dict[str, Any]:
        """The identity of an existing run. Settings that ssfnas gained after it was made have their default values."""
        try:
            settings = run.settings(type(self.settings)).resolve_plugins()
        except ValueError as error:  # it has obsolete settings or a missing plugin, so it is another run
            log.debug("%s: %s", run.path, error)
            return dict(run.config["identity"])
        extra = {key: value for key, value in run.config["identity"].items() if key in EXTRA_IDENTITY}
        return settings.identity() | extra


EXTRA_IDENTITY = ("data_sha256", "genotype")  # the keys of an identity that are not settings


def plan_run(
    kind: str,
    settings: Training,
    data: DataSet,
    extra_identity: Mapping[str, Any],
    names: Sequence[str],
    output: Path | None,
    config: Mapping[str, Any] | None = None,
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
    """
    extra = {"data_sha256": data.sha256, **extra_identity}
    identity = settings.identity() | extra
    stem = "-".join([kind, data.path.name, *names, f"s{settings.seed}"])
    path = output or Path("runs") / f"{stem}-{identity_hash(settings.changed_identity() | extra)}"
    plan = RunPlan(kind, settings, data, identity, path, dict(config or {}))
    if output is None and not path.exists() and (older := _find_under_old_name(plan, stem)) is not None:
        log.info("%s is this run, under the name that an earlier ssfnas gave it", older)
        return RunPlan(kind, settings, data, identity, older, dict(config or {}))
    return plan


def _find_under_old_name(plan: RunPlan, stem: str) -> Path | None:
    """A folder of the same run whose name ends in another hash, as earlier versions of ssfnas computed it."""
    for path in sorted(plan.path.parent.glob(f"{glob.escape(stem)}-????????")):
        with contextlib.suppress(InputError):
            run = RunFolder.open(path, plan.kind)
            if plan.identify(run) == plan.identity:
                return path
    return None


@contextlib.contextmanager
def open_run(plan: RunPlan, device: Device, force: bool) -> Iterator[tuple[RunFolder, Loop]]:
    """Create or reopen the run folder, hold its lock within the context, and yield it with the training loop.

    Build everything that can fail beforehand, so that a failure leaves no folder behind.
    """
    if plan.settings.tensorboard:
        refuse_without_tensorboard()
    if force:
        set_run_aside(plan.path)
    current = environment() | device.facts()
    flip, why = mirroring(plan.data, plan.settings)
    config = {
        "settings": plan.settings.model_dump(mode="json"),
        "changed": plan.settings.changed_identity(),
        "data": {"path": str(plan.data.path.resolve()), "sha256": plan.data.sha256},
        "environment": current,
        "resolved": {"flip": {"value": flip, "why": why}},
        "recipe": RECIPE,
        "command": command_line(),
        **plan.config,
    }
    with open_for_writing(plan.path, plan.kind, config, plan.identity, plan.identify) as run:
        _warn_of_another_recipe(run)
        warn_of_differences(run.config["environment"], current)
        loop = Loop(run, plan.settings)
        # This message comes last, so that a run that is refused shows only the reason.
        mirrored = "mirrored at random" if flip else "not mirrored"
        log.info("images are %s in training (flip=%s: %s)", mirrored, plan.settings.flip, why)
        yield run, loop


def _warn_of_another_recipe(run: RunFolder) -> None:
    recorded = run.config.get("recipe", 1)
    if recorded != RECIPE:
        log.warning(
            "%s: was begun by an ssfnas that trains differently (recipe %s, now %s); it goes on by today's recipe",
            run.path,
            recorded,
            RECIPE,
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
    progress = {"phase": last["phase"], "epoch": settings.epochs, "epochs": settings.epochs}
    run.write_status("done", **progress, last=last, result=result)
    log.info("done: %s", run.path)
    return result
