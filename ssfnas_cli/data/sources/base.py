"""The interface of sources: splits whose labels are known in advance and whose images are read one by one."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from registry import SOURCES, Plugin, PluginError
from ssfnas_cli.artifacts.dataset import is_data_set
from ssfnas_cli.console import printable
from ssfnas_cli.data.images import BadImage, PixelRange, fit_array
from ssfnas_cli.errors import InputError, UsageError

if TYPE_CHECKING:
    from ssfnas_cli.settings import MakeDatasetSettings

SPLITS = ("train", "val", "test")


class SourceSplit:
    """A split, with labels int64 [n] in the order of the source and images on demand.

    `source_index` int64 [n] is the position of each image in the source, even if the split was divided.
    """

    def __init__(self, labels: NDArray[np.int64], source_index: NDArray[np.int64] | None = None):
        self.labels = labels.astype(np.int64)
        self.source_index = np.arange(len(labels)) if source_index is None else source_index

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Read an image, uint8 [H, W, C], with the size and channels of the source.

        Raises:
            BadImage: the image cannot be read.
            InputError: the source cannot be read.
        """
        raise NotImplementedError

    def name(self, index: int) -> str:
        """What an image is called in messages: a path below the root, or its number in the source."""
        return f"image {int(self.source_index[index])}"

    def release(self) -> None:
        """Free memory. Images can still be read afterwards."""


class ArraySplit(SourceSplit):
    """Images in memory, uint8 [n, H, W, C], which are resized to `size` when they are read."""

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        size: int,
        source_index: NDArray[np.int64] | None = None,
    ):
        super().__init__(labels, source_index)
        self._images, self._size = images, size

    def read(self, index: int) -> NDArray[np.uint8]:
        return fit_array(self._images[index], self._size)


class MappedSplit(SourceSplit):
    """Images that are opened at the first read: `open_images()` gives uint8 [n, H, W, C], on the disk or in memory."""

    def __init__(self, open_images: Callable[[], NDArray[np.uint8]], labels: NDArray[np.int64], size: int):
        super().__init__(labels)
        self._open_images, self._size = open_images, size
        self._images: NDArray[np.uint8] | None = None

    def read(self, index: int) -> NDArray[np.uint8]:
        if self._images is None:
            self._images = self._open_images()
        return fit_array(self._images[index], self._size)

    def release(self) -> None:
        self._images = None


class PartOfSplit(SourceSplit):
    """The images of a split at the given positions, int64 [m]."""

    def __init__(self, whole: SourceSplit, places: NDArray[np.int64]):
        super().__init__(whole.labels[places], whole.source_index[places])
        self._whole, self._places = whole, places

    def read(self, index: int) -> NDArray[np.uint8]:
        return self._whole.read(int(self._places[index]))

    def name(self, index: int) -> str:
        return self._whole.name(int(self._places[index]))

    def release(self) -> None:
        self._whole.release()


@dataclass
class Source:
    """A source whose layout has been read and checked.

    Attributes:
        name: the name of the source.
        class_names: the names of the classes, in the order of the labels.
        channels: 1 or 3.
        image_size: the side of the square images, in pixels.
        mirrorable: whether a mirrored image belongs to the same class.
        splits: `train`, optionally `test` (which is otherwise cut from train), and optionally `val`.
        notes: lines for the user.
        bad: images that cannot be read, which are in no split.
        pixel_range: what is black and white in pixels of more than 8 bits, in image files.
    """

    name: str
    class_names: list[str]
    channels: int
    image_size: int
    mirrorable: bool
    splits: dict[str, SourceSplit]
    notes: list[str] = field(default_factory=list)
    bad: list[BadImage] = field(default_factory=list)
    pixel_range: PixelRange = "auto"


def shared_channels(channels: Iterable[int], place: str | Path) -> int:
    """The number of channels that all splits have.

    Raises:
        InputError: they differ. The message begins with `place`.
    """
    numbers = set(channels)
    if len(numbers) > 1:
        raise InputError(f"{place}: its splits differ in channels: make all of them grey or all of them RGB")
    return numbers.pop()


def open_source(settings: MakeDatasetSettings) -> Source:
    """Read and check the layout of the source that the settings name.

    Raises:
        UsageError: --root is missing although the source needs it, or given although it needs none.
        InputError: the root is missing or does not have the layout that the source expects.
        PluginError: the source is unknown, does not take an option, or returns invalid splits.
    """
    check_root(settings)
    plugin = SOURCES.get(settings.source.name)
    source = plugin.build(plugin.parse_options(settings.source.options()), settings)
    _check_source(plugin, source)
    _check_names(source.class_names, where(settings))
    return source


def check_root(settings: MakeDatasetSettings) -> None:
    """Check that a root is given if the source needs one, and that it is there; what lies in it is not read.

    Raises:
        UsageError: --root is missing although the source needs it, or given although it needs none.
        InputError: the root is missing.
        PluginError: the source is unknown.
    """
    name, root = settings.source.name, settings.root
    wanted = SOURCES.get(name).facts.root
    if root and wanted == "":
        raise UsageError(f"--root: the source {name} reads none: leave it out, or name another with --source")
    if wanted and not root:
        raise UsageError(f"--root: source '{name}' needs {wanted}")
    if root and not Path(root).exists():
        raise InputError(f"--root: {root} does not exist")


def where(settings: MakeDatasetSettings) -> str:
    """The name of the source in messages."""
    return f"--root {settings.root}" if settings.root else f"--source {settings.source.name}"


def _check_source(plugin: Plugin[Source], source: Source) -> None:
    """Check what a third-party source returned, because the build relies on it."""
    fault = None
    if "train" not in source.splits or set(source.splits) - set(SPLITS):
        fault = f"its splits are {', '.join(source.splits)}: 'train', and perhaps 'val' and 'test', are wanted"
    elif source.channels not in (1, 3):
        fault = f"its images have {source.channels} channels: 1 or 3 are wanted"
    elif any(
        len(split) and not 0 <= split.labels.min() <= split.labels.max() < len(source.class_names)
        for split in source.splits.values()
    ):
        fault = f"it has labels outside 0 to {len(source.class_names) - 1}, its classes"
    if fault:
        raise PluginError(f"source '{plugin.name}' of {plugin.origin} cannot be used: {fault}")


def refuse_output_in_source(settings: MakeDatasetSettings, output: Path) -> None:
    """Check that an output is neither the source itself nor around it nor one of its class folders.

    It could not be made there without moving images away, and later reads would take the data set for a class.

    Raises:
        UsageError: it is.
    """
    if not settings.root:
        return
    root, path = Path(settings.root).resolve(), output.resolve()
    if path == root or path in root.parents:
        raise UsageError(f"-o: {output} is or holds the images of --root {settings.root}: give another folder with -o")
    if root in path.parents and path.is_dir() and not is_data_set(path):
        raise UsageError(f"-o: {output} is a part of --root {settings.root}: give another folder with -o")


def _check_names(class_names: list[str], place: str) -> None:
    """Check that class names are text of one line, because they go into tables, file names and JSON.

    Raises:
        InputError: a name is not UTF-8, is empty, occurs twice, or contains control characters.
    """
    for name in class_names:
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise InputError(f"{place}: the class '{printable(name)}' is not named in UTF-8: rename it")
        if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in name):
            raise InputError(f"{place}: the name of class '{printable(name)}' holds control characters: rename it")
    if "" in class_names or len(set(class_names)) != len(class_names):
        raise InputError(f"{place}: a class name is empty or stands twice: give every class a name of its own")
