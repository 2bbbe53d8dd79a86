"""What a source is: splits with labels that are known at once, and images that are read one by one."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from registry import SOURCES, Plugin, PluginError
from ssfnas_cli.data.images import BadImage, fit_array, printable
from ssfnas_cli.errors import InputError, UsageError

if TYPE_CHECKING:
    from ssfnas_cli.settings import MakeDatasetSettings

SPLITS = ("train", "val", "test")


class SourceSplit:
    """Labels int64 [n] in the source's order, and images on demand.

    `source_index` int64 [n] is each image's place in the source. It stays the same when a split is divided.
    """

    def __init__(self, labels: NDArray[np.int64], source_index: NDArray[np.int64] | None = None):
        self.labels = labels.astype(np.int64)
        self.source_index = np.arange(len(labels)) if source_index is None else source_index

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> NDArray[np.uint8]:
        """One image, uint8 [H, W, C] of the source's size and channels.

        Raises:
            BadImage: it cannot be read. InputError: the source as a whole cannot.
        """
        raise NotImplementedError

    def release(self) -> None:
        """Give back memory; the split can still be read."""


class ArraySplit(SourceSplit):
    """Images in memory, uint8 [n, H, W, C], resized to `size` when they are read."""

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


class PartOfSplit(SourceSplit):
    """Those images of a split whose places are given, int64 [m]."""

    def __init__(self, whole: SourceSplit, places: NDArray[np.int64]):
        super().__init__(whole.labels[places], whole.source_index[places])
        self._whole, self._places = whole, places

    def read(self, index: int) -> NDArray[np.uint8]:
        return self._whole.read(int(self._places[index]))

    def release(self) -> None:
        self._whole.release()


@dataclass
class Source:
    """A source whose layout has been read and checked.

    Attributes:
        splits: `train`, perhaps `test` (which is otherwise cut from train) and perhaps `val`.
        channels: 1 or 3. image_size: the side of the square images, in pixels.
        mirrorable: whether a mirrored image is still one of its class.
        notes: lines for the user. bad: images that cannot be read, which are in no split.
    """

    name: str
    class_names: list[str]
    channels: int
    image_size: int
    mirrorable: bool
    splits: dict[str, SourceSplit]
    notes: list[str] = field(default_factory=list)
    bad: list[BadImage] = field(default_factory=list)


def open_source(settings: MakeDatasetSettings) -> Source:
    """Read the layout of the source that the settings name, and check it.

    Raises:
        UsageError: no --root where one is needed, or one where none is read.
        InputError: the root is missing or not laid out as the source wants.
        PluginError: an unknown source, an option that it does not take, or a plugin that breaks its promises.
    """
    name, root = settings.source.name, settings.root
    plugin = SOURCES.get(name)
    if root and plugin.facts.root == "":
        raise UsageError(f"--root: the source {name} reads none: leave it out, or name another with --source")
    if plugin.facts.root and not root:
        raise UsageError(f"--root: source '{name}' needs {plugin.facts.root}")
    if root and not Path(root).exists():
        raise InputError(f"--root: {root} does not exist")
    source = plugin.factory(plugin.parse_options(settings.source.options()), settings)
    _check_promises(plugin, source)
    _check_names(source.class_names, where(settings))
    return source


def where(settings: MakeDatasetSettings) -> str:
    """How messages name the source."""
    return f"--root {settings.root}" if settings.root else f"--source {settings.source.name}"


def _check_promises(plugin: Plugin[Source], source: Source) -> None:
    """A source may come from a stranger: what the build relies on is checked here."""
    wrong = None
    if "train" not in source.splits or set(source.splits) - set(SPLITS):
        wrong = f"its splits are {', '.join(source.splits)}: 'train', and perhaps 'val' and 'test', are wanted"
    elif source.channels not in (1, 3):
        wrong = f"its images have {source.channels} channels: 1 or 3 are wanted"
    elif any(
        len(split) and not 0 <= split.labels.min() <= split.labels.max() < len(source.class_names)
        for split in source.splits.values()
    ):
        wrong = f"it has labels outside 0 to {len(source.class_names) - 1}, its classes"
    if wrong:
        raise PluginError(f"source '{plugin.name}' of {plugin.origin} cannot be used: {wrong}")


def _check_names(class_names: list[str], place: str) -> None:
    """Class names go into tables, file names and JSON, so they have to be text of one line.

    Raises:
        InputError: a name is not UTF-8, is empty or stands twice, or holds control characters.
    """
    for name in class_names:
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise InputError(f"{place}: the class '{printable(name)}' is not named in UTF-8: rename it")
        if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in name):
            raise InputError(f"{place}: the name of class '{printable(name)}' holds control characters: rename it")
    if "" in class_names or len(set(class_names)) != len(class_names):
        raise InputError(f"{place}: a class name is empty or stands twice: give every class a name of its own")
