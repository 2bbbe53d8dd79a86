"""What a search and a retraining do around their training: meet the folder, hold it, and close it with a result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ssfnas_cli.artifacts.dataset import DataSet
from ssfnas_cli.artifacts.run import RunFolder, environment, finished, move_aside, warn_of_differences, writing
from ssfnas_cli.console import log
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.loop import Loop
from ssfnas_cli.settings import Training, identity_hash

Body = Callable[[RunFolder, Loop], dict[str, Any]]


def carry_out(
    kind: str,
    settings: Training,
    data: DataSet,
    identity: Mapping[str, Any],
    path: Path,
    force: bool,
    prepare: Callable[[Device], Body],
    **config: Any,
) -> dict[str, Any]:
    """Train in the run's folder, new or half done, unless it is done already.

    Args:
        kind: `search` or `retrain`.
        identity: what makes another run the same.
        force: move an old folder aside and start over.
        prepare: builds everything, so that what is refused leaves no folder behind, and returns what trains with the
            loop, writes the run's artifacts, and returns facts for the result.
        config: more for config.json.

    Returns:
        What the command prints, the same however often it is asked.
    """
    if not force and (result := finished(path, kind, identity)) is not None:
        log.info("%s is done; nothing to do", path)
        return result
    data.verify()
    device = Device.of(settings)
    body = prepare(device)
    if force:
        move_aside(path)
    surroundings = environment() | device.facts()
    config = {
        "settings": settings.model_dump(mode="json"),
        "data": {"path": str(data.path.resolve()), "sha256": data.sha256},
        "environment": surroundings,
        **config,
    }
    with writing(path, kind, config, identity) as run:
        warn_of_differences(run.config["environment"], surroundings)
        loop = Loop(run, settings)
        facts = body(run, loop)
        return _close(run, loop, settings, facts)


def _close(run: RunFolder, loop: Loop, settings: Training, facts: dict[str, Any]) -> dict[str, Any]:
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


def default_path(kind: str, data: DataSet, names: list[str], seed: int, identity: Mapping[str, Any]) -> Path:
    """`runs/KIND-DATA-NAMES-sSEED-HASH`: the same settings and data give the same folder, so a rerun finds its run."""
    return Path("runs") / "-".join([kind, data.path.name, *names, f"s{seed}", identity_hash(identity)])
