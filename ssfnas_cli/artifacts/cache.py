"""The cache folder, which holds what can be recreated: the embedded data set and the compiled kernels."""

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
    """Return `$XDG_CACHE_HOME/ssfnas` or `~/.cache/ssfnas`, or a temporary folder if neither can be created or written.

    As the XDG Base Directory Specification requires, a relative `$XDG_CACHE_HOME` is ignored and folders are created
    with the permissions 0700.
    """
    return _cache_folder(os.environ.get("XDG_CACHE_HOME", ""), os.environ.get("HOME", ""))


@functools.lru_cache(maxsize=8)
def _cache_folder(configured: str, home: str) -> Path:
    try:
        base = Path(configured) if Path(configured).is_absolute() else Path.home() / ".cache"
        make_private_folder(base / "ssfnas")
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


def make_private_folder(folder: Path) -> None:
    """Create a folder, and missing folders above it, with access for this user only."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
    if not folder.is_dir():
        raise NotADirectoryError(20, "Not a directory", str(folder))


@functools.cache
def temporary_folder() -> Path:
    """A folder in the system's temporary folder that only this user can write, and the same one if possible."""
    folder = Path(tempfile.gettempdir()) / f"ssfnas-cache-{_user()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if not folder.is_symlink() and why_untrusted(folder) is None:
            return folder
    except OSError:
        pass
    folder = Path(tempfile.mkdtemp(prefix="ssfnas-"))  # another user has created the other one
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def why_untrusted(path: Path) -> str | None:
    """The reason why another user could have changed a file or folder, or None if nobody else could.

    This user must own it, and nobody else may be able to write it. In each folder above, nobody but this user and the
    administrator may be able to rename entries.
    """
    if _user() is None:
        return None
    if path.stat().st_uid != _user():
        return f"{path} is another user's"
    if path.stat().st_mode & 0o022:
        return f"others can write {path}"
    for folder in {*path.absolute().parents, *path.resolve().parents}:  # a link in the path could be redirected
        state = folder.stat()
        if state.st_uid not in (_user(), 0):
            return f"{folder} is another user's"
        if _others_write(state) and not state.st_mode & stat.S_ISVTX:
            return f"others can write {folder}"
    return None


def _others_write(state: os.stat_result) -> bool:
    """Whether another user may write a folder. A private group, whose only member is its user, does not count."""
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
    """The id of this user, or None on systems that have none."""
    return os.getuid() if hasattr(os, "getuid") else None
