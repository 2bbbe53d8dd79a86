"""The run folder: settings, status, metrics, alphas, checkpoints, results; and the rules for meeting one again.

Done: the same output at once. Half done and the same identity: it goes on. Another identity: refused, with the
settings that differ. `--force` moves it aside and starts over; nothing is ever deleted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ssfnas_cli.artifacts.files import read_json, reason, set_aside, write_bytes, write_json
from ssfnas_cli.artifacts.lock import FolderLock, is_held
from ssfnas_cli.console import log
from ssfnas_cli.errors import DiskError, InputError, OutputExistsError

SCHEMA = "ssfnas.run/1"
STATES = ("running", "stopped", "done", "diverged")
_MISSING = object()


class RunFolder:
    """A run folder that is there. `config` is its config.json."""

    def __init__(self, path: Path, config: dict[str, Any]):
        self.path = path
        self.config = config

    @property
    def kind(self) -> str:
        """`search` or `retrain`."""
        return str(self.config["kind"])

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints."""
        return self.path / "checkpoints"

    @classmethod
    def open(cls, path: Path, kind: str | None = None) -> RunFolder:
        """A run to read from.

        Raises:
            InputError: no such run, something else, or a run of another kind, with what to do instead.
        """
        if path.is_file():
            raise InputError(f"{path}: is a file; a run folder is expected")
        if not path.exists():
            raise InputError(f"{path}: no such run folder")
        if not (path / "config.json").is_file():
            what = "a data set, not a run" if (path / "manifest.json").exists() else "not a run folder"
            raise InputError(f"{path}: is {what}: it has no config.json")
        config = read_json(path / "config.json")
        schema = config.get("schema") if isinstance(config, dict) else None
        if isinstance(schema, str) and schema.startswith("ssfnas.run/") and schema != SCHEMA:
            raise InputError(
                f"{path}: has schema '{schema}', newer than this ssfnas reads ('{SCHEMA}'): upgrade ssfnas"
            )
        if schema != SCHEMA or config.get("kind") not in ("search", "retrain"):
            raise InputError(f"{path / 'config.json'}: is not the config of a run")
        run = cls(path, config)
        if kind is not None and run.kind != kind:
            mend = (
                f"derive a genotype with 'ssfnas derive {path}' and retrain it"
                if run.kind == "search"
                else "its genotype came from a search run; name that"
            )
            raise InputError(f"{path}: is a {run.kind} run, not a {kind} run: {mend}")
        return run

    def status(self) -> dict[str, Any]:
        """status.json: `state` (one of STATES) and what the run last said of itself."""
        path = self.path / "status.json"
        if not path.exists():
            return {"state": "running"}
        status = read_json(path)
        if not isinstance(status, dict) or status.get("state") not in STATES:
            raise InputError(f"{path}: is not the status of a run")
        return status

    def write_status(self, state: str, **facts: Any) -> None:
        """Replace status.json."""
        assert state in STATES
        write_json(self.path / "status.json", {"state": state, "updated": round(time.time(), 1), **facts})

    def result(self) -> dict[str, Any] | None:
        """What a finished run printed, or None."""
        status = self.status()
        return status.get("result") if status["state"] == "done" else None

    def is_being_written(self) -> bool:
        """Whether a live process holds the folder's lock."""
        return is_held(self.path)

    def write_metrics(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """metrics.jsonl, a line per epoch, whole: a resumed run's file holds what its checkpoint knew."""
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        write_bytes(self.path / "metrics.jsonl", text.encode())


def finished(path: Path, kind: str, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """What this very run printed when it was done, or None if it has not been.

    Raises:
        OutputExistsError: the path holds another run, or something else.
    """
    run = _existing(path)
    if run is None:
        return None
    _refuse_another(run, kind, identity)
    return run.result()


@contextlib.contextmanager
def writing(
    path: Path, kind: str, config: Mapping[str, Any], identity: Mapping[str, Any]
) -> Iterator[tuple[RunFolder, FolderLock]]:
    """Make the run's folder, or find it half done; hold its lock and keep its log.txt.

    Raises:
        OutputExistsError: it is another run's, not a run's, or somebody is writing it.
        DiskError: it cannot be written.
    """
    _existing(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"{path}: cannot be made: {reason(error)}") from error
    lock = FolderLock(path)
    lock.acquire()
    try:
        run = _existing(path)
        if run is None:
            run = RunFolder(path, {"schema": SCHEMA, "kind": kind, "identity": dict(identity), **config})
            write_json(path / "config.json", run.config)
        _refuse_another(run, kind, identity)
        with _logging_to(path / "log.txt"):
            yield run, lock
    finally:
        lock.release()


def move_aside(path: Path) -> None:
    """--force: the old folder stays, under another name.

    Raises:
        OutputExistsError: somebody is writing it.
    """
    if not path.exists():
        return
    if path.is_dir():
        lock = FolderLock(path)
        lock.acquire()
        lock.release()
    log.warning("--force: what was %s is now %s", path, set_aside(path))


def _existing(path: Path) -> RunFolder | None:
    if not path.exists():
        return None
    if not path.is_dir():
        raise OutputExistsError(f"{path}: is a file, where the run's folder should be: choose another with -o")
    if (path / "config.json").exists():
        return RunFolder.open(path)
    if any(entry.name != "lock.json" and not entry.name.startswith(".") for entry in path.iterdir()):
        raise OutputExistsError(f"{path}: is a folder with other things in it: choose another with -o")
    return None


@contextlib.contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    try:
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise DiskError(f"{path}: cannot be written: {reason(error)}") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


def _refuse_another(run: RunFolder, kind: str, identity: Mapping[str, Any]) -> None:
    if run.kind != kind:
        raise OutputExistsError(f"{run.path}: holds a {run.kind} run: choose another folder with -o, or --force")
    theirs = run.config.get("identity", {})
    differing = [key for key in {**theirs, **identity} if theirs.get(key, _MISSING) != identity.get(key, _MISSING)]
    if differing:
        listed = ", ".join(
            f"{key} ({theirs.get(key, 'unset')} there, {identity.get(key, 'unset')} here)" for key in differing
        )
        raise OutputExistsError(
            f"{run.path}: holds another run, which differs in {listed}: choose another folder with -o, or --force"
        )


def environment() -> dict[str, Any]:
    """What bit-equality hangs on: processor kind, torch, threads, kernel path; and the versions for the record."""
    import platform
    import sys

    import torch

    import ssfnas_cli

    return {
        "processor": _processor_name() or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "python": ".".join(str(part) for part in sys.version_info[:3]),
        "ssfnas": ssfnas_cli.__version__,
    }


def warn_of_differences(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """One warning where a resumed run cannot be bit-equal to the undisturbed one."""
    changed = [
        f"{key} ({recorded.get(key)} then, {now.get(key)} now)"
        for key in ("processor", "torch", "threads", "kernels", "device")
        if recorded.get(key) != now.get(key)
    ]
    if changed:
        log.warning("the run goes on, but its last bits may differ from an undisturbed one's: %s", ", ".join(changed))


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return ""


def find_runs(folder: Path) -> list[RunFolder]:
    """Every run in a folder (or the folder itself, if it is one), by name; what is damaged is passed over."""
    candidates = [folder] if (folder / "config.json").exists() else sorted(folder.iterdir())
    found = []
    for path in candidates:
        if path.is_dir() and (path / "config.json").exists():
            try:
                found.append(RunFolder.open(path))
            except InputError as error:
                log.warning("%s", error)
    return found


def age(run: RunFolder) -> float:
    """Seconds since the run last said anything of itself."""
    path = run.path / "status.json"
    return max(0.0, time.time() - (path if path.exists() else run.path / "config.json").stat().st_mtime)
