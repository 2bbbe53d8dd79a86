"""The run folder: settings, status, metrics, alphas, checkpoints, results; and the rules for meeting one again.

Done: the same output at once. Half done and the same identity: it goes on. Another identity: refused, with the
settings that differ. `--force` moves it aside and starts over; nothing is ever deleted.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from ssfnas_cli.artifacts.dataset import SPLITS
from ssfnas_cli.artifacts.files import (
    invalid,
    is_set_aside,
    parse_json,
    read_bytes,
    read_sealed_json,
    reason,
    refuse_detour,
    refuse_undecodable,
    set_aside,
    sweep_temporaries,
    temporary_of,
    write_bytes,
    write_sealed_json,
)
from ssfnas_cli.artifacts.lock import FolderLock, is_held, is_lock, sweep_lock_temporaries
from ssfnas_cli.artifacts.log_file import logging_to
from ssfnas_cli.artifacts.metrics import table_path, write_metrics_file
from ssfnas_cli.console import log
from ssfnas_cli.errors import DiskError, InputError, OutputExistsError

if TYPE_CHECKING:
    from torch import Tensor

Model = TypeVar("Model", bound=BaseModel)
SCHEMA = "ssfnas.run/1"
ALPHAS, METRICS, EVALUATION = "alphas.safetensors", "metrics.jsonl", "evaluation.json"
STATES = ("running", "stopped", "done", "diverged")
FILES = (  # that a run writes
    *("config.json", "status.json", "log.txt", "genotype.json", "model.safetensors"),
    *(ALPHAS, METRICS, EVALUATION, *(table_path(Path(EVALUATION), split).name for split in SPLITS)),
)
_MISSING = object()


class RunFolder:
    """A run folder that is there. `config` is its config.json; `lock` is held by whoever may write."""

    def __init__(self, path: Path, config: dict[str, Any], lock: FolderLock | None = None):
        self.path, self.config, self.lock = path, config, lock

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
        if not (path / "config.json").exists():
            what = "a data set, not a run" if (path / "manifest.json").exists() else "not a run folder"
            raise InputError(f"{path}: is {what}: it has no config.json")
        config = read_sealed_json(path / "config.json")
        schema = config.get("schema")
        if isinstance(schema, str) and schema.startswith("ssfnas.run/") and schema != SCHEMA:
            raise InputError(
                f"{path}: has schema '{schema}', newer than this ssfnas reads ('{SCHEMA}'): upgrade ssfnas"
            )
        _check_config(path / "config.json", config)
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
        status = read_sealed_json(path)
        if status.get("state") not in STATES or not isinstance(status.get("last", {}), dict):
            raise InputError(f"{path}: is not the status of a run")
        return status

    def write_status(self, state: str, **facts: Any) -> None:
        """Replace status.json."""
        assert state in STATES
        self.check_lock()
        write_sealed_json(self.path / "status.json", {"state": state, "updated": round(time.time(), 1), **facts})

    def settings(self, model: type[Model]) -> Model:
        """The run's settings, as the class they were made from.

        Raises:
            InputError: they are no such settings, or name a plugin that is not here.
        """
        try:
            return model.model_validate(self.config["settings"])
        except ValidationError as error:
            raise invalid(str(self.path / "config.json"), error, within="settings") from None

    def check_lock(self) -> None:
        """Before a write: the folder is still this process's.

        Raises:
            OutputExistsError: somebody took it over.
        """
        if self.lock is not None:
            self.lock.check()

    def last_status(self) -> dict[str, Any]:
        """`status`, but damage to it is no reason not to go on: checkpoints are what counts; it is written anew."""
        try:
            return self.status()
        except InputError as error:
            log.warning("%s: going on from the newest checkpoint", error)
            return {"state": "running"}

    def is_being_written(self) -> bool:
        """Whether a live process holds the folder's lock."""
        return is_held(self.path)

    def write_metrics(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """metrics.jsonl, a line per epoch, whole: a resumed run's file holds what its checkpoint knew."""
        self.check_lock()
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        write_bytes(self.path / METRICS, text.encode())

    # What other commands read back. None of it says how the run was made.

    def metrics(self) -> list[dict[str, Any]]:
        """The epochs' metrics, in order; empty before the first epoch has ended.

        Raises:
            InputError: the file is damaged.
        """
        path = self.path / METRICS
        if not path.exists():
            return []
        lines = read_bytes(path).splitlines()
        values = [parse_json(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
        if not all(isinstance(value, dict) for value in values):
            raise InputError(f"{path}: every line should hold an object")
        return values

    def alphas(self) -> dict[str, Tensor]:
        """What a search's strategy recorded of every epoch, cell type -> [epochs so far + 1, num_edges, num_ops].

        Raises:
            InputError: the run is no search, has not begun, or the file is damaged.
        """
        from ssfnas_cli.artifacts.tensors import load_tensors

        path = self.path / ALPHAS
        if not path.exists():
            why = "it has not begun" if self.kind == "search" else f"it is a {self.kind} run"
            raise InputError(f"{self.path}: has no alphas yet: {why}")
        return load_tensors(path)

    def evaluation(self) -> dict[str, Any] | None:
        """What `evaluate` measured on the run's own data set; None if it has not been evaluated.

        Raises:
            InputError: the file is damaged.
        """
        path = self.path / EVALUATION
        return read_sealed_json(path) if path.exists() else None

    def write_evaluation(self, metrics: Mapping[str, Any]) -> None:
        """Keep metrics in the run folder, beside those of splits that were evaluated before.

        Raises:
            DiskError: the folder cannot be written.
        """
        try:
            before = (self.evaluation() or {}).get("splits", {})
        except InputError:
            before = {}
        write_metrics_file(self.path / EVALUATION, metrics, before)


Identify = Callable[[RunFolder], Mapping[str, Any]]


def recorded_identity(run: RunFolder) -> Mapping[str, Any]:
    """The identity that a run's config states."""
    return run.config["identity"]


def finished(
    path: Path, kind: str, identity: Mapping[str, Any], identify: Identify = recorded_identity
) -> dict[str, Any] | None:
    """What this very run printed when it was done, or None if it is not done.

    Args:
        identify: from a run that is there to its identity.

    Raises:
        OutputExistsError: the path holds another run, or something else.
    """
    run = _existing(path)
    if run is None:
        return None
    _refuse_another(run, kind, identity, identify)
    return run.last_status().get("result")


@contextlib.contextmanager
def writing(
    path: Path,
    kind: str,
    config: Mapping[str, Any],
    identity: Mapping[str, Any],
    identify: Identify = recorded_identity,
) -> Iterator[RunFolder]:
    """Make the run's folder, or find it half done; hold its lock and keep its log.txt.

    Raises:
        OutputExistsError: it is another run's, not a run's, or somebody is writing it.
        DiskError: it cannot be written.
    """
    refuse_undecodable(path)
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
            write_sealed_json(path / "config.json", run.config)
        run.lock = lock
        _refuse_another(run, kind, identity, identify)
        _sweep(run)
        with logging_to(path / "log.txt"):
            if lock.taken_over:
                log.warning("%s: %s", path, lock.taken_over)
            yield run
    finally:
        lock.release()


def _sweep(run: RunFolder) -> None:
    """Delete what a killed process of ours left half-written, once it is sure that no link leads elsewhere."""
    for name in FILES:
        refuse_detour(run.path / name)
    refuse_detour(run.checkpoints, folder=True)
    sweep_lock_temporaries(run.path)
    for folder in (run.path, run.checkpoints):
        if folder.is_dir():
            sweep_temporaries(folder)


def move_aside(path: Path) -> None:
    """--force: the old folder stays, under another name.

    Raises:
        OutputExistsError: somebody is writing it.
    """
    if not path.exists():
        return
    lock = None
    if path.is_dir():
        lock = FolderLock(path)
        lock.acquire()  # and keep it, so that nobody begins to write before the folder has its new name
    try:
        aside = set_aside(path)
        if lock is not None:
            lock.follow(aside)
    finally:
        if lock is not None:
            lock.release()
    log.warning("--force: what was %s is now %s", path, aside)


def _check_config(path: Path, config: Mapping[str, Any]) -> None:
    """A run's config has the parts that this program reads.

    Raises:
        InputError: naming what is missing.
    """
    if config.get("schema") != SCHEMA or config.get("kind") not in ("search", "retrain"):
        raise InputError(f"{path}: is not the config of a run")
    for key in ("identity", "settings", "data", "environment"):
        if not isinstance(config.get(key), dict):
            raise InputError(f"{path}: has no '{key}', or one that is not an object")
    for key in ("path", "sha256"):
        if not isinstance(config["data"].get(key), str):
            raise InputError(f"{path}: has no 'data.{key}'")


def _existing(path: Path) -> RunFolder | None:
    if not path.exists():
        return None
    if not path.is_dir():
        raise OutputExistsError(f"{path}: is a file, where the run's folder should be: choose another with -o")
    if (path / "config.json").exists():
        return RunFolder.open(path)
    for entry in path.iterdir():
        if not is_lock(entry) and temporary_of(entry) is None:
            raise OutputExistsError(
                f"{path}: is a folder with other things in it ({entry.name}): choose another with -o"
            )
    return None


def _refuse_another(run: RunFolder, kind: str, identity: Mapping[str, Any], identify: Identify) -> None:
    if run.kind != kind:
        raise OutputExistsError(f"{run.path}: holds a {run.kind} run: choose another folder with -o, or --force")
    theirs = identify(run)
    differing = [key for key in {**theirs, **identity} if theirs.get(key, _MISSING) != identity.get(key, _MISSING)]
    if differing:
        listed = ", ".join(
            f"{key} ({_short(theirs.get(key, 'unset'))} there, {_short(identity.get(key, 'unset'))} here)"
            for key in differing
        )
        raise OutputExistsError(
            f"{run.path}: holds another run, which differs in {listed}: choose another folder with -o, or --force"
        )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:40]}…"


def warn_of_differences(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """One warning where a resumed run cannot be bit-equal to the undisturbed one."""
    changed = [
        f"{key} ({recorded.get(key)} then, {now.get(key)} now)"
        for key in ("processor", "torch", "threads", "kernels", "device")
        if recorded.get(key) != now.get(key)
    ]
    if changed:
        log.warning("the run goes on, but its last bits may differ from an undisturbed one's: %s", ", ".join(changed))


class DamagedRun(NamedTuple):
    """A folder that should hold a run and holds none that can be read."""

    path: Path
    why: str


def find_runs(folder: Path) -> list[RunFolder | DamagedRun]:
    """Every run in a folder (or the folder itself, if it is one), by name; what --force moved aside is passed over."""
    candidates = [folder] if (folder / "config.json").exists() else sorted(folder.iterdir())
    candidates = [path for path in candidates if path == folder or not is_set_aside(path)]
    found: list[RunFolder | DamagedRun] = []
    for path in candidates:
        try:
            if path.is_dir() and (path / "config.json").lstat():
                found.append(RunFolder.open(path))
        except FileNotFoundError:
            continue  # another folder, no run
        except InputError as error:
            found.append(DamagedRun(path, str(error)))
        except OSError as error:  # a folder of others, or one that has just been removed
            found.append(DamagedRun(path, f"{path}: cannot be read: {reason(error)}"))
    return found


def age(run: RunFolder) -> float:
    """Seconds since the run last said anything of itself."""
    for name in ("status.json", "config.json"):
        with contextlib.suppress(OSError):
            return max(0.0, time.time() - (run.path / name).stat().st_mtime)
    return 0.0
