"""Image files as the splits of a source: their names, their headers, which are read first, and their pixels."""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from registry import Options
from ssfnas_cli.console import printable
from ssfnas_cli.data.images import BadImage, PixelRange, choose_size, read_header, read_image, read_peak
from ssfnas_cli.data.sources.base import SourceSplit
from ssfnas_cli.errors import InputError


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


class FileOptions(Options):
    """Options of every source of image files."""

    range: Annotated[Literal["auto"] | tuple[float, float], BeforeValidator(_pair)] = Field(
        "auto", description="LOW:HIGH, what is black and white in pixels of more than 8 bits; auto: 0:65535 of 16 bits"
    )


class Names(Sequence[str]):
    """Names of files in one buffer. A million Python strings would take more memory than everything else."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._ends = array("q", [0])

    def append(self, name: str) -> None:
        """Add a name, which may hold bytes that are not UTF-8 as surrogates."""
        self._bytes += os.fsencode(name)
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            raise TypeError("names are read one by one")
        place = range(len(self))[index]
        return os.fsdecode(bytes(self._bytes[self._ends[place] : self._ends[place + 1]]))


class FileSplit(SourceSplit):
    """A split of image files. `names` are their paths below the root."""

    def __init__(self, root: Path, names: Names, labels: NDArray[np.int64], source_index: NDArray[np.int64]):
        super().__init__(labels, source_index)
        self.root, self.names = root, names
        self.channels, self.size = 3, 0  # they are set after all headers have been read
        self.pixel_range: PixelRange = "auto"

    def name(self, index: int) -> str:
        return str(self.names[index])

    def read(self, index: int) -> NDArray[np.uint8]:
        name = self.name(index)
        return read_image(self.root / name, printable(name), self.channels, self.size, self.pixel_range)


class HeaderScan:
    """Reads the headers of all images of a source and records their sizes and kinds."""

    def __init__(self, root: Path, pixel_range: PixelRange):
        self.root, self.pixel_range = root, pixel_range
        self.sizes: set[tuple[int, int]] = set()
        self.channels = 1  # 3 as soon as one image has colours
        self.bad: list[BadImage] = []
        self._peak: int | None = None  # the largest 16-bit value found so far; the search ends at 2**15

    def read(self, name: str) -> None:
        """Read the header of an image. `name` is its path below the root.

        Raises:
            BadImage: it cannot be read.
        """
        path = self.root / name
        header = read_header(path, printable(name), self.pixel_range)
        if header.has_16_bits and self.pixel_range == "auto" and (self._peak or 0) < 2**15:
            self._peak = max(self._peak or 0, read_peak(path, printable(name)))
        self.sizes.add((header.width, header.height))
        if not header.is_grey:
            self.channels = 3

    def configure(self, splits: Sequence[FileSplit], image_size: int | str) -> tuple[int, str | None]:
        """Set size and channels of the splits, and return the size and a line for the user if it was chosen here.

        Raises:
            InputError: there are no images, or only 16-bit ones that would all be dark, or their size does not do.
        """
        self._check(sum(map(len, splits)))
        size, note = choose_size(image_size, self.sizes)
        for split in splits:
            split.channels, split.size, split.pixel_range = self.channels, size, self.pixel_range
        return size, note

    def _check(self, num_images: int) -> None:
        if not num_images:
            raise InputError(f"{self.root}: has no readable image" + (f"; {self.bad[0]}" if self.bad else ""))
        if self._peak is not None and self._peak < 2**15:
            likely = 2 ** max(8, self._peak.bit_length()) - 1
            raise InputError(
                f"{self.root}: its 16-bit images have no value above {self._peak} of 65535, and would be nearly black: "
                f"state their range, for example --set source.range=0:{likely} (0:65535 leaves them as they are)"
            )
