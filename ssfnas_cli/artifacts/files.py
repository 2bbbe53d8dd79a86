"""Whole files or none: atomic writes, checksums, and reading with a stranger's care.

A folder that comes from somebody else may hold links, pipes and devices under the names that are ours. Nothing is
written or deleted through them, and no read waits for them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ssfnas_cli.artifacts.cache import cache_folder as cache_folder
from ssfnas_cli.artifacts.strict_json import parse_json as parse_json
from ssfnas_cli.errors import DiskError, InputError, OutputExistsError, UsageError

MAX_JSON_BYTES = 64 * 2**20
SPARSE_BYTES = 2**30  # a smaller file is read quickly, whatever is in it
_TEMPORARY = re.compile(r"\.(.+)\.ssfnas-[0-9a-f]{12}\.tmp", re.DOTALL)
_STREAMS = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")  # what a shell's `<(...)` is called, too


def umask_mode(base: int = 0o666) -> int:
    """Permissions a new file would get; the temporary folder that it is written in is ours alone (0700)."""
    mask = os.umask(0)
    os.umask(mask)
    return base & ~mask


def fsync_path(path: Path) -> None:
    """Flush a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def refuse_detour(path: Path, folder: bool = False) -> None:
    """Check that what stands where we shall write is a plain file (or a folder), or nothing.

    Raises:
        OutputExistsError: it is a link, a pipe or a device, so the writing would end up somewhere else.
    """
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if stat.S_ISLNK(mode):
        raise OutputExistsError(f"{path}: is a link, and nothing is written through a link: remove the link")
    if not (stat.S_ISDIR(mode) if folder else stat.S_ISREG(mode)):
        raise OutputExistsError(f"{path}: is not a {'folder' if folder else 'plain file'}: move it out of the way")


def unshare(path: Path) -> None:
    """Give a file that has other names, too (hard links), a content of its own, so that appending changes no other.

    Raises:
        OutputExistsError: it is a link, or no file.
    """
    refuse_detour(path)
    if path.exists() and path.stat().st_nlink > 1:
        refuse_sparse(path)
        with atomic_path(path) as copy:
            shutil.copyfile(path, copy)


def _make_temporary(path: Path) -> Path:
    """A new folder beside `path`, with a name that `sweep_temporaries` knows."""
    temporary = path.with_name(f".{path.name}.ssfnas-{secrets.token_hex(6)}.tmp")
    temporary.mkdir(mode=0o700)
    return temporary


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a path to write to; on success that file is fsynced, gets umask permissions, and is renamed to `path`.

    It lies in a temporary folder of its own beside `path`, as a library may put temporary files beside it. On failure
    that folder is removed and `path` is as it was.

    Raises:
        DiskError: naming `path`, whatever the operating system or safetensors says of the writing.
        OutputExistsError: `path` is a link, or no file.
    """
    refuse_detour(path)
    folder = None
    try:
        folder = _make_temporary(path)
        temporary = folder / path.name
        yield temporary
        fsync_path(temporary)
        temporary.chmod(umask_mode())
        temporary.replace(path)
        fsync_path(path.parent)
    except Exception as error:
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            raise DiskError(f"{path}: cannot be written: {reason(error)}") from error
        raise
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def reason(error: BaseException) -> str:
    """The operating system's words for an error, without its file names."""
    return getattr(error, "strerror", None) or str(error)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write JSON with a stable layout, whole or not at all."""
    write_bytes(path, dump_json(value))


def dump_json(value: Any) -> bytes:
    """UTF-8 JSON, two spaces, keys in the order given, a final newline; refuses NaN.

    Raises:
        InputError: it holds a name that is not text.
    """
    return _encode(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def seal(value: Mapping[str, Any]) -> str:
    """sha256 of a JSON object, whatever its layout: what a sealed file states of the rest of itself."""
    return sha256_bytes(_encode(json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)))


def _encode(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:  # half a pair: Python's way to write a byte of a file's name that is no UTF-8
        near = text[max(0, error.start - 20) : error.start + 20]
        raise InputError(f"a name is not UTF-8 text, near {near!r}: rename it") from None


def refuse_undecodable(path: Path) -> None:
    """Check that a path can be recorded.

    Raises:
        UsageError: it is not UTF-8 text.
    """
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        raise UsageError(f"{path}: is not UTF-8 text: choose another name with -o") from None


def write_sealed_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON that nobody edits by hand, with the sha256 of its content as last key."""
    write_json(path, {**value, "sha256": seal(value)})


def read_sealed_json(path: Path) -> dict[str, Any]:
    """What `write_sealed_json` wrote, without the seal.

    Raises:
        InputError: not whole, or not what was written.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: should hold an object")
    if value.pop("sha256", None) != seal(value):
        raise InputError(f"{path}: is damaged or was edited: its contents do not give the sha256 it states")
    return value


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes.

    Raises:
        InputError: no regular file, or a huge one with next to nothing in it, which would be read for hours.
    """
    refuse_sparse(path)
    with open_plain(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_bytes(data: bytes) -> str:
    """Hex digest of bytes."""
    return hashlib.sha256(data).hexdigest()


def open_plain(path: Path) -> BufferedReader:
    """A regular file to read, or a stream that this process was given (`/dev/stdin`, `<(...)`); opening never waits.

    Raises:
        InputError: missing, a folder, a pipe, a device, or unreadable.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise InputError(f"{path}: is a folder, not a file")
        if not stat.S_ISREG(mode) and not str(path).startswith(_STREAMS):
            raise InputError(f"{path}: is a pipe, a socket or a device, not a file")
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        os.set_blocking(handle, True)
        return os.fdopen(handle, "rb")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error


def read_bytes(path: Path, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """A small file's bytes.

    Raises:
        InputError: missing, a folder, a pipe, a device, unreadable, or larger than `max_bytes`.
    """
    with open_plain(path) as stream:
        try:
            size, data = os.fstat(stream.fileno()).st_size, bytearray()
            # piece by piece: a stream has no size, and read(n) allocates n bytes before it reads
            while size <= max_bytes and (piece := stream.read(1 << 16)):
                data += piece
                size = max(size, len(data))
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {reason(error)}") from error
    if size > max_bytes:
        raise InputError(f"{path}: {size:,} bytes is more than such a file can have ({max_bytes:,})")
    return bytes(data)


def refuse_sparse(path: Path) -> None:
    """Check that a huge file is there in fact, and is not a hole of that size.

    Raises:
        InputError: naming the file; also if it is missing or no regular file.
    """
    with open_plain(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size <= SPARSE_BYTES or not hasattr(os, "SEEK_DATA"):
            return
        there = end = 0
        with contextlib.suppress(OSError):  # there is no data behind the last
            while 100 * there < size:
                start = os.lseek(stream.fileno(), end, os.SEEK_DATA)
                end = os.lseek(stream.fileno(), start, os.SEEK_HOLE)
                there += end - start
    if 100 * there < size:
        raise InputError(f"{path}: is damaged: of its {size:,} bytes only {there:,} are on the disk")


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Read a JSON file with `parse_json`'s care."""
    return parse_json(read_bytes(path, max_bytes), str(path))


def invalid(where: str, error: ValidationError, within: str = "") -> InputError:
    """The error for a document that is no such model: its first fault, and the place of it (`within` comes before)."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in (*([within] if within else []), *first["loc"]))
    return InputError(f"{where}: {place + ': ' if place else ''}{first['msg'].removeprefix('Value error, ')}")


def set_aside(path: Path) -> Path:
    """Move an old output out of the way, to the first free `NAME.old-N` beside it; nothing is deleted."""
    if path.name in ("", ".."):
        raise UsageError(f"{path}: cannot be moved aside: name the folder itself")
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UsageError(f"{path}: is a pipe or a device, which is not moved aside: name a file or a folder")
    return rename_free(path, "old")


def rename_free(path: Path, suffix: str) -> Path:
    """Rename to the first free `NAME.SUFFIX-N` beside it."""
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}.{suffix}-{number}")):
        number += 1
    try:
        path.rename(aside)
    except OSError as error:
        raise DiskError(f"{path}: cannot be moved aside: {reason(error)}") from error
    return aside


def is_set_aside(path: Path) -> bool:
    """Whether `set_aside` gave a path its name."""
    return re.search(r"\.old-\d+$", path.name) is not None


def temporary_of(path: Path) -> str | None:
    """The name of what a temporary folder of ours was to become; None for any other path."""
    match = _TEMPORARY.fullmatch(path.name)
    return match[1] if match and not path.is_symlink() and path.is_dir() else None


def sweep_temporaries(folder: Path) -> None:
    """Delete what a killed process of ours left half-written. Only for a folder that nobody else writes."""
    for path in folder.iterdir():
        if temporary_of(path) is not None:
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success its files are fsynced and it is renamed to `path`.

    `path` must not exist. On failure the temporary folder is removed.

    Raises:
        DiskError: naming `path`.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _make_temporary(path)
        inherited = temporary.stat().st_mode & stat.S_ISGID  # a shared folder hands its group on
        temporary.chmod(umask_mode(0o777) | inherited)
        yield temporary
        for file in sorted(temporary.rglob("*")):
            if file.is_file():
                file.chmod(umask_mode())
            fsync_path(file)
        fsync_path(temporary)
        temporary.rename(path)
        fsync_path(path.parent)
    except BaseException as error:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            raise DiskError(f"{path}: cannot be written: {reason(error)}") from error
        raise
