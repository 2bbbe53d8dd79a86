"""Whole files or none: atomic writes, checksums, and JSON read with a stranger's care."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssfnas_cli.errors import DiskError, InputError

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
        size = path.stat().st_size
        if size > max_bytes:
            raise InputError(f"{path}: {size:,} bytes is more than such a file can have ({max_bytes:,})")
        return path.read_bytes()
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
        return json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
        )
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


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key '{twice}' stands twice")
    return keys


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"holds {name}, which is no number")


def _finite_float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"holds {text}, which is not finite")
    return value


def set_aside(path: Path) -> Path:
    """Move an old output out of the way, to the first free `NAME.old-N` beside it; nothing is deleted."""
    number = 1
    while (aside := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    try:
        path.rename(aside)
    except OSError as error:
        raise DiskError(f"{path}: cannot be moved aside: {reason(error)}") from error
    return aside


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
        temporary.chmod(umask_mode(0o777))
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
