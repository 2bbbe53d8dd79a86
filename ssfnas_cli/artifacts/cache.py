"""Where this program keeps what it can make again: the embedded data set and the compiled kernels."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import stat
import tempfile
from pathlib import Path

from ssfnas_cli.console import log


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/ssfnas`, or `~/.cache/ssfnas`, made here if need be; where neither can be, a temporary one.

    A relative `$XDG_CACHE_HOME` is ignored, and folders are made with the permissions 0700, as the XDG Base Directory
    Specification says.
    """
    return _cache_folder(os.environ.get("XDG_CACHE_HOME", ""), os.environ.get("HOME", ""))


@functools.lru_cache(maxsize=8)
def _cache_folder(named: str, home: str) -> Path:
    try:
        base = Path(named) if Path(named).is_absolute() else Path.home() / ".cache"
        make_private(base / "ssfnas")
        if os.access(base / "ssfnas", os.R_OK | os.W_OK | os.X_OK):
            return base / "ssfnas"
        why = f"{base / 'ssfnas'} cannot be written"
    except RuntimeError:
        why = "this user has no home folder"
    except OSError as error:
        why = f"{error.filename}: {error.strerror}"
    folder = temporary_folder()
    log.warning("%s: the cache is kept in %s; XDG_CACHE_HOME names another place", why, folder)
    return folder


def make_private(folder: Path) -> None:
    """Make a folder that only this user can look into, and those above it that are missing."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
    if not folder.is_dir():
        raise NotADirectoryError(20, "Not a directory", str(folder))


@functools.cache
def temporary_folder() -> Path:
    """A folder in the system's temporary folder that only this user can write: the same one each time, if it can be."""
    folder = Path(tempfile.gettempdir()) / f"ssfnas-cache-{_user()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if not folder.is_symlink() and why_not_ours(folder) is None:
            return folder
    except OSError:
        pass
    folder = Path(tempfile.mkdtemp(prefix="ssfnas-"))  # somebody else has made the other
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def why_not_ours(path: Path) -> str | None:
    """Why somebody else could have put something into a folder or file, or could do so; None if nobody could.

    It must be this user's and writable by nobody else. In each folder above, nobody but this user and the system's
    administrator may rename things.
    """
    if _user() is None:
        return None
    if path.stat().st_uid != _user():
        return f"{path} is another user's"
    if path.stat().st_mode & 0o022:
        return f"others can write {path}"
    for folder in {*path.absolute().parents, *path.resolve().parents}:  # a link on the way may be turned elsewhere
        state = folder.stat()
        if state.st_uid not in (_user(), 0):
            return f"{folder} is another user's"
        if _others_write(state) and not state.st_mode & stat.S_ISVTX:
            return f"others can write {folder}"
    return None


def _others_write(state: os.stat_result) -> bool:
    """Whether a folder's permissions let another user in; a group of which a user is the only member does not."""
    if state.st_mode & stat.S_IWOTH:
        return True
    return bool(state.st_mode & stat.S_IWGRP) and not _is_private_group(state.st_gid)


def _is_private_group(number: int) -> bool:
    import grp
    import pwd

    try:
        group, user = grp.getgrgid(number), pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return number == user.pw_gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


def _user() -> int | None:
    """This user's number; None on systems that have none."""
    return os.getuid() if hasattr(os, "getuid") else None
