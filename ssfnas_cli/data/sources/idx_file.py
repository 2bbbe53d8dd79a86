"""Careful reading of IDX files, the format of MNIST and its relatives, as they are or compressed by gzip.

An IDX file begins with two zero bytes, the type of its numbers and how many dimensions it has. The sizes of the
dimensions follow, in 32 bits each, and then the numbers. All are big-endian.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from ssfnas_cli.artifacts.files import open_plain, reason
from ssfnas_cli.data.sources.spool import CHUNK_BYTES, MAX_INFLATION, map_stream
from ssfnas_cli.errors import InputError, SsfnasError

TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
GZIP_MAGIC = b"\x1f\x8b"


class IdxFile:
    """An IDX file whose header has been read and whose size fits it.

    Attributes:
        shape: of its array.
        dtype: of its numbers.
    """

    def __init__(self, path: Path):
        """Read the header.

        Raises:
            InputError: it is no IDX file, or its size is not what the header says.
        """
        self.path = path
        with open_plain(path) as file:
            self.is_compressed = file.read(2) == GZIP_MAGIC
        with self._stream() as stream:
            magic = stream.read(4)
            if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in TYPES or not magic[3]:
                shown = f"its magic number is 0x{magic.hex()}" if magic else "it is empty"
                raise InputError(f"{path}: {shown}, so it is no IDX file: take the file as it was published")
            sizes = stream.read(4 * magic[3])
            if len(sizes) < 4 * magic[3]:
                raise ValueError("it ends in its header")
        self._magic = magic
        self.dtype = np.dtype(TYPES[magic[2]])
        self.shape = tuple(np.frombuffer(sizes, ">u4").astype(int).tolist())
        self._offset = 4 + len(sizes)
        self._num_bytes = math.prod(self.shape) * self.dtype.itemsize
        self._check_size()

    def _check_size(self) -> None:
        size = self.path.stat().st_size
        if self.is_compressed:
            self._check_compressed_size(size)
        elif size - self._offset != self._num_bytes:
            raise InputError(
                f"{self.path}: its header says {' x '.join(map(str, self.shape))}, which takes {self._num_bytes:,} "
                f"bytes, and {size - self._offset:,} follow it: copy the whole file again"
            )

    def _check_compressed_size(self, size: int) -> None:
        if self._num_bytes > size * MAX_INFLATION:
            raise InputError(
                f"{self.path}: {size:,} bytes cannot hold the {self._num_bytes:,} that its header claims: it is damaged"
            )
        if self._ends_with_its_size():
            return
        with self._stream() as stream:  # it is cut, or has several parts: only unpacking tells
            stream.read(self._offset)
            remaining = self._num_bytes
            while piece := stream.read(CHUNK_BYTES):
                remaining -= len(piece)
            if remaining:
                too = "few" if remaining > 0 else "many"
                raise ValueError(f"its header says {self._num_bytes:,} bytes, and it has {abs(remaining):,} too {too}")

    def _ends_with_its_size(self) -> bool:
        """Whether the last four bytes of a compressed file are the size of what it holds, as gzip writes them."""
        with open_plain(self.path) as file:
            file.seek(-4, os.SEEK_END)
            return int.from_bytes(file.read(4), "little") == (self._offset + self._num_bytes) % 2**32

    @contextlib.contextmanager
    def _stream(self) -> Iterator[IO[bytes]]:
        """The file's content, unpacked. Its faults become an InputError that names it."""
        try:
            with open_plain(self.path) as file:
                if self.is_compressed:
                    with gzip.GzipFile(fileobj=file) as stream:
                        yield stream  # type: ignore[misc]
                else:
                    yield file
        except SsfnasError:
            raise
        except (OSError, EOFError, ValueError, zlib.error) as error:
            why = " ".join(reason(error).split())
            raise InputError(f"{self.path}: cannot be read, is the file whole? {why}") from error

    @property
    def contents(self) -> str:
        """What its header says, in words for a message."""
        return f"{' x '.join(map(str, self.shape))} numbers of {self.dtype.name} (magic number 0x{self._magic.hex()})"

    def labels(self) -> NDArray[np.int64]:
        """The labels, int64 [N], in memory, of a file [N] or [N, 1] of whole numbers.

        Raises:
            InputError: it is none, or is damaged.
        """
        if self.dtype.kind == "f" or self.shape not in ((self.shape[0],), (self.shape[0], 1)):
            raise InputError(f"{self.path}: holds {self.contents}; labels are one whole number an image, 0x00000801")
        with self._stream() as stream:
            stream.read(self._offset)
            data = stream.read(self._num_bytes)
            if len(data) < self._num_bytes or stream.read(1):
                raise ValueError(f"its header says {self._num_bytes:,} bytes, and it has fewer or more")
        return np.frombuffer(data, self.dtype).astype(np.int64)

    def image_shape(self) -> tuple[int, int, int]:
        """The shape (H, W, C) of the images of a file of images.

        Raises:
            InputError: it is none.
        """
        shape = self.shape[1:] if len(self.shape) == 4 else (*self.shape[1:], 1)
        if self.dtype != np.uint8 or len(shape) != 3 or shape[2] not in (1, 3) or 0 in shape:
            raise InputError(f"{self.path}: holds {self.contents}; images are three dimensions of uint8, 0x00000803")
        return shape[0], shape[1], shape[2]

    def images(self) -> NDArray[np.uint8]:
        """The images, uint8 [N, H, W, C], which lie on the disk and not in memory.

        Raises:
            InputError: the file is damaged.
        """
        shape = (self.shape[0], *self.image_shape())
        with self._stream() as stream:
            if not self.is_compressed:
                return np.memmap(self.path, np.uint8, "r", self._offset, shape).view(np.ndarray)
            stream.read(self._offset)
            return map_stream(stream, self._num_bytes, str(self.path)).reshape(shape)
