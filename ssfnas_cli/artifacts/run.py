"""The run folder, which holds settings, status, metrics, alphas, checkpoints and results.

How a command comes to write one is in claim.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from ssfnas_cli.artifacts.files import (
    parse_json,
    read_bytes,
    read_schema,
    read_sealed_json,
    refuse_undecodable,
    validation_error,
    write_bytes,
    write_sealed_json,
)
from ssfnas_cli.artifacts.lock import FolderLock, is_held
from ssfnas_cli.artifacts.metrics import EVALUATED, epochs_csv, table_path, write_metrics_file
from ssfnas_cli.console import log, mend_divergence
from ssfnas_cli.errors import InputError

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
RESULTS = ("genotype.json", "model.safetensors", ALPHAS, CANDIDATES, PERTURBATION)  # of these, those that it ends with


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
        refuse_undecodable(path, InputError, "rename it")
        config = read_sealed_json(path / "config.json")
        read_schema(config, str(path), SCHEMA)
        _check_config(path / "config.json", config)
        run = cls(path, config)
        if kind is not None and run.kind != kind:
            mend = (
                f"derive a genotype with 'ssfnas derive {path}' and retrain it"
                if run.kind == "search"
                else "if its genotype came from a search run, name that"
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

    def write_done(self, result: Mapping[str, Any], **facts: Any) -> None:
        """Record that the run is done, its result, and the sizes of the files that it ends with."""
        sizes = {name: (self.path / name).stat().st_size for name in RESULTS if (self.path / name).exists()}
        self.write_status("done", **facts, result=dict(result), files=sizes)

    def lost_file(self, status: Mapping[str, Any]) -> str | None:
        """A file that the run has ended with, and that is gone or damaged; None if there is none.

        Another genotype that somebody has derived there is none of this: it has to be JSON and no more.
        """
        for name, size in status.get("files", {}).items():
            path = self.path / name
            if not path.is_file() or (path.suffix != ".json" and path.stat().st_size != size):
                return str(name)
            if path.suffix == ".json":
                try:
                    parse_json(read_bytes(path), str(path))
                except InputError:
                    return str(name)
        return None

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
            why = "the same search again writes them" if self.kind == "search" else f"it is a {self.kind} run"
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
