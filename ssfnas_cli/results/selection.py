"""Which runs a command means: run folders, and folders of them; and why some of them cannot be used."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.artifacts.run_list import DamagedRun, find_runs, shown_state
from ssfnas_cli.console import next_step
from ssfnas_cli.errors import InputError
from ssfnas_cli.results.facts import RunFacts, read_facts


@dataclass(frozen=True)
class LeftOut:
    """A run that is not used, why, and the command that mends it (empty if there is none)."""

    path: Path
    why: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.why}" + (f": {self.mend}" if self.mend else "")


@dataclass(frozen=True)
class Selection:
    """The runs to use, in the order of the arguments, and those that are left out."""

    runs: list[RunFacts]
    left_out: list[LeftOut]


Need = Literal["evaluation", "result", "epochs"]  # of a run: figures, that it is done, or one finished epoch


def select_runs(paths: Sequence[Path], need: Need, kind: str | None = None) -> Selection:
    """The runs that are meant.

    Args:
        paths: run folders, or folders of run folders.
        need: what a run must have to be used: `evaluation` is for retrainings, of which it implies that they are done.
        kind: `search` or `retrain`; None: that of the runs. A folder that has both stands for its retrainings.

    Raises:
        InputError: a path is no run and no folder of runs, runs of both kinds are named, or none can be used.
    """
    named, left_out = _find(paths, kind, kind)
    kinds = {run.kind for run in named}
    if len(kinds) > 1:
        one, other = (next(run.path for run in named if run.kind == one) for one in ("search", "retrain"))
        raise InputError(
            f"{one}: is a search, and {other} a retraining: their figures do not mean the same; name runs of one kind"
        )
    return _read(named, left_out, lambda run: _unfit(run, need))


def select_every_run(paths: Sequence[Path]) -> Selection:
    """The runs that are meant, searches and retrainings, in whatever state; only what is damaged is left out.

    Raises:
        InputError: a path is no run and no folder of runs, or none can be read.
    """
    return _read(*_find(paths, None, "both"), lambda run: None)


def what_is_missing(run: RunFolder) -> LeftOut | None:
    """Why a run has no figures for a comparison yet, with the command that goes on; None if it has.

    Raises:
        InputError: a file of the run is damaged.
    """
    return _unfit(run, "evaluation")


def _read(runs: list[RunFolder], left_out: list[LeftOut], unfit: Callable[[RunFolder], LeftOut | None]) -> Selection:
    """The facts of the runs that can be used."""
    used: list[RunFacts] = []
    for run in runs:
        try:
            reason = unfit(run)
            if reason is None:
                used.append(read_facts(run))
            else:
                left_out.append(reason)
        except InputError as error:
            left_out.append(LeftOut(run.path, f"is damaged ({error})"))
    if not used:
        more = f" (and {len(left_out) - 1} more)" if len(left_out) > 1 else ""
        raise InputError(f"no run can be used{more}: {left_out[0]}" if left_out else "no run can be used")
    return Selection(used, left_out)


def _find(paths: Sequence[Path], kind: str | None, of_folders: str | None) -> tuple[list[RunFolder], list[LeftOut]]:
    """The runs that are named, of a kind, and those in the folders that are named.

    Args:
        of_folders: the kind to take of a folder: `both`, or None for its retrainings if it has any.
    """
    runs: list[RunFolder] = []
    left_out: list[LeftOut] = []
    for path in paths:
        if not path.is_dir() or (path / "config.json").exists() or (path / "manifest.json").exists():
            runs.append(RunFolder.open(path, kind))
            continue
        found = find_runs(path)
        if not found:
            raise InputError(f"{path}: is a folder without a run in it: name runs, or the folder that holds them")
        left_out += [LeftOut(one.path, f"is damaged ({one.why})") for one in found if isinstance(one, DamagedRun)]
        sound = [one for one in found if isinstance(one, RunFolder)]
        wanted = of_folders or ("retrain" if any(run.kind == "retrain" for run in sound) else "search")
        chosen = [run for run in sound if wanted in ("both", run.kind)]
        runs += chosen
        if sound and not chosen:
            raise InputError(f"{path}: has no {wanted} run")
    unique = {run.path.resolve(): run for run in reversed(runs)}
    return list(reversed(unique.values())), left_out


def _unfit(run: RunFolder, need: Need) -> LeftOut | None:
    """Why a run does not have what is needed; None if it has."""
    status = run.status()
    state = shown_state(run, status)
    at = f" at epoch {status.get('epoch', 0)} of {status.get('epochs') or '?'}"
    command = str(run.config.get("command", ""))
    if need == "epochs":
        return None if run.metrics() else LeftOut(run.path, f"has finished no epoch ({state})")
    if state != "done":
        return LeftOut(run.path, f"is {state}{at}", next_step(run.kind, run.path, state, command))
    if need == "evaluation" and run.kind == "retrain" and run.evaluation() is None:
        return LeftOut(run.path, "is not evaluated", shlex.join(["ssfnas", "evaluate", str(run.path)]))
    return None
