"""The source `idx`: a folder of IDX files, as MNIST, Fashion-MNIST, KMNIST and EMNIST are published."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from registry import SOURCES, SourceFacts
from ssfnas_cli.artifacts.files import reason
from ssfnas_cli.console import printable
from ssfnas_cli.data.images import choose_size
from ssfnas_cli.data.sources.base import SPLITS, MappedSplit, Source, SourceSplit, shared_channels
from ssfnas_cli.data.sources.idx_file import IdxFile
from ssfnas_cli.data.sources.numbered import NumberedOptions, number_classes
from ssfnas_cli.data.sources.tree import ROLES
from ssfnas_cli.errors import InputError

if TYPE_CHECKING:
    from ssfnas_cli.settings import MakeDatasetSettings

# `train-images-idx3-ubyte.gz`, `t10k-labels.idx1-ubyte`, `emnist-letters-test-images-idx3-ubyte`
NAME = re.compile(
    r"(?:(?P<set>.+)[-_])?(?P<part>[a-z0-9]+)[-_.](?P<what>images|labels)[-_.]idx[1-4][-_.][a-z0-9]+(?:\.gz)?",
    re.IGNORECASE,
)
PARTS = {**ROLES, "t10k": "test"}
WANTED = "source 'idx' wants train-images-idx3-ubyte and train-labels-idx1-ubyte, and t10k-* or test-*, with .gz or not"


class IdxOptions(NumberedOptions):
    """Options of `idx`."""

    set: str = Field("", description="which of several sets in the folder: how its names begin, as in emnist-letters")


@SOURCES.register("idx", options=IdxOptions, facts=SourceFacts(root="a folder of IDX files"))
def open_idx(options: IdxOptions, settings: MakeDatasetSettings) -> Source:
    """Files `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-…`, with `.gz` or not (MNIST and relatives)."""
    root = Path(settings.root)
    pairs = _choose_set(root, _find_files(root), options.set)
    files = {split: IdxFile(pair["images"]) for split, pair in pairs.items()}
    labels = {split: _read_labels(files[split], pair["labels"]) for split, pair in pairs.items()}
    notes = [f"{root}: " + ", ".join(f"{len(labels[split])} images in {files[split].path.name}" for split in files)]
    for split in [split for split in labels if not len(labels[split])]:
        if split == "train":
            raise InputError(f"{files[split].path}: has no images: there is nothing to train on")
        notes.append(f"{files[split].path}: has no images: the split {split} is left out")
        del files[split], labels[split]
    shapes = {split: file.image_shape() for split, file in files.items()}
    channels = shared_channels((shape[2] for shape in shapes.values()), root)
    size, note = choose_size(settings.image_size, {(width, height) for height, width, _ in shapes.values()})
    notes += [note] if note else []
    labels, class_names = number_classes(labels, options, root, str(root))
    splits: dict[str, SourceSplit] = {split: MappedSplit(files[split].images, labels[split], size) for split in files}
    # Most such sets are of digits and letters, which are others when they are mirrored.
    return Source("idx", class_names, channels, size, False, splits, notes)


Pair = dict[str, Path]  # of `images` and `labels`


def _find_files(root: Path) -> dict[str, dict[str, Pair]]:
    """The files of each split of each set. A file that is not compressed goes before the same one that is."""
    if not root.is_dir():
        raise InputError(f"--root: {root} is not a folder: {WANTED}")
    found: dict[str, dict[str, Pair]] = {}
    try:
        names = sorted((path.name for path in root.iterdir()), key=lambda name: (not name.endswith(".gz"), name))
    except OSError as error:
        raise InputError(f"--root: {root} cannot be read: {reason(error)}") from error
    for name in names:
        match = NAME.fullmatch(name)
        if match and match["part"].lower() in PARTS:
            pairs = found.setdefault((match["set"] or "").lower(), {})
            pairs.setdefault(PARTS[match["part"].lower()], {})[match["what"].lower()] = root / name
    return found


def _choose_set(root: Path, sets: dict[str, dict[str, Pair]], wanted: str) -> dict[str, Pair]:
    """The files of each split of one set, `train` first."""
    if not sets:
        inner = next((path for path in (root / "raw", root / "MNIST" / "raw") if path.is_dir()), None)
        raise InputError(f"{root}: has no IDX files: {WANTED}" + (f"; perhaps --root {inner}" if inner else ""))
    listed = ", ".join(printable(name) or "one without a name" for name in sorted(sets))
    if wanted and wanted.lower() not in sets:
        raise InputError(f"{root}: has no set '{wanted}': --set source.set should name one of {listed}")
    if not wanted and len(sets) > 1:
        raise InputError(f"{root}: has the files of several sets ({listed}): choose one with --set source.set=NAME")
    chosen = sets[wanted.lower() if wanted else next(iter(sets))]
    for split, pair in chosen.items():
        for what, other in (("images", "labels"), ("labels", "images")):
            if what not in pair:
                raise InputError(f"{pair[other]}: has no file of {what} beside it for the split {split}: {WANTED}")
    if "train" not in chosen:
        raise InputError(f"{root}: has no train-images-idx3-ubyte: {WANTED}")
    return {split: chosen[split] for split in SPLITS if split in chosen}


def _read_labels(images: IdxFile, path: Path) -> NDArray[np.int64]:
    """The labels of the images of a file."""
    labels = IdxFile(path).labels()
    if len(labels) != images.shape[0]:
        raise InputError(
            f"{path}: has {len(labels)} labels, and there are {images.shape[0]} images in {images.path.name}"
        )
    if labels.size and labels.min() < 0:
        raise InputError(f"{path}: has a label {labels.min()}: number classes from 0")
    return labels
