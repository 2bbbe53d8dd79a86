"""The source `npz`: a file with the keys of MedMNIST."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from registry import SOURCES, Options, SourceFacts
from ssfnas_cli.data.images import choose_size, fit_array
from ssfnas_cli.data.sources.base import SPLITS, Source, SourceSplit
from ssfnas_cli.data.sources.npz_file import NpzFile
from ssfnas_cli.errors import InputError

if TYPE_CHECKING:
    from ssfnas_cli.settings import MakeDatasetSettings


@SOURCES.register("npz", facts=SourceFacts(root="an npz file"))
def open_npz(options: Options, settings: MakeDatasetSettings) -> Source:
    """A file with `{train,val,test}_{images,labels}`, images uint8 [N, H, W] or [N, H, W, 3], labels from 0."""
    file, notes = NpzFile(Path(settings.root)), []
    names = [name for name in SPLITS if name == "train" or file.has_split(name)]
    shapes = {name: file.image_shape(name) for name in names}
    labels = {name: file.labels(name, shape[0]) for name, shape in shapes.items()}
    for name in ("val", "test"):
        if name in labels and not len(labels[name]):
            notes.append(f"'{name}_images' has no images: the split {name} is left out")
            del shapes[name], labels[name]
    if not len(labels["train"]):
        raise InputError(f"{file.path}: 'train_images' has no images: there is nothing to train on")
    if len({shape[3] for shape in shapes.values()}) > 1:
        raise InputError(f"{file.path}: its splits differ in channels: make all of them grey or all of them RGB")
    size, note = choose_size(settings.image_size, {(shape[2], shape[1]) for shape in shapes.values()})
    notes += [note] if note else []
    class_names = [str(label) for label in range(_num_classes(file.path, labels))]
    splits: dict[str, SourceSplit] = {name: NpzSplit(file, name, labels[name], size) for name in labels}
    return Source("npz", class_names, shapes["train"][3], size, True, splits, notes)


def _num_classes(path: Path, labels: dict[str, NDArray[np.int64]]) -> int:
    """The number of classes, which is the largest label plus 1. Labels that do not begin at 0 raise an InputError."""
    values = np.concatenate(list(labels.values()))
    lowest, highest = int(values.min()), int(values.max())
    if lowest > 0:
        raise InputError(
            f"{path}: its labels start at {lowest} and end at {highest}, and classes are numbered from 0: "
            f"subtract {lowest} from the labels of every split"
        )
    if highest >= len(values):
        raise InputError(f"{path}: has a label {highest} but fewer images than that: number classes from 0")
    return highest + 1


class NpzSplit(SourceSplit):
    """A split of an npz file. Its images are in memory from the first read until `release`."""

    def __init__(self, file: NpzFile, name: str, labels: NDArray[np.int64], size: int):
        super().__init__(labels)
        self._file, self._name, self._size = file, name, size
        self._images: NDArray[np.uint8] | None = None

    def read(self, index: int) -> NDArray[np.uint8]:
        if self._images is None:
            self._images = self._file.images(self._name)
        return fit_array(self._images[index], self._size)

    def release(self) -> None:
        self._images = None
