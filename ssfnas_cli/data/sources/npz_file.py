"""Careful reading of npz files: headers come first, images are never in memory as a whole, and pickles never."""

from __future__ import annotations

import contextlib
import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ssfnas_cli.artifacts.files import reason
from ssfnas_cli.data.sources.spool import MAX_INFLATION, map_stream
from ssfnas_cli.errors import InputError, SsfnasError

MAX_HEADER_BYTES = 1 << 16


class Header(NamedTuple):
    """What the header of an array says."""

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype[Any]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


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
        except SsfnasError:
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

    def _header(self, key: str) -> Header:
        with self._member(key) as (stream, _):
            return _read_header(stream)

    def _array(self, key: str) -> NDArray[Any]:
        """A small array, in memory."""
        wanted = self._header(key).num_bytes
        with self._member(key) as (stream, info):
            if info.file_size < wanted:
                raise ValueError(f"its header wants {wanted:,} bytes, and it has {info.file_size:,}")
            array = npy.read_array(stream, allow_pickle=False)
            # zipfile checks the checksum only at the end of the member.
            if stream.read(1):
                raise ValueError("bytes follow the array")
        return array

    def _mapped_array(self, key: str) -> NDArray[np.uint8]:
        """An array of bytes of any size, unpacked on the disk."""
        with self._member(key) as (stream, info):
            header = _read_header(stream)
            if info.file_size < header.num_bytes:
                raise ValueError(f"its header wants {header.num_bytes:,} bytes, and it has {info.file_size:,}")
            pixels = map_stream(stream, header.num_bytes, f"{self.path}: '{key}'")
        return pixels.reshape(header.shape, order="F" if header.is_fortran else "C")

    def has_split(self, split: str) -> bool:
        """Whether the file has the images or the labels of a split."""
        return bool({f"{split}_images", f"{split}_labels"} & self.keys)

    def image_shape(self, split: str) -> tuple[int, int, int, int]:
        """The shape (N, H, W, C) of the images of a split, from the header. N may be 0."""
        key = f"{split}_images"
        shape, _, dtype = self._header(key)
        if shape[:1] == (0,):  # an array from an empty list has no other dimensions and an arbitrary type
            return 0, 0, 0, 1
        if dtype != np.uint8:
            raise InputError(f"{self.path}: '{key}' holds {dtype}, not uint8: scale the images to 0 to 255")
        whole = shape if len(shape) == 4 else (*shape, 1)
        if len(shape) == 4 and shape[3] == 4 and min(shape[1:3]) > 4:
            raise InputError(f"{self.path}: '{key}' holds images of 4 channels: leave out the alpha, [N, H, W, 3]")
        if len(shape) == 5 or (len(whole) == 4 and min(whole) > 3):
            sides = "x".join(map(str, shape[1:4]))
            raise InputError(
                f"{self.path}: '{key}' holds volumes of {sides} voxels, and only images of two dimensions can be "
                "searched: cut slices from them, [N, H, W]"
            )
        if len(whole) != 4 or whole[3] not in (1, 3) or 0 in whole:
            raise InputError(f"{self.path}: '{key}' has shape {shape}, not [N, H, W] or [N, H, W, 3]")
        return whole[0], whole[1], whole[2], whole[3]

    def images(self, split: str) -> NDArray[np.uint8]:
        """The images of a split, uint8 [N, H, W, C], which lie on the disk and not in memory."""
        mapped = self._mapped_array(f"{split}_images")
        return mapped if mapped.ndim == 4 else mapped[..., None]

    def labels(self, split: str, num_images: int) -> NDArray[np.int64]:
        """The labels of a split, int64 [N], from an array [N] or [N, 1]."""
        key = f"{split}_labels"
        shape, _, dtype = self._header(key)
        if num_images == 0 and shape[:1] == (0,):
            return np.empty(0, np.int64)
        if len(shape) == 2 and shape[1] > 1:
            raise InputError(
                f"{self.path}: '{key}' has {shape[1]} labels an image: multi-label data is not supported, because "
                "every loss and figure here takes one class an image; of one-hot labels give the argmax"
            )
        if shape not in ((num_images,), (num_images, 1)):
            raise InputError(f"{self.path}: '{key}' has shape {shape}, for {num_images} images")
        if dtype.kind not in "iu":
            raise InputError(f"{self.path}: '{key}' holds {dtype}, not whole numbers")
        values = self._array(key).reshape(-1)
        if values.size and (values.min() < 0 or values.max() >= 2**31):
            raise InputError(f"{self.path}: '{key}' has labels {values.min()} to {values.max()}: number classes from 0")
        return values.astype(np.int64)


def _read_header(stream: IO[bytes]) -> Header:
    """Read the header of an array, up to its first byte."""
    version = npy.read_magic(stream)
    width = 2 if version == (1, 0) else 4
    start = stream.tell()
    length = int.from_bytes(stream.read(width), "little")
    if length > MAX_HEADER_BYTES:  # numpy would allocate it before checking
        raise ValueError(f"its header claims {length:,} bytes")
    stream.seek(start)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    return Header(*read(stream))
