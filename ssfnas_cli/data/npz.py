"""A MedMNIST-style npz read with care: headers first, arrays one at a time, never a pickle."""

from __future__ import annotations

import contextlib
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


class NpzFile:
    """An npz file's arrays by key. `keys` are the names of its arrays.

    Every method raises InputError, one line that names the file and the key.
    """

    def __init__(self, path: Path):
        self.path = path
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
        # RuntimeError and NotImplementedError: an encrypted or oddly compressed member.
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
            why = " ".join(reason(error).split())
            raise InputError(f"{self.path}: {what} cannot be read, is it a whole npz file? {why}") from error

    @contextlib.contextmanager
    def _member(self, key: str) -> Iterator[IO[bytes]]:
        if key not in self.keys:
            raise InputError(f"{self.path}: has no '{key}': source 'npz' wants MedMNIST's keys, train_images and so on")
        with (
            self._reading(f"'{key}'"),
            zipfile.ZipFile(self.path) as archive,
            archive.open(f"{key}.npy") as stream,
        ):
            yield stream

    def _header(self, key: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        with self._member(key) as stream:
            version = npy.read_magic(stream)
            if version == (1, 0):
                shape, _, dtype = npy.read_array_header_1_0(stream)
            else:
                shape, _, dtype = npy.read_array_header_2_0(stream)
        return shape, dtype

    def _array(self, key: str) -> NDArray[Any]:
        with self._member(key) as stream:
            array = npy.read_array(stream, allow_pickle=False)
            # Only at the member's end does zipfile compare the checksum.
            if stream.read(1):
                raise ValueError("bytes follow the array")
        return array

    def image_shape(self, split: str) -> tuple[int, int, int, int]:
        """(N, H, W, C) of a split's images, from the header."""
        key = f"{split}_images"
        shape, dtype = self._header(key)
        if dtype != np.uint8:
            raise InputError(f"{self.path}: '{key}' holds {dtype}, not uint8: scale the images to 0 to 255")
        if len(shape) == 3:
            shape = (*shape, 1)
        if len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape:
            raise InputError(f"{self.path}: '{key}' has shape {shape}, not [N, H, W] or [N, H, W, 3]")
        return shape[0], shape[1], shape[2], shape[3]

    def images(self, split: str) -> NDArray[np.uint8]:
        """uint8 [N, H, W, C] of a split."""
        return self._array(f"{split}_images").reshape(self.image_shape(split))

    def labels(self, split: str, num_images: int) -> NDArray[np.int64]:
        """int64 [N] of a split, from [N] or [N, 1]."""
        key = f"{split}_labels"
        shape, dtype = self._header(key)
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
