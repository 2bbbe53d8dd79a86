"""How a command comes to write a run folder: it makes one, goes on with one, or finds it done.

If a command names an existing run with the same identity, its result is returned if it is done, and otherwise it is
resumed. A run with another identity is refused with the settings that differ. `--force` moves an old folder aside and
starts over. Nothing is ever deleted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ssfnas_cli.artifacts.checkpoint import list_checkpoints
from ssfnas_cli.artifacts.files import (
    delete_temporaries,
    reason,
    refuse_special_file,
    refuse_undecodable,
    set_aside,
    temporary_target,
    write_sealed_json,
)
from ssfnas_cli.artifacts.lock import FolderLock, delete_lock_temporaries, is_lock
from ssfnas_cli.artifacts.log_file import logging_to
from ssfnas_cli.artifacts.run import ADJUSTMENT, FILES, SCHEMA, RunFolder
from ssfnas_cli.console import log
from ssfnas_cli.errors import DiskError, InputError, OutputExistsError, UsageError

_MISSING = object()

Identify = Callable[[RunFolder], Mapping[str, Any]]


def recorded_identity(run: RunFolder) -> Mapping[str, Any]:
    """The identity that the config of a run records."""
    return run.config["identity"]


def finished_result(
    path: Path, kind: str, identity: Mapping[str, Any], identify: Identify = recorded_identity
) -> dict[str, Any] | None:
    """The result of a run if it is done, or None if it is not done, lacks a file, or does not exist.

    A run whose file is lost goes on from its last checkpoint, and so writes the file again.

    Args:
        path: the run folder. The result names it, wherever it was when the run ended.
        kind: `search` or `retrain`.
        identity: the identity that the run must have.
        identify: returns the identity of an existing run.

    Raises:
        OutputExistsError: the path holds another run or something else.
        InputError: a file is lost, and so is what it could be made from.
    """
    run = _open_existing(path)
    if run is None:
        return None
    _refuse_other_run(run, kind, identity, identify)
    status = run.status_or_running()
    result = status.get("result")
    if result is None:
        return None
    if (lost := run.lost_file(status)) is not None:
        if not any(key.startswith(ADJUSTMENT) for key in identity) and not list_checkpoints(run.checkpoints):
            raise InputError(
                f"{path / lost}: is gone or damaged, and the run has no checkpoint to make it from: put it back, or "
                "start over with --force"
            )
        log.warning("%s: is gone or damaged, and is written again", path / lost)
        return None
    return result | {"path": str(path)}


@contextlib.contextmanager
def open_for_writing(
    path: Path,
    kind: str,
    config: Mapping[str, Any],
    identity: Mapping[str, Any],
    identify: Identify = recorded_identity,
) -> Iterator[RunFolder]:
    """Create the run folder, or open an unfinished run. Hold its lock and write log.txt within the context.

    Args:
        path: the run folder.
        kind: `search` or `retrain`.
        config: the content of a new config.json.
        identity: the identity that an existing run must have.
        identify: returns the identity of an existing run.

    Raises:
        OutputExistsError: the folder holds another run or something else, or another process is writing it.
        DiskError: the folder cannot be written.
    """
    refuse_undecodable(path, UsageError, "choose another name with -o")
    _open_existing(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"{path}: cannot be made: {reason(error)}") from error
    lock = FolderLock(path)
    lock.acquire()
    try:
        run = _open_existing(path)
        if run is None:
            run = RunFolder(path, {"schema": SCHEMA, "kind": kind, "identity": dict(identity), **config})
            write_sealed_json(path / "config.json", run.config)
        run.lock = lock
        _refuse_other_run(run, kind, identity, identify)
        _delete_leftovers(run)
        with logging_to(path / "log.txt"):
            if lock.taken_over:
                log.warning("%s: %s", path, lock.taken_over)
            yield run
    finally:
        lock.release()


def _delete_leftovers(run: RunFolder) -> None:
    """Delete temporary files that a killed process left, after checking that no link leads out of the folder."""
    for name in FILES:
        refuse_special_file(run.path / name)
    refuse_special_file(run.checkpoints, folder=True)
    delete_lock_temporaries(run.path)
    for folder in (run.path, run.checkpoints):
        if folder.is_dir():
            delete_temporaries(folder)


def set_run_aside(path: Path) -> None:
    """Rename an old run folder, for --force.

    Raises:
        OutputExistsError: another process is writing it.
    """
    if not path.exists():
        return
    lock = None
    if path.is_dir():
        lock = FolderLock(path)
        lock.acquire()  # hold it until the folder has its new name, so that nobody begins to write
    try:
        aside = set_aside(path)
        if lock is not None:
            lock.relocate(aside)
    finally:
        if lock is not None:
            lock.release()
    log.warning("--force: what was %s is now %s", path, aside)


def _open_existing(path: Path) -> RunFolder | None:
    if not path.exists():
        return None
    if not path.is_dir():
        raise OutputExistsError(f"{path}: is a file, where the run's folder should be: choose another with -o")
    if (path / "config.json").exists():
        return RunFolder.open(path)
    for entry in path.iterdir():
        if not is_lock(entry) and temporary_target(entry) is None:
            raise OutputExistsError(
                f"{path}: is a folder with other things in it ({entry.name}): choose another with -o"
            )
    return None


def _refuse_other_run(run: RunFolder, kind: str, identity: Mapping[str, Any], identify: Identify) -> None:
    if run.kind != kind:
        raise OutputExistsError(f"{run.path}: holds a {run.kind} run: choose another folder with -o, or --force")
    recorded = identify(run)
    differing = [key for key in {**recorded, **identity} if recorded.get(key, _MISSING) != identity.get(key, _MISSING)]
    if differing:
        listed = ", ".join(
            f"{key} ({_short(recorded.get(key, 'unset'))} there, {_short(identity.get(key, 'unset'))} here)"
            for key in differing
        )
        raise OutputExistsError(
            f"{run.path}: holds another run, which differs in {listed}: choose another folder with -o, or --force"
        )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:40]}…"
