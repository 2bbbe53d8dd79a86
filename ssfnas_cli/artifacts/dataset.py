"""The data set folder, which consists of `manifest.json` and the safetensors shards of each split.

A shard holds `images` uint8 [n, H, W, C], `labels` int64 [n] and `source_index` int64 [n], the position of each image
in the split of the source. The manifest lists every shard with its size and sha256. It contains no time, path or
version, so the same seed and source yield the same bytes. Its sha256 identifies the data set.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, ValidationError, model_validator

from ssfnas_cli.artifacts.files import (
    open_plain,
    parse_json,
    read_bytes,
    read_json,
    read_schema,
    sha256_bytes,
    sha256_file,
    validation_error,
)
from ssfnas_cli.artifacts.shards import (
    INT64,
    Count,
    Record,
    ShardInfo,
    check_size,
    errors_as_input_error,
    open_shard,
)
from ssfnas_cli.errors import InputError

SCHEMA = "ssfnas.dataset/1"
MANIFEST = "manifest.json"
SPLITS = ("train", "val", "test", "test_longtail")


class SplitInfo(Record):
    """The number of images per class, in class order, and the files that hold them."""

    counts: list[Count] = Field(description="images of each class, in class order")
    shards: list[ShardInfo] = Field(description="the files, in the order of their images")

    @model_validator(mode="after")
    def _rows_add_up(self) -> SplitInfo:
        if sum(self.counts) != sum(shard.rows for shard in self.shards):
            raise ValueError("the class counts and the rows of the shards do not add up to the same number")
        return self


class ShortClass(Record):
    """A class that has fewer training images than its share of the distribution."""

    name: str = Field(description="name of the class")
    share: Count = Field(description="training images that it should have")
    kept: Count = Field(description="training images that it has")


class Skipped(Record):
    """The number of images that could not be read, and the first of their names, relative to the source's root."""

    count: Count = Field(description="how many")
    files: list[str] = Field(description="the first names, relative to the root of the source")


class Manifest(Record):
    """The content of `manifest.json`. `mean` and `std` are per channel of the train split, on a scale of 0 to 1.

    `pixel_range` is what is black and white in the source's pixels of more than 8 bits, if its `range` says so. It is
    written only then, so that the other manifests keep their bytes, which identify a data set.
    """

    schema_name: Literal["ssfnas.dataset/1"] = Field("ssfnas.dataset/1", alias="schema")
    source: str = Field(description="name of the source that the images came from")
    dist: Literal["balance", "step", "exp", "natural"] = Field(description="profile of the class sizes in train")
    mu: float | None = Field(description="imbalance factor; null with natural and balance")
    n_max: Count = Field(description="training images of the largest class")
    seed: Count = Field(description="decided which images stay and which are set aside")
    class_names: Annotated[list[str], Field(min_length=1)] = Field(
        description="in class order, which is that of the labels"
    )
    channels: Literal[1, 3] = Field(description="1: grey, 3: RGB")
    image_size: Annotated[int, Field(ge=1, le=1 << 16)] = Field(description="side of the square images, in pixels")
    mean: list[float] = Field(description="of the training images, for each channel, pixels from 0 to 1")
    std: list[Annotated[float, Field(gt=0)]] = Field(description="standard deviation of the same")
    mirrorable: bool = Field(description="whether a mirrored image keeps its class")
    short_classes: list[ShortClass] = Field(description="classes with fewer images than dist gives them")
    skipped: Skipped = Field(description="images that could not be read")
    pixel_range: tuple[float, float] | None = Field(
        None,
        strict=False,
        description="what is black and white in pixels of more than 8 bits; only if the source says so",
    )
    splits: dict[Literal["train", "val", "test", "test_longtail"], SplitInfo] = Field(
        description="the splits by name; val only where there is one"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if missing := [name for name in ("train", "test", "test_longtail") if name not in self.splits]:
            raise ValueError(f"has no {missing[0]} split")
        if any(len(split.counts) != len(self.class_names) for split in self.splits.values()):
            raise ValueError("the splits' counts and the class names differ in number")
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError("mean and std need one number per channel")
        files = [shard.file for split in self.splits.values() for shard in split.shards]
        if len(set(files)) != len(files):
            raise ValueError("a shard is listed twice")
        return self

    def to_value(self) -> dict[str, Any]:
        """The value to write as JSON, with the keys in the order of the fields."""
        unsaid = {"pixel_range"} if self.pixel_range is None else set()
        return self.model_dump(by_alias=True, mode="json", exclude=unsaid)


class Split:
    """The images of one split, which are read through a memory map.

    It can be pickled. Each process then maps the files itself.

    Attributes:
        labels: int64 [n].
        source_index: int64 [n], the position of each image in the source.
        counts: images per class, in class order.
    """

    def __init__(self, folder: Path, info: SplitInfo, image_shape: tuple[int, int, int]):
        """Read and check the labels of the shards that `info` lists.

        Raises:
            InputError: a file is damaged. The message names it.
        """
        self.image_shape = image_shape
        self.counts = list(info.counts)
        self._shards = [open_shard(folder / shard.file, shard, image_shape) for shard in info.shards]
        self._starts = np.cumsum([0, *(shard.rows for shard in self._shards)])
        self._maps: dict[int, NDArray[np.uint8]] = {}
        self.labels = self._column("labels")
        self.source_index = self._column("source_index")
        if self.labels.size and not 0 <= self.labels.min() <= self.labels.max() < len(self.counts):
            raise InputError(f"{folder}: is damaged: a label is not in 0 to {len(self.counts) - 1}")
        if np.bincount(self.labels, minlength=len(self.counts)).tolist() != self.counts:
            raise InputError(f"{folder}: is damaged: its labels do not give the manifest's class counts")

    def _column(self, name: str) -> NDArray[np.int64]:
        parts = [np.empty(0, np.int64)]
        for shard in self._shards:
            with errors_as_input_error(shard.path):
                parts.append(np.fromfile(shard.path, INT64, shard.rows, offset=shard.offsets[name]))
        return np.concatenate(parts).astype(np.int64, copy=False)

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, indices: ArrayLike) -> NDArray[np.uint8]:
        """A copy of the images at the given positions of the split, uint8 [n, H, W, C], in the order of `indices`.

        Raises:
            IndexError: a position is outside the split.
            InputError: a file is missing or cannot be mapped.
        """
        places = np.asarray(indices, dtype=np.int64)
        if places.size and not 0 <= places.min() <= places.max() < len(self):
            raise IndexError(f"rows {places.min()} to {places.max()} of a split of {len(self)}")
        out = np.empty((places.size, *self.image_shape), np.uint8)
        owners = np.searchsorted(self._starts, places, side="right") - 1
        for owner in np.unique(owners):
            selected = owners == owner
            out[selected] = self._map(int(owner))[places[selected] - self._starts[owner]]
        return out

    def _map(self, number: int) -> NDArray[np.uint8]:
        if number not in self._maps:
            shard = self._shards[number]
            shape = (shard.rows, *self.image_shape)
            with errors_as_input_error(shard.path):
                try:
                    mapped = np.memmap(shard.path, np.uint8, "r", shard.offsets["images"], shape)
                except ValueError as error:  # the file has been truncated since it was opened
                    raise InputError(f"{shard.path}: has changed while in use: {error}") from None
            self._maps[number] = mapped.view(np.ndarray)  # indexing an np.memmap is microseconds slower per call
        return self._maps[number]

    def unmap(self) -> None:
        """Unmap the files, whose pages count as memory of this process. `rows` maps them again."""
        self._maps.clear()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}  # pickling a map would copy the contents of its file


class DataSet:
    """A data set folder whose manifest was read and whose shards have the right sizes.

    Attributes:
        path: the folder.
        manifest: its manifest.
        sha256: the manifest's sha256, which identifies the data set.
        class_names, num_classes, channels, image_size, mean, std: values of the manifest.
        splits: the names of the splits.
    """

    def __init__(self, path: Path, manifest: Manifest, sha256: str):
        """Use `DataSet.open` instead."""
        self.path, self.manifest, self.sha256 = path, manifest, sha256
        self.class_names = list(manifest.class_names)
        self.num_classes = len(self.class_names)
        self.channels, self.image_size = manifest.channels, manifest.image_size
        self.mean, self.std = list(manifest.mean), list(manifest.std)
        self.splits = [name for name in SPLITS if name in manifest.splits]

    @classmethod
    def open(cls, path: str | Path, splits: Collection[str] = SPLITS) -> DataSet:
        """Read the manifest of a data set folder and check that its shards exist and have the right sizes.

        Args:
            path: the folder.
            splits: those whose shards are checked; a reader that uses no others needs no others to be there.

        Raises:
            InputError: it is not a data set, has a newer schema, or a file is missing or truncated.
        """
        path = Path(path)
        _refuse_non_dataset(path)
        data = read_bytes(path / MANIFEST)
        manifest = _parse_manifest(data, str(path / MANIFEST))
        for shard in _shards(manifest, splits):
            check_size(path / shard.file, shard)
        return cls(path, manifest, sha256_bytes(data))

    @property
    def network_facts(self) -> dict[str, int]:
        """What the size of a network depends on: `num_classes`, `image_size` and `in_channels`."""
        return {"num_classes": self.num_classes, "image_size": self.image_size, "in_channels": self.channels}

    @property
    def held_out(self) -> list[str]:
        """The splits that are not trained on, in the order of `SPLITS`."""
        return [name for name in self.splits if name != "train"]

    def split(self, name: str) -> Split:
        """Open one of `splits`.

        Raises:
            InputError: the data set has no such split, or a shard is damaged.
        """
        for split, info in self.manifest.splits.items():
            if split == name:
                return Split(self.path, info, (self.image_size, self.image_size, self.channels))
        raise InputError(f"{self.path}: has no split '{name}'. Available: {', '.join(self.splits)}")

    def counts(self, name: str) -> list[int]:
        """The number of images per class of a split, in class order; empty if the data set has no such split."""
        return next((list(info.counts) for split, info in self.manifest.splits.items() if split == name), [])

    def verify(self, splits: Collection[str] = SPLITS) -> None:
        """Read the shards of these splits and compare their sha256 with the manifest.

        Raises:
            InputError: a shard is damaged. The message names the first one.
        """
        for shard in _shards(self.manifest, splits):
            file = self.path / shard.file
            check_size(file, shard)
            with errors_as_input_error(file):
                digest = sha256_file(file)
            if digest != shard.sha256:
                raise InputError(f"{file}: is damaged: its sha256 differs from the manifest's: make the data set again")


def _shards(manifest: Manifest, splits: Collection[str]) -> Iterator[ShardInfo]:
    for name, split in manifest.splits.items():
        if name in splits:
            yield from split.shards


def _refuse_non_dataset(path: Path) -> None:
    """Raise an error that says what the path is if it is not a data set folder."""
    with errors_as_input_error(path):
        is_folder, exists = path.is_dir(), path.exists()
    if not exists:
        raise InputError(f"{path}: no such data set folder: make one with 'ssfnas make-dataset -o {path}'")
    if not is_folder and path.name == MANIFEST:
        raise InputError(f"{path}: is a manifest: give the folder that holds it, {path.parent}")
    if not is_folder:
        start = _first_bytes(path)
        what = "a genotype" if b"ssfnas.genotype/" in start else "a file"
        raise InputError(f"{path}: is {what}, not a data set folder: make one with 'ssfnas make-dataset'")
    if not (path / MANIFEST).exists():
        what = "a run folder" if (path / "config.json").exists() else "a folder"
        raise InputError(f"{path}: is {what} without {MANIFEST}, not a data set: make one with 'ssfnas make-dataset'")


def _first_bytes(path: Path) -> bytes:
    with errors_as_input_error(path), open_plain(path) as stream:
        return stream.read(4096)


def is_data_set(folder: Path) -> bool:
    """Whether a folder holds the manifest of a data set, of this or another version of ssfnas."""
    try:
        value = read_json(folder / MANIFEST)
    except InputError:
        return False
    return isinstance(value, dict) and str(value.get("schema")).startswith(SCHEMA.partition("/")[0])


def _parse_manifest(data: bytes, where: str) -> Manifest:
    value = parse_json(data, where)
    schema = read_schema(value, where, SCHEMA)
    if schema != SCHEMA:
        raise InputError(f"{where}: is not a data set's manifest: its schema is {schema!r}, not '{SCHEMA}'")
    try:
        return Manifest.model_validate(value)
    except ValidationError as error:
        raise validation_error(where, error) from None
