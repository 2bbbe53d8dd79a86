"""Shards, the safetensors files of a data set. They are written image by image and checked before they are read.

A shard holds `images` uint8 [n, H, W, C], `labels` int64 [n] and `source_index` int64 [n].
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ssfnas_cli.artifacts.files import parse_json, reason
from ssfnas_cli.errors import InputError

DEFAULT_SHARD_BYTES = 64 * 2**20
MAX_HEADER_BYTES = 1 << 16
INT64: np.dtype[np.int64] = np.dtype("<i8")
UINT8: np.dtype[np.uint8] = np.dtype("u1")

Count = Annotated[int, Field(ge=0, le=2**40)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Record(BaseModel):
    """Base class of the parts of the manifest. It converts no types and forbids unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


class ShardInfo(Record):
    """A file of a split: its name in the folder, the number of its images, its size and its hash."""

    file: str = Field(description="its name in the folder")
    rows: Annotated[int, Field(ge=1, le=2**40)] = Field(description="images in it")
    bytes: Count = Field(description="size of the file")
    sha256: Digest = Field(description="of the file, which is checked before a training")

    @model_validator(mode="after")
    def _plain_name(self) -> ShardInfo:
        if self.file in ("", ".", "..") or any(mark in self.file for mark in "/\\\0:"):
            raise ValueError(f"the shard name {self.file!r} leads out of the folder")
        return self


class ShardWriter:
    """Writes a split image by image to shards `SPLIT-00000.safetensors`, … It holds one shard in memory."""

    def __init__(
        self,
        folder: Path,
        split: str,
        image_shape: tuple[int, int, int],
        shard_bytes: int = DEFAULT_SHARD_BYTES,
    ):
        """`image_shape` is (H, W, C). A shard has at most `shard_bytes` bytes, unless it holds only one image."""
        self.folder, self.split = folder, split
        self.rows_per_shard = max(1, shard_bytes // (math.prod(image_shape) + 16))
        # Memory of np.empty is allocated when it is written, so a large limit costs a small split nothing.
        self._images = np.empty((self.rows_per_shard, *image_shape), UINT8)
        self._labels = np.empty(self.rows_per_shard, INT64)
        self._sources = np.empty(self.rows_per_shard, INT64)
        self._rows = 0
        self.shards: list[ShardInfo] = []

    def add(self, image: NDArray[np.uint8], label: int, source_index: int) -> None:
        """Append one image, uint8 [H, W, C]."""
        assert image.dtype == np.uint8 and image.shape == self._images.shape[1:], (image.dtype, image.shape)
        self._images[self._rows] = image
        self._labels[self._rows] = label
        self._sources[self._rows] = source_index
        self._rows += 1
        if self._rows == self.rows_per_shard:
            self._flush()

    def close(self) -> list[ShardInfo]:
        """Write the remaining images and return all shards in order."""
        if self._rows:
            self._flush()
        return self.shards

    def _flush(self) -> None:
        """Write one shard in the safetensors format, without the second copy in memory that `save_file` would need."""
        tensors: list[tuple[str, str, NDArray[Any]]] = [
            ("labels", "I64", self._labels[: self._rows]),
            ("source_index", "I64", self._sources[: self._rows]),
            ("images", "U8", self._images[: self._rows]),
        ]
        header, end = {}, 0
        for name, dtype, tensor in tensors:
            header[name] = {"dtype": dtype, "shape": tensor.shape, "data_offsets": [end, end + tensor.nbytes]}
            end += tensor.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the format aligns the data to 8 bytes
        file = f"{self.split}-{len(self.shards):05d}.safetensors"
        digest = hashlib.sha256()
        with (self.folder / file).open("wb") as stream:
            parts: list[Any] = [
                len(text).to_bytes(8, "little"),
                text,
                *(tensor.data for _, _, tensor in tensors),
            ]
            for part in parts:
                stream.write(part)
                digest.update(part)
        size = 8 + len(text) + end
        self.shards.append(ShardInfo(file=file, rows=self._rows, bytes=size, sha256=digest.hexdigest()))
        self._rows = 0


class Shard(NamedTuple):
    """A checked shard, with the offset of each tensor in bytes from the start of the file."""

    path: Path
    rows: int
    offsets: dict[str, int]


@contextlib.contextmanager
def errors_as_input_error(path: Path) -> Iterator[None]:
    """Convert an OSError into an InputError that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: is missing: make the data set again with 'ssfnas make-dataset'") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error


def check_size(path: Path, info: ShardInfo) -> None:
    """Check that a shard is a file in the folder and has the size that the manifest states.

    Raises:
        InputError: it is not. The message names the file.
    """
    with errors_as_input_error(path):
        if path.resolve().parent != path.parent.resolve():
            raise InputError(f"{path}: is a link that leads out of the data set folder")
        size = path.stat().st_size
        if not path.is_file():
            raise InputError(f"{path}: is not a file")
    if size != info.bytes:
        raise InputError(
            f"{path}: has {size:,} bytes, the manifest says {info.bytes:,}: copy the data set whole or make it again"
        )


def open_shard(path: Path, info: ShardInfo, image_shape: tuple[int, int, int]) -> Shard:
    """Check a shard's header against the manifest.

    Raises:
        InputError: the header is not a safetensors header or does not describe the expected tensors.
    """
    check_size(path, info)
    with errors_as_input_error(path), path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER_BYTES, info.bytes - 8):
            raise InputError(f"{path}: is damaged or no safetensors file: its header has {length:,} bytes")
        header = parse_json(stream.read(length), f"{path}: header")
    rows = [info.rows]
    expected: dict[str, tuple[str, int, list[int]]] = {
        "images": ("U8", 1, [*rows, *image_shape]),
        "labels": ("I64", 8, rows),
        "source_index": ("I64", 8, rows),
    }
    offsets = {}
    for name, (dtype, width, shape) in expected.items():
        entry = header.get(name) if isinstance(header, dict) else None
        if not isinstance(entry, dict) or entry.get("dtype") != dtype or entry.get("shape") != shape:
            raise InputError(f"{path}: is damaged: its header has no '{name}' of {dtype} {shape}")
        begin, size = _begin(entry.get("data_offsets")), math.prod(shape) * width
        if entry.get("data_offsets") != [begin, begin + size] or 8 + length + begin + size > info.bytes:
            raise InputError(f"{path}: is damaged: its header places '{name}' outside the file")
        offsets[name] = 8 + length + begin
    return Shard(path, info.rows, offsets)


def _begin(offsets: Any) -> int:
    """The offset at which a tensor begins; 0 if it is invalid, in which case the caller's comparison fails."""
    first = offsets[0] if isinstance(offsets, list) and offsets else 0
    return first if type(first) is int and first >= 0 else 0
