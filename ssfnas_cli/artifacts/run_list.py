"""The runs in a folder."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ssfnas_cli.artifacts.files import is_set_aside, reason
from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.errors import InputError


class DamagedRun(NamedTuple):
    """A run folder that cannot be read."""

    path: Path
    why: str


def find_runs(folder: Path) -> list[RunFolder | DamagedRun]:
    """All runs in a folder (or the folder itself if it is one), by name, except those that --force moved aside."""
    candidates = [folder] if (folder / "config.json").exists() else sorted(folder.iterdir())
    candidates = [path for path in candidates if path == folder or not is_set_aside(path)]
    found: list[RunFolder | DamagedRun] = []
    for path in candidates:
        try:
            if path.is_dir() and (path / "config.json").lstat():
                found.append(RunFolder.open(path))
        except FileNotFoundError:
            continue  # it is not a run folder
        except InputError as error:
            found.append(DamagedRun(path, str(error)))
        except OSError as error:  # it belongs to another user, or was just deleted
            found.append(DamagedRun(path, f"{path}: cannot be read: {reason(error)}"))
    return found


def shown_state(run: RunFolder, status: Mapping[str, Any]) -> str:
    """The state of a run as a user sees it: also `interrupted` (it should run, and nobody runs it) and `given up`.

    Args:
        run: the folder.
        status: what `run.status` returned.
    """
    state = str(status["state"])
    if state == "running" and not run.is_locked():
        return "interrupted"
    return "given up" if state == "stopped" and status.get("reason") else state


def seconds_since_update(run: RunFolder) -> float:
    """Seconds since the run last wrote its status."""
    for name in ("status.json", "config.json"):
        with contextlib.suppress(OSError):
            return max(0.0, time.time() - (run.path / name).stat().st_mtime)
    return 0.0
