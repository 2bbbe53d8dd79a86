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
from ssfnas_cli.errors import DiskError, OutputExistsError

NAME = "lock.json"
SILENCE_SECONDS = 600.0
BEAT_SECONDS = 20.0


class FolderLock:
    """Held from `acquire` to `release`; a daemon thread keeps the heartbeat.

    `taken_over` says whose stale lock was in the way, once `acquire` has cleared one.
    """

    def __init__(self, folder: Path):
        self.path = folder / NAME
        self.token = uuid.uuid4().hex
        self.taken_over: str | None = None
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
            OutputExistsError: somebody took it over, or removed it.
            DiskError: the folder cannot be read any more.
        """
        try:
            holder = _parse(self.path.read_text())
        except FileNotFoundError:
            raise OutputExistsError(
                f"{self.path}: is gone, so another process may write here; nothing more is written"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise DiskError(f"{self.path}: cannot be read: {reason(error)}") from error
        if holder.get("token") != self.token:
            raise OutputExistsError(
                f"{self.path.parent}: {_name(holder)} took this folder over; nothing more is written"
            )

    def follow(self, folder: Path) -> None:
        """The folder that holds the lock has been renamed."""
        self.path = folder / NAME

    def release(self) -> None:
        """Give the lock back, if it is still ours."""
        self._done.set()
        if _read(self.path).get("token") == self.token:
            self.path.unlink(missing_ok=True)

    def _create(self) -> None:
        """Create the lock with its content in one step: a hard link fails where the name exists."""
        content = {**_place(), "pid": os.getpid(), "started": process_start(os.getpid()), "token": self.token}
        temporary = self.path.with_name(f".lock.{self.token}.tmp")
        try:
            temporary.write_text(json.dumps(content))
            try:
                os.link(temporary, self.path)
            except OSError as error:
                if _read(self.path).get("token") == self.token:
                    return  # over NFS a link can be made and its answer get lost
                if isinstance(error, FileExistsError):
                    raise
                with self.path.open("x") as stream:  # a file system without hard links
                    json.dump(content, stream)
        finally:
            temporary.unlink(missing_ok=True)

    def _clear_stale(self) -> None:
        """Move a stale lock out of the way, or say who holds it."""
        holder = _read(self.path)
        silent = _silence(self.path)
        if silent is None:
            return  # gone meanwhile: try again
        if not _is_dead(holder) and silent < SILENCE_SECONDS:
            raise OutputExistsError(
                f"{self.path.parent}: {_name(holder)} is writing here (last sign of life {silent:.0f} s ago; after "
                f"{SILENCE_SECONDS:.0f} s it counts as gone): wait for it, or choose another folder with -o"
            )
        aside = self.path.with_name(f".lock.{self.token}.stale.tmp")
        with contextlib.suppress(FileNotFoundError):
            self.path.rename(aside)
            if _read(aside).get("token") != holder.get("token"):  # it was taken over just before: put it back
                with contextlib.suppress(FileExistsError):
                    os.link(aside, self.path)
            else:
                self.taken_over = f"took over the lock of {_name(holder)}, left behind {silent:.0f} s ago"
            aside.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._done.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                if _read(self.path).get("token") == self.token:
                    os.utime(self.path)


def is_held(folder: Path) -> bool:
    """Whether somebody who is not known to be dead or silent holds the folder's lock."""
    silent = _silence(folder / NAME)
    return silent is not None and silent < SILENCE_SECONDS and not _is_dead(_read(folder / NAME))


def _silence(path: Path) -> float | None:
    """Seconds since the last heartbeat; None where there is no lock."""
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return None


def _read(path: Path) -> dict[str, Any]:
    try:
        return _parse(path.read_text())
    except (OSError, UnicodeDecodeError):
        return {}


def _parse(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _name(holder: dict[str, Any]) -> str:
    return f"process {holder['pid']} on {holder.get('host')}" if "pid" in holder else "another process"


def _place() -> dict[str, str | None]:
    """Where a pid means something: the host, this boot of it, and the container's pid namespace.

    Hosts that share a name, and containers that share a host's, do not see each other's processes.
    """
    return {"host": socket.gethostname(), "boot": _boot_id(), "pid_namespace": _pid_namespace()}


def _boot_id() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _pid_namespace() -> str | None:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether the holder ran right here and runs no more (or its pid is now another process's)."""
    pid = holder.get("pid")
    if type(pid) is not int or pid <= 0 or any(holder.get(key) != value for key, value in _place().items()):
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        return False
    started = process_start(pid)
    return _is_zombie(pid) or (started is not None and holder.get("started") not in (None, started))


def process_start(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; None where there is no /proc."""
    fields = _process_fields(pid)
    return fields[19] if len(fields) > 19 else None


def _is_zombie(pid: int) -> bool:
    """Killed, but its parent has not asked how it ended: it writes nothing any more."""
    return _process_fields(pid)[:1] in (["Z"], ["X"])


def _process_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
