"""Where images come from: scikit-learn's digits, CIFAR, a folder of image files, a MedMNIST-style npz.

A source has splits `train`, `test` and perhaps `val`, with labels known at once and images read one by one.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssfnas_cli.artifacts.files import reason
from ssfnas_cli.data.images import BadImage, choose_size, fit_array, read_header, read_image
from ssfnas_cli.data.longtail import class_order
from ssfnas_cli.errors import InputError, UsageError

SOURCES = ("digits", "cifar10", "cifar100", "folder", "npz")


class SourceSplit:
    """Labels int64 [n] in the source's order, and images on demand.

    `source_index` int64 [n] is each image's place in the source, which outlives a split made by us.
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


@dataclass
class Source:
    """A source whose layout has been read and checked; `notes` are lines for the user."""

    name: str
    class_names: list[str]
    channels: int
    image_size: int
    mirrorable: bool
    splits: dict[str, SourceSplit]
    notes: list[str] = field(default_factory=list)


def open_source(name: str, root: Path | None, image_size: int | str, seed: int) -> Source:
    """Read and check a source's layout; `seed` draws the test images where the source has only one set.

    Raises:
        UsageError: an unknown source, no --root where one is needed, an impossible --image-size.
        InputError: the root is missing or not laid out as the source wants.
    """
    if name not in SOURCES:
        raise UsageError(f"--source: unknown source '{name}'. Available: {', '.join(SOURCES)}")
    if name == "digits":
        return _open_digits(image_size, seed)
    if root is None:
        what = {"folder": "a folder with train/CLASS/ and test/CLASS/", "npz": "an npz file"}
        raise UsageError(f"--root: source '{name}' needs {what.get(name, 'the folder of its files')}")
    if not root.exists():
        raise InputError(f"--root: {root} does not exist")
    openers: dict[str, Callable[[], Source]] = {
        "cifar10": lambda: _open_cifar("cifar10", root, image_size),
        "cifar100": lambda: _open_cifar("cifar100", root, image_size),
        "folder": lambda: _open_folder(root, image_size),
        "npz": lambda: _open_npz(root, image_size),
    }
    return openers[name]()


class ArraySplit(SourceSplit):
    """Images that lie in memory, uint8 [n, H, W, C]."""

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


def _open_digits(image_size: int | str, seed: int) -> Source:
    """scikit-learn's 1,797 digits, 8x8 grey; a fifth of each class, drawn by the seed, is the test set."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, :, :, None]
    labels = digits.target.astype(np.int64)
    in_test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        order = class_order(np.flatnonzero(labels == label), seed, "holdout", label)
        in_test[order[: len(order) // 5]] = True
    size, _ = choose_size(image_size, {(8, 8)})
    places = {"train": np.flatnonzero(~in_test), "test": np.flatnonzero(in_test)}
    splits: dict[str, SourceSplit] = {
        name: ArraySplit(images[index], labels[index], size, index) for name, index in places.items()
    }
    # A mirrored 2 or 5 is no digit, or another one.
    return Source("digits", [str(label) for label in range(10)], 1, size, False, splits)


def _open_cifar(name: str, root: Path, image_size: int | str) -> Source:
    """CIFAR through torchvision's reader, which checks the published md5 sums; downloaded when missing.

    The reader unpickles: the one exception to "no pickle", and only for files of those sums.
    """
    size, _ = choose_size(image_size, {(32, 32)})
    folder = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[name]
    try:
        from torchvision import datasets

        reader = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
        # torchvision prints on stdout, which is for data.
        with contextlib.redirect_stdout(sys.stderr):
            parts = {part: reader(str(root), train=part == "train", download=True) for part in ("train", "test")}
    except Exception as error:
        why = " ".join(reason(error).split())
        raise InputError(
            f"--root: {root} has no whole {folder} and the download failed ({why}): put {folder} there"
        ) from error
    splits: dict[str, SourceSplit] = {
        part: ArraySplit(read.data, np.asarray(read.targets, dtype=np.int64), size) for part, read in parts.items()
    }
    return Source(name, list(parts["train"].classes), 3, size, True, splits)


class FolderSplit(SourceSplit):
    """Image files; `names` are their paths below the root."""

    def __init__(self, root: Path, names: list[str], labels: NDArray[np.int64]):
        super().__init__(labels)
        self.root, self.names = root, names
        self.channels, self.size = 3, 0  # set once every header has been seen

    def read(self, index: int) -> NDArray[np.uint8]:
        name = self.names[index]
        return read_image(self.root / name, printable(name), self.channels, self.size)


def printable(name: str) -> str:
    """A file name that can be printed and written as UTF-8, whatever bytes it has."""
    return name.encode("utf-8", "backslashreplace").decode()


def _open_folder(root: Path, image_size: int | str) -> Source:
    """`train/CLASS/*`, `test/CLASS/*` and perhaps `val/CLASS/*`, in the order of their names."""
    if not root.is_dir():
        raise InputError(f"--root: {root} is not a folder: source 'folder' wants one with train/CLASS/ and test/CLASS/")
    names = [name for name in ("train", "val", "test") if name != "val" or (root / "val").is_dir()]
    classes = {name: _visible(root / name, folders=True) for name in names}
    class_names = classes["train"]
    if not class_names:
        raise InputError(f"{root / 'train'}: has no class folders: source 'folder' wants train/CLASS/ and test/CLASS/")
    for name in names:
        if odd := sorted(set(classes[name]) ^ set(class_names)):
            here, there = (name, "train") if odd[0] in classes[name] else ("train", name)
            raise InputError(
                f"{root}: class folder '{printable(odd[0])}' is in {here} but not in {there}: "
                "every split needs the same classes"
            )
    if bad := next((name for name in class_names if printable(name) != name), None):
        raise InputError(f"{root}: the class folder '{printable(bad)}' is not named in UTF-8: rename it")
    splits = {name: _list_files(root, name, class_names) for name in names}
    sizes, channels = _scan_headers(root, list(splits.values()))
    size, note = choose_size(image_size, sizes)
    for split in splits.values():
        split.channels, split.size = channels, size
    return Source("folder", class_names, channels, size, True, dict(splits), [note] if note else [])


def _visible(folder: Path, folders: bool) -> list[str]:
    """Sorted names of a folder's folders, or of its files; hidden ones, sockets and the like are not seen."""
    try:
        with os.scandir(folder) as entries:
            shown = [entry for entry in entries if not entry.name.startswith(".")]
            if folders:
                return sorted(entry.name for entry in shown if entry.is_dir())
            if nested := next((entry.name for entry in shown if entry.is_dir()), None):
                raise InputError(f"{folder / printable(nested)}: is a folder inside a class folder: move its images up")
            # A dangling link is listed, so that it is reported like any other file that cannot be read.
            return sorted(entry.name for entry in shown if entry.is_file() or entry.is_symlink())
    except FileNotFoundError:
        raise InputError(f"{folder}: no such folder: source 'folder' wants train/CLASS/ and test/CLASS/") from None
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {reason(error)}") from error


def _list_files(root: Path, split: str, class_names: Sequence[str]) -> FolderSplit:
    names, labels = [], []
    for label, class_name in enumerate(class_names):
        files = _visible(root / split / class_name, folders=False)
        names += [f"{split}/{class_name}/{file}" for file in files]
        labels += [label] * len(files)
    return FolderSplit(root, names, np.array(labels, dtype=np.int64))


def _scan_headers(root: Path, splits: Sequence[FolderSplit]) -> tuple[set[tuple[int, int]], int]:
    """Sizes and channels over all readable images; the bad ones come up when they are read."""
    sizes: set[tuple[int, int]] = set()
    all_grey, first_bad = True, None
    for split in splits:
        for name in split.names:
            try:
                header = read_header(root / name, printable(name))
            except BadImage as bad:
                first_bad = first_bad or bad
                continue
            sizes.add((header.width, header.height))
            all_grey = all_grey and header.is_grey
    if not sizes:
        raise InputError(f"{root}: has no readable image" + (f"; {first_bad}" if first_bad else ""))
    return sizes, 1 if all_grey else 3


def _open_npz(path: Path, image_size: int | str) -> Source:
    """MedMNIST's keys: `{train,val,test}_{images,labels}`, images uint8 [N, H, W] or [N, H, W, 3]."""
    from ssfnas_cli.data.npz import NpzFile

    file = NpzFile(path)
    names = [name for name in ("train", "val", "test") if name != "val" or "val_images" in file.keys]
    shapes = {name: file.image_shape(name) for name in names}
    if len({shape[3] for shape in shapes.values()}) > 1:
        raise InputError(f"{path}: its splits differ in channels: make all of them grey or all of them RGB")
    labels = {name: file.labels(name, shapes[name][0]) for name in names}
    num_classes = 1 + max(int(values.max(initial=0)) for values in labels.values())
    if num_classes > sum(map(len, labels.values())):
        raise InputError(f"{path}: has a label {num_classes - 1} but fewer images than that: number classes from 0")
    size, note = choose_size(image_size, {(shape[2], shape[1]) for shape in shapes.values()})
    splits: dict[str, SourceSplit] = {name: NpzSplit(file, name, labels[name], size) for name in names}
    class_names = [str(label) for label in range(num_classes)]
    return Source("npz", class_names, shapes["train"][3], size, True, splits, [note] if note else [])


class NpzSplit(SourceSplit):
    """Images of one npz split, in memory from the first read until they are released."""

    def __init__(self, file: Any, name: str, labels: NDArray[np.int64], size: int):
        super().__init__(labels)
        self._file, self._name, self._size = file, name, size
        self._images: NDArray[np.uint8] | None = None

    def read(self, index: int) -> NDArray[np.uint8]:
        if self._images is None:
            self._images = self._file.images(self._name)
        return fit_array(self._images[index], self._size)

    def release(self) -> None:
        self._images = None
