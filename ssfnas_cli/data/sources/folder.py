"""The source `folder`: image files in class folders, which may be inside folders of splits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from registry import SOURCES, Options, SourceFacts
from ssfnas_cli.data.images import (
    BadImage,
    PixelRange,
    choose_size,
    printable,
    read_header,
    read_image,
    read_peak,
)
from ssfnas_cli.data.sources.base import Source, SourceSplit
from ssfnas_cli.data.sources.tree import IgnoredFiles, Layout, is_named_as_image, list_images, read_layout
from ssfnas_cli.errors import InputError

if TYPE_CHECKING:
    from ssfnas_cli.settings import MakeDatasetSettings


def _pair(value: Any) -> Any:
    """Parse `LOW:HIGH`, `LOW,HIGH` or a list of both to an increasing pair of numbers."""
    if value == "auto":
        return value
    try:
        low, high = (float(part) for part in (value.replace(",", ":").split(":") if isinstance(value, str) else value))
    except (TypeError, ValueError):
        raise ValueError("should look like LOW:HIGH, for example -1000:400") from None
    if not low < high:
        raise ValueError("LOW should be below HIGH")
    return low, high


class FolderOptions(Options):
    """Options of `folder`."""

    range: Annotated[Literal["auto"] | tuple[float, float], BeforeValidator(_pair)] = Field(
        "auto", description="LOW:HIGH, what is black and white in pixels of more than 8 bits; auto: 0:65535 of 16 bits"
    )


class FolderSplit(SourceSplit):
    """A split of image files.

    `names` are their paths below the root as bytes, one fixed-width array for each class: a million Python strings
    would take more memory than everything else.
    """

    def __init__(self, root: Path, names: list[NDArray[np.bytes_]], places: list[NDArray[np.int64]]):
        labels = np.repeat(np.arange(len(names)), [len(part) for part in names])
        super().__init__(labels, np.concatenate([np.empty(0, np.int64), *places]))
        self.root, self.names = root, names
        self._starts = np.cumsum([0, *map(len, names)])
        self.channels, self.size = 3, 0  # they are set after all headers have been read
        self.pixel_range: PixelRange = "auto"

    def name(self, index: int) -> str:
        """The path of an image below the root."""
        label = int(self.labels[index])
        return os.fsdecode(self.names[label][index - self._starts[label]])

    def read(self, index: int) -> NDArray[np.uint8]:
        name = self.name(index)
        return read_image(self.root / name, printable(name), self.channels, self.size, self.pixel_range)


@SOURCES.register(
    "folder",
    options=FolderOptions,
    facts=SourceFacts(root="a folder with CLASS/ in it, or train/CLASS/ and test/CLASS/"),
)
def open_folder(options: FolderOptions, settings: MakeDatasetSettings) -> Source:
    """Image files in `CLASS/*`, or in `train/CLASS/*`, `test/CLASS/*` and perhaps `val/CLASS/*`, by their names."""
    root = Path(settings.root)
    ignored = IgnoredFiles()
    layout = read_layout(root)
    for folder in {"", *layout.folders.values()}:
        ignored.add_beside(root / folder)
    scan = _Scan(root, options.range, ignored)
    splits = {name: scan.split(folder, layout.class_names) for name, folder in layout.folders.items()}
    notes = [*layout.notes, *ignored.lines()]
    for name in ("val", "test"):
        if name in splits and not len(splits[name]) and not scan.bad_in(layout.folders[name]):
            notes.append(f"{root / layout.folders[name]}: has no images: the split {name} is left out")
            del splits[name]
    scan.check(sum(map(len, splits.values())))
    size, note = choose_size(settings.image_size, scan.sizes)
    for split in splits.values():
        split.channels, split.size, split.pixel_range = 1 if scan.all_grey else 3, size, options.range
    notes.insert(0, _describe_layout(root, layout, splits))
    notes += [note] if note else []
    channels = 1 if scan.all_grey else 3
    return Source("folder", layout.class_names, channels, size, True, dict(splits), notes, scan.bad)


def _describe_layout(root: Path, layout: Layout, splits: dict[str, FolderSplit]) -> str:
    what = f"{len(layout.class_names)} class folder{'s' if len(layout.class_names) > 1 else ''}"
    if layout.is_flat:
        return f"{root}: {what} without splits, {len(splits['train'])} images"
    counts = ", ".join(f"{layout.folders[name]}/ with {len(split)}" for name, split in splits.items())
    return f"{root}: {what} in each split, images: {counts}"


class _Scan:
    """Reads the headers of all images of a folder, split by split, and records their sizes and kinds."""

    def __init__(self, root: Path, pixel_range: PixelRange, ignored: IgnoredFiles):
        self.root, self.pixel_range, self.ignored = root, pixel_range, ignored
        self.sizes: set[tuple[int, int]] = set()
        self.all_grey = True
        self.bad: list[BadImage] = []
        self._peak: int | None = None  # the largest 16-bit value found so far; the search ends at 2**15

    def split(self, folder: str, class_names: Sequence[str]) -> FolderSplit:
        """The readable images of a split. `folder` is relative to the root, and empty for the root itself."""
        names, places, place = [], [], 0
        for class_name in class_names:
            found, found_at = [], []
            for file in list_images(self.root / folder / class_name, self.ignored):
                name = "/".join(part for part in (folder, class_name, file) if part)
                if (is_image := self._read_header(name)) is None:
                    continue
                if is_image:
                    found.append(os.fsencode(name))
                    found_at.append(place)
                    self.ignored.num_nested += "/" in file
                place += 1
            names.append(np.array(found, dtype=np.bytes_))
            places.append(np.array(found_at, dtype=np.int64))
        return FolderSplit(self.root, names, places)

    def _read_header(self, name: str) -> bool | None:
        """Whether a file is a readable image; None if it neither is an image nor has the name of one."""
        path = self.root / name
        try:
            header = read_header(path, printable(name), self.pixel_range)
            if header.has_16_bits and self.pixel_range == "auto" and (self._peak or 0) < 2**15:
                self._peak = max(self._peak or 0, read_peak(path, printable(name)))
        except BadImage as bad:
            if not is_named_as_image(path.name):
                self.ignored.add(path.name)
                return None
            self.bad.append(bad)
            return False
        self.sizes.add((header.width, header.height))
        self.all_grey = self.all_grey and header.is_grey
        return True

    def bad_in(self, folder: str) -> bool:
        """Whether a split has unreadable images."""
        return any(bad.name.startswith(f"{printable(folder)}/") for bad in self.bad)

    def check(self, num_images: int) -> None:
        """Raise an error for a folder without images, or with 16-bit images that would all be dark."""
        if not num_images:
            raise InputError(f"{self.root}: has no readable image" + (f"; {self.bad[0]}" if self.bad else ""))
        if self._peak is not None and self._peak < 2**15:
            likely = 2 ** max(8, self._peak.bit_length()) - 1
            raise InputError(
                f"{self.root}: its 16-bit images have no value above {self._peak} of 65535, and would be nearly black: "
                f"state their range, for example --set source.range=0:{likely} (0:65535 leaves them as they are)"
            )
