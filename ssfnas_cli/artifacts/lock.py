"""One writer per folder: a file with host, pid and a heartbeat.

A lock whose process is gone from this host is taken over at once. One whose process is alive on this host never is,
however long it has been silent: a laptop sleeps, a process is stopped. Of any other process nothing but silence can be
known, and after `SILENCE_SECONDS` of it the lock is taken over. Whoever holds the lock checks that it still does before
every save.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import stat
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssfnas_cli.artifacts.files import open_plain, reason
from ssfnas_cli.errors import DiskError, InputError, OutputExistsError

NAME = "lock.json"
SILENCE_SECONDS = 600.0
BEAT_SECONDS = 20.0
MAX_BYTES = 1 << 16
ATTEMPTS = 50
_TEMPORARY = re.compile(r"\.lock\.[0-9a-f]{32}(\.stale)?\.tmp")


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
            InputError: what stands there is no lock but a link or a folder.
            DiskError: the folder cannot be written.
        """
        temporary = self.path.with_name(f".lock.{self.token}.tmp")
        content = {**_place(), "pid": os.getpid(), "started": process_start(os.getpid()), "token": self.token}
        try:
            temporary.write_text(json.dumps(content))
            now = temporary.stat().st_mtime  # by the file system's clock, which the other host's heartbeat goes by, too
            for _ in range(ATTEMPTS):
                if self._create(temporary) or self._take_over(temporary, now):
                    break
                time.sleep(0.01)
            else:
                raise OutputExistsError(f"{self.path}: is fought over by several processes: run one at a time")
        except OSError as error:
            raise DiskError(f"{self.path.parent}: cannot be written: {reason(error)}") from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        threading.Thread(target=self._beat, name="lock-heartbeat", daemon=True).start()

    def check(self) -> None:
        """Before a save: the lock is still this process's.

        Raises:
            OutputExistsError: somebody took it over, or removed it.
            DiskError: the folder cannot be read any more.
        """
        if not os.path.lexists(self.path):
            raise OutputExistsError(f"{self.path}: is gone, so another process may write here; nothing more is written")
        try:
            with open_plain(self.path) as stream:
                holder = _parse(stream.read(MAX_BYTES))
        except (OSError, InputError) as error:
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

    def _create(self, temporary: Path) -> bool:
        """Give the lock, which `temporary` holds, its name in one step; False if the name is there already."""
        try:
            os.link(temporary, self.path)
        except OSError as error:
            if _read(self.path).get("token") == self.token:
                return True  # over NFS a link can be made and its answer get lost
            if isinstance(error, FileExistsError):
                return False
            try:  # a file system without hard links
                with self.path.open("x") as stream:
                    stream.write(temporary.read_text())
            except FileExistsError:
                return False
        return True

    def _take_over(self, temporary: Path, now: float) -> bool:
        """Put ours in the place of a stale lock, or say who holds it; False if another process is doing so."""
        self._refuse_living(now)
        with _only_one(self.path.parent) as alone:
            if not alone:
                return False
            holder = self._refuse_living(now)
            if holder is None:
                return False
            aside = self.path.with_name(f".lock.{self.token}.stale.tmp")
            try:
                self.path.rename(aside)
            except FileNotFoundError:
                return False
            theirs = _read(aside)
            if theirs.get("token") != holder.get("token"):  # where the file system lets none be alone: put it back
                with contextlib.suppress(OSError):
                    os.link(aside, self.path)
                aside.unlink(missing_ok=True)
                return False
            aside.unlink(missing_ok=True)
            self.taken_over = f"took over the lock of {_name(holder)}, which is gone"
            return self._create(temporary)

    def _refuse_living(self, now: float) -> dict[str, Any] | None:
        """The holder of a lock that may be taken over; None if there is no lock by now."""
        try:
            state = self.path.lstat()
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(state.st_mode):
            raise InputError(f"{self.path}: is a link, a folder or a pipe, not a lock: remove it")
        holder, silent = _read(self.path), now - state.st_mtime
        alive = _is_alive(holder)
        if alive is False or (alive is None and silent >= SILENCE_SECONDS):
            return holder
        if alive:
            why = "it is alive: wait for it, end it"
        elif silent < -SILENCE_SECONDS:
            why = (
                f"the lock's time lies {-silent:.0f} s ahead of this file system's: if nobody does, remove {self.path}"
            )
        else:
            why = (
                f"last sign of life {max(0.0, silent):.0f} s ago; after {SILENCE_SECONDS:.0f} s it counts as gone: "
                "wait for it"
            )
        raise OutputExistsError(
            f"{self.path.parent}: {_name(holder)} is writing here ({why}), or choose another folder with -o"
        )

    def _beat(self) -> None:
        while not self._done.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                if _read(self.path).get("token") == self.token:
                    os.utime(self.path)  # the file system's own clock


def sweep_lock_temporaries(folder: Path) -> None:
    """Delete what dead or silent processes left half-written of their locks; those of the living are in use."""
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name) and not path.is_symlink() and path.is_file() and not _is_claim(path):
            path.unlink(missing_ok=True)


def is_lock(path: Path) -> bool:
    """Whether a path has the name of a lock, or of what is left half-written of one."""
    return path.name == NAME or _TEMPORARY.fullmatch(path.name) is not None


def is_held(folder: Path) -> bool:
    """Whether somebody who is alive, or not known to be dead or silent, holds the folder's lock."""
    return _is_claim(folder / NAME)


def _is_claim(path: Path) -> bool:
    try:
        silent = time.time() - path.stat().st_mtime
    except OSError:
        return False
    alive = _is_alive(_read(path))
    return silent < SILENCE_SECONDS if alive is None else alive


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[bool]:
    """Whether this process is alone in taking over the lock of a folder; True, too, where nobody can tell."""
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield True
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        alone = True
    except BlockingIOError:
        alone = False
    except OSError:  # a file system without such locks
        alone = True
    try:
        yield alone
    finally:
        os.close(handle)


def _read(path: Path) -> dict[str, Any]:
    try:
        with open_plain(path) as stream:
            return _parse(stream.read(MAX_BYTES))
    except (OSError, InputError):
        return {}


def _parse(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
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


def _is_alive(holder: dict[str, Any]) -> bool | None:
    """Whether the holder, which ran right here, still runs (and its pid is not another process's by now).

    None where that cannot be known: it ran elsewhere, or there is no telling which process has the pid.
    """
    pid = holder.get("pid")
    if type(pid) is not int or pid <= 0 or any(holder.get(key) != value for key, value in _place().items()):
        return None
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass  # another user's process
    started = process_start(pid)
    if _is_zombie(pid):
        return False
    if started is None or holder.get("started") is None:
        return None
    return holder["started"] == started


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
