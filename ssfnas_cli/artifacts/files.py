"""Atomic writes, checksums, and careful reading of files from untrusted sources.

A folder that comes from somebody else may contain links, pipes and devices under the names that ssfnas uses. Nothing is
written or deleted through them, and no read blocks on them.
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
from ssfnas_cli.errors import DiskError, InputError, OutputExistsError, SsfnasError, UsageError

MAX_JSON_BYTES = 64 * 2**20
SPARSE_BYTES = 2**30  # smaller files are read quickly even if they are sparse
_TEMPORARY = re.compile(r"\.(.+)\.ssfnas-[0-9a-f]{12}\.tmp", re.DOTALL)
_STREAMS = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")  # a shell passes `<(...)` as the latter


def umask_mode(base: int = 0o666) -> int:
    """The permissions that a new file gets. The temporary folder in which it is written has 0700."""
    mask = os.umask(0)
    os.umask(mask)
    return base & ~mask


def fsync_path(path: Path) -> None:
    """Flush a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def refuse_special_file(path: Path, folder: bool = False) -> None:
    """Check that a path to be written is a plain file (or a folder) or does not exist.

    Raises:
        OutputExistsError: it is a link, a pipe or a device, so that the data would end up elsewhere.
    """
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if stat.S_ISLNK(mode):
        raise OutputExistsError(f"{path}: is a link, and nothing is written through a link: remove the link")
    if not (stat.S_ISDIR(mode) if folder else stat.S_ISREG(mode)):
        raise OutputExistsError(f"{path}: is not a {'folder' if folder else 'plain file'}: move it out of the way")


def break_hard_links(path: Path) -> None:
    """Replace a file that has several hard links by a copy, so that appending to it does not change other files.

    Raises:
        OutputExistsError: the path is a link or not a file.
    """
    refuse_special_file(path)
    if path.exists() and path.stat().st_nlink > 1:
        refuse_sparse(path)
        with atomic_path(path) as copy:
            shutil.copyfile(path, copy)


def _make_temporary(path: Path) -> Path:
    """Create a folder next to `path` with a name that `delete_temporaries` recognises."""
    temporary = path.with_name(f".{path.name}.ssfnas-{secrets.token_hex(6)}.tmp")
    temporary.mkdir(mode=0o700)
    return temporary


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a path to write to. On success, that file is fsynced, gets umask permissions and is renamed to `path`.

    It is in its own temporary folder next to `path`, because a library may create further files beside it. On failure
    that folder is deleted and `path` is unchanged.

    Raises:
        DiskError: the operating system or safetensors reports that writing failed.
        OutputExistsError: `path` is a link or not a file.
    """
    refuse_special_file(path)
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
    """The message of an error, without the file names of an OSError."""
    return getattr(error, "strerror", None) or str(error)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, with a stable layout."""
    write_bytes(path, dump_json(value))


def dump_json(value: Any) -> bytes:
    """Encode JSON in UTF-8, indented by two spaces, with the keys in the given order and a final newline.

    Raises:
        InputError: it contains a string that is not valid text.
        ValueError: it contains NaN or an infinity.
    """
    return _encode(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def seal(value: Mapping[str, Any]) -> str:
    """The sha256 of a JSON object, independent of its layout. A sealed file contains it."""
    return sha256_bytes(_encode(json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)))


def _encode(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:  # Python represents undecodable bytes of file names by lone surrogates
        near = text[max(0, error.start - 20) : error.start + 20]
        raise InputError(f"a name is not UTF-8 text, near {near!r}: rename it") from None


def refuse_undecodable(path: Path, error: type[SsfnasError], mend: str) -> None:
    """Check that a path can be written to JSON, and be read by libraries that take text.

    Raises:
        error: it is not UTF-8 text; with the mend.
    """
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        raise error(f"{path.absolute()}: is not named in UTF-8: {mend}") from None


def write_sealed_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON that is not meant to be edited, with the sha256 of its content as the last key."""
    write_json(path, {**value, "sha256": seal(value)})


def read_sealed_json(path: Path) -> dict[str, Any]:
    """Read what `write_sealed_json` wrote, without the sha256.

    Raises:
        InputError: the file is incomplete or does not match its sha256.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: should hold an object")
    if value.pop("sha256", None) != seal(value):
        raise InputError(f"{path}: is damaged or was edited: its contents do not give the sha256 it states")
    return value


def sha256_file(path: Path) -> str:
    """The sha256 of a file as a hex digest.

    Raises:
        InputError: it is not a regular file, or a large sparse one, which would take hours to read.
    """
    refuse_sparse(path)
    with open_plain(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_bytes(data: bytes) -> str:
    """The sha256 of bytes as a hex digest."""
    return hashlib.sha256(data).hexdigest()


def open_plain(path: Path) -> BufferedReader:
    """Open a regular file, or a stream of this process (`/dev/stdin`, `<(...)`), for reading. Opening never blocks.

    Raises:
        InputError: the path is missing, unreadable, a folder, a pipe or a device.
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
    """Read a small file.

    Raises:
        InputError: the path is missing, unreadable, a folder, a pipe or a device, or larger than `max_bytes`.
    """
    with open_plain(path) as stream:
        try:
            size, data = os.fstat(stream.fileno()).st_size, bytearray()
            # It is read in pieces, because a stream has no size and read(n) allocates n bytes first.
            while size <= max_bytes and (piece := stream.read(1 << 16)):
                data += piece
                size = max(size, len(data))
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {reason(error)}") from error
    if size > max_bytes:
        raise InputError(f"{path}: {size:,} bytes is more than such a file can have ({max_bytes:,})")
    return bytes(data)


def refuse_sparse(path: Path) -> None:
    """Check that a large file is not mostly holes.

    Raises:
        InputError: it is, or it is missing or not a regular file.
    """
    with open_plain(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size <= SPARSE_BYTES or not hasattr(os, "SEEK_DATA"):
            return
        num_data = end = 0
        with contextlib.suppress(OSError):  # lseek fails after the last data
            while 100 * num_data < size:
                start = os.lseek(stream.fileno(), end, os.SEEK_DATA)
                end = os.lseek(stream.fileno(), start, os.SEEK_HOLE)
                num_data += end - start
    if 100 * num_data < size:
        raise InputError(f"{path}: is damaged: of its {size:,} bytes only {num_data:,} are on the disk")


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Read a JSON file; see `parse_json`."""
    return parse_json(read_bytes(path, max_bytes), str(path))


def validation_error(
    where: str, error: ValidationError, within: str = "", made_with: Mapping[str, str] | None = None
) -> InputError:
    """Convert a ValidationError to an InputError with the first fault and its location, prefixed by `within`.

    Args:
        where: what was read, for the message.
        error: of its model.
        within: the part of it that the model is of.
        made_with: the plugins of other packages that it was made with, one of which may not be installed here.
    """
    first = error.errors()[0]
    place = ".".join(str(part) for part in (*([within] if within else []), *first["loc"]))
    message = first["msg"].removeprefix("Value error, ")
    missing = [str(version) for name, version in (made_with or {}).items() if f"unknown {name.split()[0]} " in message]
    mend = f" It was made with {', '.join(dict.fromkeys(missing))}: install that." if missing else ""
    return InputError(f"{where}: {place + ': ' if place else ''}{message}{mend}")


def read_schema(value: Any, where: str, known: str) -> Any:
    """The `schema` of an object that was read, or None. `known` is the one that this ssfnas reads.

    Raises:
        InputError: it is a later one of the same kind.
    """
    schema = value.get("schema") if isinstance(value, dict) else None
    if isinstance(schema, str) and schema.startswith(f"{known.partition('/')[0]}/") and schema != known:
        raise InputError(f"{where}: has schema '{schema}', newer than this ssfnas reads ('{known}'): upgrade ssfnas")
    return schema


def set_aside(path: Path) -> Path:
    """Rename an old output to the first free `NAME.old-N` next to it. Nothing is deleted."""
    if path.name in ("", ".."):
        raise UsageError(f"{path}: cannot be moved aside: name the folder itself")
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UsageError(f"{path}: is a pipe or a device, which is not moved aside: name a file or a folder")
    return rename_to_free_name(path, "old")


def rename_to_free_name(path: Path, suffix: str) -> Path:
    """Rename a path to the first free `NAME.SUFFIX-N` next to it."""
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}.{suffix}-{number}")):
        number += 1
    try:
        path.rename(aside)
    except OSError as error:
        raise DiskError(f"{path}: cannot be moved aside: {reason(error)}") from error
    return aside


def is_set_aside(path: Path) -> bool:
    """Whether a path has a name that `set_aside` gives."""
    return re.search(r"\.old-\d+$", path.name) is not None


def temporary_target(path: Path) -> str | None:
    """The name that the content of a temporary folder was to get; None if the path is not such a folder."""
    match = _TEMPORARY.fullmatch(path.name)
    return match[1] if match and not path.is_symlink() and path.is_dir() else None


def delete_temporaries(folder: Path) -> None:
    """Delete temporary folders that a killed process left. No other process may be writing to `folder`."""
    for path in folder.iterdir():
        if temporary_target(path) is not None:
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `path`. On success, its files are fsynced and it is renamed to `path`.

    `path` must not exist. On failure the temporary folder is deleted.

    Raises:
        DiskError: the folder cannot be written.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _make_temporary(path)
        inherited = temporary.stat().st_mode & stat.S_ISGID  # keep the setgid bit of a shared folder
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
