"""What a search and a retraining do around their training: find the run's folder, hold it, close it with a result."""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssfnas_cli.artifacts.dataset import DataSet
from ssfnas_cli.artifacts.run import RunFolder, finished, move_aside, warn_of_differences, writing
from ssfnas_cli.console import command_line, log
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.loop import Loop
from ssfnas_cli.errors import InputError
from ssfnas_cli.machine import environment
from ssfnas_cli.settings import Training, identity_hash

RECIPE = 2  # is raised when the same settings come to train differently; config.json records it


@dataclass(frozen=True)
class RunPlan:
    """A run that is decided on and not begun.

    Attributes:
        kind: `search` or `retrain`.
        settings: resolved.
        identity: what makes another run the same.
        path: of its folder.
        config: what config.json holds beyond settings, data and environment.
    """

    kind: str
    settings: Training
    data: DataSet
    identity: dict[str, Any]
    path: Path
    config: dict[str, Any]

    def result(self, force: bool) -> dict[str, Any] | None:
        """What the run printed when it was done, or None: it has to be begun, continued, or `force`d from the start.

        Raises:
            OutputExistsError: the folder holds another run, or something else.
        """
        return None if force else finished(self.path, self.kind, self.identity, self.identify)

    def identify(self, run: RunFolder) -> dict[str, Any]:
        """The identity of a run that is there: settings that were added since it was made count at their defaults."""
        try:
            settings = run.settings(type(self.settings)).resolve_plugins()
        except ValueError as error:  # settings that no longer exist, or a plugin that is gone: another run
            log.debug("%s: %s", run.path, error)
            return dict(run.config["identity"])
        beside = {key: value for key, value in run.config["identity"].items() if key in BESIDE_SETTINGS}
        return settings.identity() | beside


BESIDE_SETTINGS = ("data_sha256", "genotype")  # keys of an identity that are no settings


def plan_run(
    kind: str,
    settings: Training,
    data: DataSet,
    beside: Mapping[str, Any],
    names: Sequence[str],
    output: Path | None,
    config: Mapping[str, Any] | None = None,
) -> RunPlan:
    """The plan of a run.

    Args:
        settings: resolved.
        beside: what belongs to the identity beyond the settings and the data set.
        names: what a folder's default name shows of the settings.
        output: the run folder; None means `runs/KIND-DATA-NAMES-sSEED-HASH`. The hash covers the settings that differ
            from the defaults, so a setting that is added renames no run.
    """
    beside = {"data_sha256": data.sha256, **beside}
    identity = settings.identity() | beside
    stem = "-".join([kind, data.path.name, *names, f"s{settings.seed}"])
    path = output or Path("runs") / f"{stem}-{identity_hash(settings.changed_identity() | beside)}"
    plan = RunPlan(kind, settings, data, identity, path, dict(config or {}))
    if output is None and not path.exists() and (older := _under_another_name(plan, stem)) is not None:
        log.info("%s is this run, under the name that an earlier ssfnas gave it", older)
        return RunPlan(kind, settings, data, identity, older, dict(config or {}))
    return plan


def _under_another_name(plan: RunPlan, stem: str) -> Path | None:
    """A folder of the same run whose name ends in another hash."""
    for path in sorted(plan.path.parent.glob(f"{glob.escape(stem)}-????????")):
        with contextlib.suppress(InputError):
            run = RunFolder.open(path, plan.kind)
            if plan.identify(run) == plan.identity:
                return path
    return None


@contextlib.contextmanager
def session(plan: RunPlan, device: Device, force: bool) -> Iterator[tuple[RunFolder, Loop]]:
    """The run's folder, new or half done, held while training, and the loop that trains.

    Everything that can be refused is built before, so that what is refused leaves no folder behind.
    """
    if force:
        move_aside(plan.path)
    surroundings = environment() | device.facts()
    config = {
        "settings": plan.settings.model_dump(mode="json"),
        "data": {"path": str(plan.data.path.resolve()), "sha256": plan.data.sha256},
        "environment": surroundings,
        "recipe": RECIPE,
        "command": command_line(),
        **plan.config,
    }
    with writing(plan.path, plan.kind, config, plan.identity, plan.identify) as run:
        _warn_of_another_recipe(run)
        warn_of_differences(run.config["environment"], surroundings)
        yield run, Loop(run, plan.settings)


def _warn_of_another_recipe(run: RunFolder) -> None:
    recorded = run.config.get("recipe", 1)
    if recorded != RECIPE:
        log.warning(
            "%s: was begun by an ssfnas that trains differently (recipe %s, now %s); it goes on by today's recipe",
            run.path,
            recorded,
            RECIPE,
        )


def close(run: RunFolder, loop: Loop, settings: Training, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Mark a run as done; what the command prints, the same however often it is asked."""
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
