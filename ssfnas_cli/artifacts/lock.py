"""One writer per folder, without flock: a file with host, pid and a heartbeat.

A lock whose process is gone from this host is taken over at once; one of another host after it has been silent
for `SILENCE_SECONDS`. Whoever holds the lock checks that it still does before every save.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from ssfnas_cli.artifacts.files import reason
from ssfnas_cli.console import log
from ssfnas_cli.errors import DiskError, OutputExistsError

SILENCE_SECONDS = 600.0
BEAT_SECONDS = 20.0


class FolderLock:
    """Held from `acquire` to `release`; a daemon thread keeps the heartbeat."""

    def __init__(self, folder: Path):
        self.path = folder / "lock.json"
        self.token = uuid.uuid4().hex
        self._done = threading.Event()

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            OutputExistsError: another live process holds it.
            DiskError: the folder cannot be written.
        """
        for _ in range(20):
            try:
                self._create()
                break
            except FileExistsError:
                self._clear_stale()
            except OSError as error:
                raise DiskError(f"{self.path.parent}: cannot be written: {reason(error)}") from error
        else:
            raise OutputExistsError(f"{self.path}: is fought over by several processes: run one at a time")
        threading.Thread(target=self._beat, name="lock-heartbeat", daemon=True).start()

    def check(self) -> None:
        """Before a save: the lock is still this process's.

        Raises:
            OutputExistsError: somebody took it over.
        """
        if _read(self.path).get("token") != self.token:
            raise OutputExistsError(
                f"{self.path.parent}: another process took this folder over; nothing more is written"
            )

    def release(self) -> None:
        """Give the lock back, if it is still ours."""
        self._done.set()
        if _read(self.path).get("token") == self.token:
            self.path.unlink(missing_ok=True)

    def _create(self) -> None:
        """Create the lock with its content in one step: a hard link fails where the name exists."""
        content = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": process_start(os.getpid()),
            "token": self.token,
        }
        temporary = self.path.with_name(f".lock.{self.token}.tmp")
        try:
            temporary.write_text(json.dumps(content))
            try:
                os.link(temporary, self.path)
            except FileExistsError:
                raise
            except OSError:  # a file system without hard links
                with self.path.open("x") as stream:
                    json.dump(content, stream)
        finally:
            temporary.unlink(missing_ok=True)

    def _clear_stale(self) -> None:
        """Move a stale lock out of the way, or say who holds it."""
        holder = _read(self.path)
        silent = self._silence()
        if silent is None:
            return  # gone meanwhile: try again
        where = f"process {holder.get('pid')} on {holder.get('host')}"
        if not _is_dead(holder) and silent < SILENCE_SECONDS:
            raise OutputExistsError(
                f"{self.path.parent}: {where} is writing here; wait for it, or choose another folder with -o"
            )
        aside = self.path.with_name(f".lock.{self.token}.stale")
        with contextlib.suppress(FileNotFoundError):
            self.path.rename(aside)
            if _read(aside).get("token") != holder.get("token"):  # it was taken over just before: put it back
                with contextlib.suppress(FileExistsError):
                    os.link(aside, self.path)
            else:
                log.warning("took over the lock of %s, left behind %.0f s ago", where, silent)
            aside.unlink(missing_ok=True)

    def _silence(self) -> float | None:
        try:
            return max(0.0, time.time() - self.path.stat().st_mtime)
        except FileNotFoundError:
            return None

    def _beat(self) -> None:
        while not self._done.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                if _read(self.path).get("token") == self.token:
                    os.utime(self.path)


def is_held(folder: Path) -> bool:
    """Whether somebody who is not known to be dead or silent holds the folder's lock."""
    path = folder / "lock.json"
    try:
        silent = time.time() - path.stat().st_mtime
    except OSError:
        return False
    return silent < SILENCE_SECONDS and not _is_dead(_read(path))


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether the holder ran on this host and runs no more (or its pid is now another process's)."""
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int):
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    started = process_start(holder["pid"])
    return started is not None and holder.get("started") is not None and started != holder["started"]


def process_start(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; None where there is no /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
