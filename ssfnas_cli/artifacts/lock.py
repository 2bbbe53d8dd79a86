"""Locks that allow one writer per folder. A lock is a file with a host, a pid and a heartbeat (its time of change).

If the process of a lock ran on this host and has ended, its lock is taken over immediately. If it runs on this host,
its lock is never taken over, however old its heartbeat: a laptop may sleep, and a process may be stopped. The state of
a process elsewhere is unknown, so its lock is taken over if the heartbeat is older than `SILENCE_SECONDS`. The holder
checks before every save that it still has the lock.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import stat
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssfnas_cli.artifacts.files import open_plain, reason, temporary_target
from ssfnas_cli.errors import DiskError, InputError, OutputExistsError

NAME = "lock.json"
SILENCE_SECONDS = 600.0
BEAT_SECONDS = 20.0
MAX_BYTES = 1 << 16
ATTEMPTS = 50
_TEMPORARY = re.compile(r"\.lock\.[0-9a-f]{32}(\.stale)?\.tmp")


class FolderLock:
    """A lock that is held from `acquire` to `release`. A daemon thread keeps the heartbeat.

    If `acquire` has replaced a stale lock, `taken_over` says whose lock it was.
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
            InputError: a link or a folder has the name of the lock.
            DiskError: the folder cannot be written.
        """
        temporary = self.path.with_name(f".lock.{self.token}.tmp")
        content = {**_pid_scope(), "pid": os.getpid(), "started": process_start(os.getpid()), "token": self.token}
        try:
            temporary.write_text(json.dumps(content))
            now = temporary.stat().st_mtime  # by the clock of the file system, which times other hosts' heartbeats, too
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
        threading.Thread(target=self._keep_heartbeat, name="lock-heartbeat", daemon=True).start()

    def check(self) -> None:
        """Check before a save that this process still holds the lock.

        Raises:
            OutputExistsError: another process has taken it over, or it was removed.
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
                f"{self.path.parent}: {_describe(holder)} took this folder over; nothing more is written"
            )

    def relocate(self, folder: Path) -> None:
        """Set the new path of the folder after it was renamed."""
        self.path = folder / NAME

    def release(self) -> None:
        """Release the lock if this process still holds it."""
        self._done.set()
        if _read(self.path).get("token") == self.token:
            self.path.unlink(missing_ok=True)

    def _create(self, temporary: Path) -> bool:
        """Create the lock from the file `temporary` in one atomic step; return False if there is a lock already."""
        try:
            os.link(temporary, self.path)
        except OSError as error:
            if _read(self.path).get("token") == self.token:
                return True  # over NFS, the link may have been made although the reply was lost
            if isinstance(error, FileExistsError):
                return False
            try:  # the file system has no hard links
                with self.path.open("x") as stream:
                    stream.write(temporary.read_text())
            except FileExistsError:
                return False
        return True

    def _take_over(self, temporary: Path, now: float) -> bool:
        """Replace a stale lock, or raise if its holder is alive. Return False if another process is replacing it."""
        self._find_stale_holder(now)
        with _exclusive(self.path.parent) as exclusive:
            if not exclusive:
                return False
            holder = self._find_stale_holder(now)
            if holder is None:
                return False
            stale = self.path.with_name(f".lock.{self.token}.stale.tmp")
            try:
                self.path.rename(stale)
            except FileNotFoundError:
                return False
            moved = _read(stale)
            if moved.get("token") != holder.get(
                "token"
            ):  # another process was faster (if there is no flock): restore its lock
                with contextlib.suppress(OSError):
                    os.link(stale, self.path)
                stale.unlink(missing_ok=True)
                return False
            stale.unlink(missing_ok=True)
            self.taken_over = f"took over the lock of {_describe(holder)}, which is gone"
            return self._create(temporary)

    def _find_stale_holder(self, now: float) -> dict[str, Any] | None:
        """The holder of a lock that may be taken over, or None if there is no lock any more.

        Raises:
            OutputExistsError: the holder is alive, or may be.
            InputError: it is not a plain file.
        """
        try:
            state = self.path.lstat()
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(state.st_mode):
            raise InputError(f"{self.path}: is a link, a folder or a pipe, not a lock: remove it")
        holder, silence = _read(self.path), now - state.st_mtime
        alive = _is_alive(holder)
        if alive is False or (alive is None and silence >= SILENCE_SECONDS):
            return holder
        if alive:
            why = "it is alive: wait for it, end it"
        elif silence < -SILENCE_SECONDS:
            why = (
                f"the lock's time lies {-silence:.0f} s ahead of this file system's: if nobody does, remove {self.path}"
            )
        else:
            why = (
                f"last sign of life {max(0.0, silence):.0f} s ago; after {SILENCE_SECONDS:.0f} s it counts as gone: "
                "wait for it"
            )
        raise OutputExistsError(
            f"{self.path.parent}: {_describe(holder)} is writing here ({why}), or choose another folder with -o"
        )

    def _keep_heartbeat(self) -> None:
        while not self._done.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                if _read(self.path).get("token") == self.token:
                    os.utime(self.path)  # this uses the clock of the file system


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the lock of a new folder, if there is room for one: what is written next says better where it failed."""
    lock = FolderLock(folder)
    with contextlib.suppress(DiskError):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def delete_dead_builds(folder: Path) -> None:
    """Delete temporary folders in `folder` that were locked by processes which have ended without deleting them."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            with contextlib.suppress(OSError):  # another user's
                if temporary_target(path) is not None and (path / NAME).is_file() and not is_held(path):
                    shutil.rmtree(path, ignore_errors=True)


def delete_lock_temporaries(folder: Path) -> None:
    """Delete temporary files that dead or silent processes left. Those of live processes are in use."""
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name) and not path.is_symlink() and path.is_file() and not _is_active(path):
            path.unlink(missing_ok=True)


def is_lock(path: Path) -> bool:
    """Whether a path has the name of a lock or of a temporary file of one."""
    return path.name == NAME or _TEMPORARY.fullmatch(path.name) is not None


def is_held(folder: Path) -> bool:
    """Whether a process holds the folder's lock that is alive or, if that is unknown, has a recent heartbeat."""
    return _is_active(folder / NAME)


def _is_active(path: Path) -> bool:
    try:
        silence = time.time() - path.stat().st_mtime
    except OSError:
        return False
    alive = _is_alive(_read(path))
    return silence < SILENCE_SECONDS if alive is None else alive


@contextlib.contextmanager
def _exclusive(folder: Path) -> Iterator[bool]:
    """Try to flock a folder while taking over its lock. Yield False only if another process has flocked it."""
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield True
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        exclusive = True
    except BlockingIOError:
        exclusive = False
    except OSError:  # the file system does not support flock
        exclusive = True
    try:
        yield exclusive
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


def _describe(holder: dict[str, Any]) -> str:
    return f"process {holder['pid']} on {holder.get('host')}" if "pid" in holder else "another process"


def _pid_scope() -> dict[str, str | None]:
    """The scope in which a pid is unique: the host, its current boot, and the pid namespace of the container.

    Hosts or containers may have the same host name and yet not see each other's processes.
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
    """Whether the holder of a lock is still running and its pid has not been reused.

    None means unknown: the holder ran elsewhere, or it is not known which process has the pid.
    """
    pid = holder.get("pid")
    if type(pid) is not int or pid <= 0 or any(holder.get(key) != value for key, value in _pid_scope().items()):
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
    """The start time of a process in clock ticks; None if there is no /proc."""
    fields = _process_fields(pid)
    return fields[19] if len(fields) > 19 else None


def _is_zombie(pid: int) -> bool:
    """Whether a process has ended although its parent has not waited for it. It writes nothing any more."""
    return _process_fields(pid)[:1] in (["Z"], ["X"])


def _process_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat, beginning with the state."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
