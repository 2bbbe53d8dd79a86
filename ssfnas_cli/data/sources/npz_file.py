"""Careful reading of npz files: headers come first, arrays are read one at a time, and pickles never."""

from __future__ import annotations

import contextlib
import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ssfnas_cli.artifacts.files import reason
from ssfnas_cli.errors import InputError

MAX_HEADER_BYTES = 1 << 16
MAX_INFLATION = 1100  # deflate expands a byte to at most 1,032 bytes


class NpzFile:
    """The arrays of an npz file. `keys` are their names.

    Every method may raise an InputError of one line that names the file and the key.
    """

    def __init__(self, path: Path):
        self.path = path
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: cannot be read: it is not a regular file, and source 'npz' wants an npz file")
        with self._reading("its list of arrays"), zipfile.ZipFile(path) as archive:
            self.keys = {name.removesuffix(".npy") for name in archive.namelist()}

    @contextlib.contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except MemoryError:
            raise InputError(f"{self.path}: {what} does not fit in memory") from None
        # zipfile raises a RuntimeError or NotImplementedError for an encrypted member or an unknown compression.
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
            why = " ".join(reason(error).split())
            raise InputError(f"{self.path}: {what} cannot be read, is it a whole npz file? {why}") from error

    @contextlib.contextmanager
    def _member(self, key: str) -> Iterator[tuple[IO[bytes], zipfile.ZipInfo]]:
        if key not in self.keys:
            raise InputError(f"{self.path}: has no '{key}': source 'npz' wants MedMNIST's keys, train_images and so on")
        with self._reading(f"'{key}'"), zipfile.ZipFile(self.path) as archive:
            info = archive.getinfo(f"{key}.npy")
            stored = min(info.compress_size, self.path.stat().st_size)
            most = stored * MAX_INFLATION if info.compress_type == zipfile.ZIP_DEFLATED else None
            if most is not None and info.file_size > most:
                raise ValueError(f"{stored:,} bytes cannot hold the {info.file_size:,} that they claim to")
            with archive.open(info) as stream:
                yield stream, info

    def _header(self, key: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        with self._member(key) as (stream, _):
            version = npy.read_magic(stream)
            width = 2 if version == (1, 0) else 4
            start = stream.tell()
            length = int.from_bytes(stream.read(width), "little")
            if length > MAX_HEADER_BYTES:  # numpy would allocate it before checking
                raise ValueError(f"its header claims {length:,} bytes")
            stream.seek(start)
            if version == (1, 0):
                shape, _, dtype = npy.read_array_header_1_0(stream)
            else:
                shape, _, dtype = npy.read_array_header_2_0(stream)
        return shape, dtype

    def _array(self, key: str) -> NDArray[Any]:
        shape, dtype = self._header(key)
        wanted = math.prod(shape) * dtype.itemsize
        with self._member(key) as (stream, info):
            if info.file_size < wanted:
                raise ValueError(f"its header wants {wanted:,} bytes, and it has {info.file_size:,}")
            array = npy.read_array(stream, allow_pickle=False)
            # zipfile checks the checksum only at the end of the member.
            if stream.read(1):
                raise ValueError("bytes follow the array")
        return array

    def has_split(self, split: str) -> bool:
        """Whether the file has the images or the labels of a split."""
        return bool({f"{split}_images", f"{split}_labels"} & self.keys)

    def image_shape(self, split: str) -> tuple[int, int, int, int]:
        """The shape (N, H, W, C) of the images of a split, from the header. N may be 0."""
        key = f"{split}_images"
        shape, dtype = self._header(key)
        if shape[:1] == (0,):  # an array from an empty list has no other dimensions and an arbitrary type
            return 0, 0, 0, 1
        if dtype != np.uint8:
            raise InputError(f"{self.path}: '{key}' holds {dtype}, not uint8: scale the images to 0 to 255")
        whole = shape if len(shape) == 4 else (*shape, 1)
        if len(whole) != 4 or whole[3] not in (1, 3) or 0 in whole:
            raise InputError(f"{self.path}: '{key}' has shape {shape}, not [N, H, W] or [N, H, W, 3]")
        return whole[0], whole[1], whole[2], whole[3]

    def images(self, split: str) -> NDArray[np.uint8]:
        """The images of a split, uint8 [N, H, W, C]."""
        return self._array(f"{split}_images").reshape(self.image_shape(split))

    def labels(self, split: str, num_images: int) -> NDArray[np.int64]:
        """The labels of a split, int64 [N], from an array [N] or [N, 1]."""
        key = f"{split}_labels"
        shape, dtype = self._header(key)
        if num_images == 0 and shape[:1] == (0,):
            return np.empty(0, np.int64)
        if len(shape) == 2 and shape[1] > 1:
            raise InputError(f"{self.path}: '{key}' has {shape[1]} labels an image: multi-label data is not supported")
        if shape not in ((num_images,), (num_images, 1)):
            raise InputError(f"{self.path}: '{key}' has shape {shape}, for {num_images} images")
        if dtype.kind not in "iu":
            raise InputError(f"{self.path}: '{key}' holds {dtype}, not whole numbers")
        values = self._array(key).reshape(-1)
        if values.size and (values.min() < 0 or values.max() >= 2**31):
            raise InputError(f"{self.path}: '{key}' has labels {values.min()} to {values.max()}: number classes from 0")
        return values.astype(np.int64)
