"""The source `npz`: a file with the keys of MedMNIST, of any size."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from registry import SOURCES, SourceFacts
from ssfnas_cli.data.images import choose_size
from ssfnas_cli.data.sources.base import SPLITS, MappedSplit, Source, SourceSplit, shared_channels
from ssfnas_cli.data.sources.npz_file import NpzFile
from ssfnas_cli.data.sources.numbered import NumberedOptions, number_classes
from ssfnas_cli.errors import InputError

if TYPE_CHECKING:
    from ssfnas_cli.settings import MakeDatasetSettings


@SOURCES.register("npz", options=NumberedOptions, facts=SourceFacts(root="an npz file"))
def open_npz(options: NumberedOptions, settings: MakeDatasetSettings) -> Source:
    """A file with `{train,val,test}_{images,labels}`, images uint8 [N, H, W] or [N, H, W, 3], labels [N] or [N, 1]."""
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
    channels = shared_channels((shape[3] for shape in shapes.values()), file.path)
    size, note = choose_size(settings.image_size, {(shape[2], shape[1]) for shape in shapes.values()})
    notes += [note] if note else []
    labels, class_names = number_classes(labels, options, file.path, str(file.path))
    splits: dict[str, SourceSplit] = {
        name: MappedSplit(partial(file.images, name), labels[name], size) for name in labels
    }
    return Source("npz", class_names, channels, size, True, splits, notes)
