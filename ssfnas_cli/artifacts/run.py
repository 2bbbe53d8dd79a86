"""The run folder, which holds settings, status, metrics, alphas, checkpoints and results.

If a command names an existing run with the same identity, its result is returned if it is done, and otherwise it is
resumed. A run with another identity is refused with the settings that differ. `--force` moves an old folder aside and
starts over. Nothing is ever deleted.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from ssfnas_cli.artifacts.files import (
    delete_temporaries,
    parse_json,
    read_bytes,
    read_schema,
    read_sealed_json,
    reason,
    refuse_special_file,
    refuse_undecodable,
    set_aside,
    temporary_target,
    validation_error,
    write_bytes,
    write_sealed_json,
)
from ssfnas_cli.artifacts.lock import FolderLock, delete_lock_temporaries, is_held, is_lock
from ssfnas_cli.artifacts.log_file import logging_to
from ssfnas_cli.artifacts.metrics import EVALUATED, epochs_csv, table_path, write_metrics_file
from ssfnas_cli.console import log
from ssfnas_cli.errors import DiskError, InputError, OutputExistsError

if TYPE_CHECKING:
    from torch import Tensor

Model = TypeVar("Model", bound=BaseModel)
SCHEMA = "ssfnas.run/1"
ALPHAS, METRICS, EVALUATION = "alphas.safetensors", "metrics.jsonl", "evaluation.json"
METRICS_CSV = "metrics.csv"  # the same for spreadsheets; nothing reads it back
ADJUSTMENT = "adjustment."  # how the keys of an identity begin that only a corrected run has
DERIVATION = "derivation."  # and those that only a derivation by perturbation has
INIT = "init."  # and those of a run that begins with another run's weights
COST_TABLE = "cost_table."  # and that of a search by the latencies of a table that it names
BESIDE_SETTINGS = (ADJUSTMENT, DERIVATION, INIT, COST_TABLE)
COST = "cost"  # the key in config.json of what a search knows of the cost that it minds
CANDIDATES = "candidates.safetensors"  # the architectures that a search has judged one by one
PERTURBATION = "perturbation.json"  # what a derivation by perturbation has measured and decided
TRAINING_VERSION = "recipe"  # the key in config.json of a number: runs of another one were trained differently
STATES = ("running", "stopped", "done", "diverged")
FILES = (  # the files that a run writes
    *("config.json", "status.json", "log.txt", "genotype.json", "model.safetensors"),
    *(ALPHAS, CANDIDATES, PERTURBATION, METRICS, METRICS_CSV, EVALUATION),
    *(table_path(Path(EVALUATION), split).name for split in EVALUATED),
)
_MISSING = object()


class RunFolder:
    """An existing run folder. `config` is the content of config.json. A process that writes holds the `lock`."""

    def __init__(self, path: Path, config: dict[str, Any], lock: FolderLock | None = None):
        self.path, self.config, self.lock = path, config, lock

    @property
    def kind(self) -> str:
        """`search` or `retrain`."""
        return str(self.config["kind"])

    @property
    def stem(self) -> str:
        """The stem of the run's network; a run that records none is from when there was only the one for CIFAR."""
        return str(self.config["settings"].get("stem", "cifar"))

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @classmethod
    def open(cls, path: Path, kind: str | None = None) -> RunFolder:
        """Open a run for reading.

        Raises:
            InputError: there is no run, or it is of another kind. The message says what to do instead.
        """
        if path.is_file():
            inside = f": name its run, {path.parent}" if (path.parent / "config.json").exists() else ""
            raise InputError(f"{path}: is a file; a run folder is expected{inside}")
        if not path.exists():
            raise InputError(f"{path}: no such run folder")
        if not (path / "config.json").exists():
            what = "a data set, not a run" if (path / "manifest.json").exists() else "not a run folder"
            raise InputError(f"{path}: is {what}: it has no config.json")
        config = read_sealed_json(path / "config.json")
        read_schema(config, str(path), SCHEMA)
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
        """The content of status.json: `state` (one of STATES) and the last progress that the run reported."""
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
        """The run's settings as an instance of `model`. One that ssfnas gained later has its default value.

        The exception is the stem, whose default would mean another network today.

        Raises:
            InputError: the settings are invalid or name a plugin that is not installed.
        """
        try:
            recorded = {"stem": self.stem} if "stem" in model.model_fields else {}
            return model.model_validate(recorded | self.config["settings"])
        except ValidationError as error:
            raise validation_error(str(self.path / "config.json"), error, within="settings") from None

    def refuse_unfinished(self) -> None:
        """Check that the run is done.

        Raises:
            InputError: it is not. The message says how to go on with it.
        """
        state = self.status()["state"]
        if state == "done":
            return
        if state == "diverged":
            from ssfnas_cli.console import mend_divergence

            raise InputError(f"{self.path}: has diverged: {mend_divergence(self.kind)}")
        command = self.config.get("command")
        mend = f"run its command again to go on{f': {command}' if isinstance(command, str) else ''}"
        raise InputError(f"{self.path}: is {state}, not done: {mend}")

    def check_lock(self) -> None:
        """Check before a write that this process still holds the lock.

        Raises:
            OutputExistsError: another process has taken the folder over.
        """
        if self.lock is not None:
            self.lock.check()

    def status_or_running(self) -> dict[str, Any]:
        """The status, or `running` if status.json is damaged, since a resumed run needs only its checkpoints."""
        try:
            return self.status()
        except InputError as error:
            log.warning("%s: going on from the newest checkpoint", error)
            return {"state": "running"}

    def is_locked(self) -> bool:
        """Whether a live process holds the folder's lock."""
        return is_held(self.path)

    def write_metrics(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Replace metrics.jsonl, which has one line per epoch. After a resume it has the epochs of the checkpoint.

        metrics.csv holds the same for spreadsheets.
        """
        self.check_lock()
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        write_bytes(self.path / METRICS, text.encode())
        write_bytes(self.path / METRICS_CSV, epochs_csv(lines))

    # Methods for other commands

    def metrics(self) -> list[dict[str, Any]]:
        """The metrics of all epochs, in order; empty before the end of the first epoch.

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
        """The record of a search: [epochs so far + 1, num_edges, num_ops] for each cell type.

        Raises:
            InputError: the run is not a search or has not begun, or the file is damaged.
        """
        from ssfnas_cli.artifacts.tensors import load_tensors

        path = self.path / ALPHAS
        if not path.exists():
            why = "it has not begun" if self.kind == "search" else f"it is a {self.kind} run"
            raise InputError(f"{self.path}: has no alphas yet: {why}")
        return load_tensors(path)

    def evaluation(self) -> dict[str, Any] | None:
        """The metrics that `evaluate` computed on the run's own data set; None if it has not been evaluated.

        Raises:
            InputError: the file is damaged.
        """
        path = self.path / EVALUATION
        return read_sealed_json(path) if path.exists() else None

    def write_evaluation(self, metrics: Mapping[str, Any]) -> None:
        """Write metrics to the run folder and keep those of other splits from earlier evaluations.

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
    """The identity that the config of a run records."""
    return run.config["identity"]


def finished_result(
    path: Path, kind: str, identity: Mapping[str, Any], identify: Identify = recorded_identity
) -> dict[str, Any] | None:
    """The result of a run if it is done, or None if it is not done or does not exist.

    Args:
        path: the run folder.
        kind: `search` or `retrain`.
        identity: the identity that the run must have.
        identify: returns the identity of an existing run.

    Raises:
        OutputExistsError: the path holds another run or something else.
    """
    run = _open_existing(path)
    if run is None:
        return None
    _refuse_other_run(run, kind, identity, identify)
    return run.status_or_running().get("result")


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
    refuse_undecodable(path)
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


def _check_config(path: Path, config: Mapping[str, Any]) -> None:
    """Check that the config of a run has the parts that ssfnas reads.

    Raises:
        InputError: a part is missing. The message names it.
    """
    if config.get("schema") != SCHEMA or config.get("kind") not in ("search", "retrain"):
        raise InputError(f"{path}: is not the config of a run")
    for key in ("identity", "settings", "data", "environment"):
        if not isinstance(config.get(key), dict):
            raise InputError(f"{path}: has no '{key}', or one that is not an object")
    for key in ("path", "sha256"):
        if not isinstance(config["data"].get(key), str):
            raise InputError(f"{path}: has no 'data.{key}'")


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
