"""Large arrays that a compressed file holds: unpacked into a temporary file and mapped, so that they fill no memory."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ssfnas_cli.artifacts.files import reason
from ssfnas_cli.errors import DiskError

CHUNK_BYTES = 1 << 20
MAX_INFLATION = 1100  # deflate, which npz and gzip use, expands a byte to at most 1,032 bytes


def map_stream(stream: IO[bytes], num_bytes: int, what: str) -> NDArray[np.uint8]:
    """The next `num_bytes` bytes of a stream, uint8 [num_bytes], which lie in a temporary file without a name.

    The disk space is free again when the array is gone.

    Args:
        stream: is read to its end, because readers of compressed files check their sums there.
        num_bytes: at least 1.
        what: the array's name in messages.

    Raises:
        DiskError: there is too little room for them.
        ValueError: the stream has fewer or more bytes.
    """
    folder = _temporary_folder()
    try:
        free = shutil.disk_usage(folder).free
        if num_bytes > free:
            raise DiskError(
                f"{what} takes {num_bytes:,} bytes in {folder} while it is read, and {free:,} are free: "
                "set TMPDIR to a folder on a larger disk"
            )
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
    except OSError as error:
        raise DiskError(f"{folder}: cannot be written: {reason(error)}: set TMPDIR to another folder") from error
    with file:
        remaining = num_bytes
        while remaining and (piece := stream.read(min(CHUNK_BYTES, remaining))):
            _write(file, piece, folder)
            remaining -= len(piece)
        if remaining:
            raise ValueError(f"it should have {num_bytes:,} bytes, and {remaining:,} of them are missing")
        if stream.read(1):
            raise ValueError("bytes follow the array")
        file.flush()
        return np.memmap(file, np.uint8, "r", shape=(num_bytes,)).view(np.ndarray)


def _write(file: IO[Any], piece: bytes, folder: Path) -> None:
    try:
        file.write(piece)
    except OSError as error:
        raise DiskError(f"{folder}: cannot be written: {reason(error)}: set TMPDIR to a folder with room") from error


def _temporary_folder() -> Path:
    """$TMPDIR; else /var/tmp, which is on a disk where /tmp may be memory; else what Python takes."""
    for folder in (os.environ.get("TMPDIR"), "/var/tmp"):
        if folder and os.access(folder, os.W_OK):
            return Path(folder)
    return Path(tempfile.gettempdir())
