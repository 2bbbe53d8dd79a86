"""Whole files or none: atomic writes, checksums, and JSON read with a stranger's care."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ssfnas_cli.errors import DiskError, InputError, UsageError

MAX_JSON_BYTES = 64 * 2**20


def umask_mode(base: int = 0o666) -> int:
    """Permissions a new file would get; safetensors and tempfile ignore the umask (0600)."""
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


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is fsynced, gets umask permissions, and is renamed.

    On failure the temporary file is removed and `path` is as it was.

    Raises:
        DiskError: naming `path`, whatever the operating system or safetensors says of the writing.
    """
    handle, name = -1, ""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        yield Path(name)
        fsync_path(Path(name))
        Path(name).chmod(umask_mode())
        Path(name).replace(path)
        fsync_path(path.parent)
    except Exception as error:
        if name:
            Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            raise DiskError(f"{path}: cannot be written: {reason(error)}") from error
        raise


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
    """UTF-8 JSON, two spaces, keys in the order given, a final newline; refuses NaN."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def seal(value: Mapping[str, Any]) -> str:
    """sha256 of a JSON object, whatever its layout: what a sealed file states of the rest of itself."""
    return sha256_bytes(json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False).encode())


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
    """Hex digest of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_bytes(data: bytes) -> str:
    """Hex digest of bytes."""
    return hashlib.sha256(data).hexdigest()


def read_bytes(path: Path, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """A small file's bytes.

    Raises:
        InputError: missing, a folder, unreadable, or larger than `max_bytes`.
    """
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder, not a file")
        with path.open("rb") as stream:
            size, data = os.fstat(stream.fileno()).st_size, bytearray()
            # piece by piece: a pipe or a device has no size, and read(n) allocates n bytes before it reads
            while size <= max_bytes and (piece := stream.read(1 << 16)):
                data += piece
                size = max(size, len(data))
        if size > max_bytes:
            raise InputError(f"{path}: {size:,} bytes is more than such a file can have ({max_bytes:,})")
        return bytes(data)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error


def parse_json(data: bytes, where: str) -> Any:
    """Parse JSON, refusing what the standard parser lets through: duplicate keys, NaN, 1e999, bottomless nesting.

    Raises:
        InputError: one line that names `where`.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: is not JSON: not UTF-8 text at byte {error.start}") from None
    if not text.strip():
        raise InputError(f"{where}: is empty")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
        )
        if "\\ud" in text or "\\uD" in text:
            _refuse_lone_surrogates(value)
        return value
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where}: is not whole JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except RecursionError:
        raise InputError(f"{where}: is nested too deeply") from None
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Read a JSON file with `parse_json`'s care."""
    return parse_json(read_bytes(path, max_bytes), str(path))


def invalid(where: str, error: ValidationError, within: str = "") -> InputError:
    """The error for a document that is no such model: its first fault, and the place of it (`within` comes before)."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in (*([within] if within else []), *first["loc"]))
    return InputError(f"{where}: {place + ': ' if place else ''}{first['msg'].removeprefix('Value error, ')}")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key '{twice}' stands twice")
    return keys


def _refuse_lone_surrogates(value: Any) -> None:
    """Half a UTF-16 pair parses, but cannot be written again."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("holds half a character (a lone surrogate)") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"holds {name}, which is no number")


def _finite_float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"holds {text}, which is not finite")
    return value


def set_aside(path: Path) -> Path:
    """Move an old output out of the way, to the first free `NAME.old-N` beside it; nothing is deleted."""
    if path.name in ("", ".."):
        raise UsageError(f"{path}: cannot be moved aside: name the folder itself")
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


def sweep_temporaries(folder: Path) -> None:
    """Delete what a killed process left half-written. Only for a folder that nobody else writes."""
    for path in folder.glob(".*.tmp"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


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
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
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


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/ssfnas`, or `~/.cache/ssfnas`: the embedded data set and the compiled kernels."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ssfnas"
