"""The source `folder`: image files in class folders, which may be inside folders of splits."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from registry import SOURCES, SourceFacts
from ssfnas_cli.console import printable
from ssfnas_cli.data.images import BadImage
from ssfnas_cli.data.sources.base import Source
from ssfnas_cli.data.sources.files import FileOptions, FileSplit, HeaderScan, Names
from ssfnas_cli.data.sources.tree import IgnoredFiles, Layout, is_named_as_image, list_images, read_layout

if TYPE_CHECKING:
    from ssfnas_cli.settings import MakeDatasetSettings


@SOURCES.register(
    "folder",
    options=FileOptions,
    facts=SourceFacts(root="a folder with CLASS/ in it, or train/CLASS/ and test/CLASS/"),
)
def open_folder(options: FileOptions, settings: MakeDatasetSettings) -> Source:
    """Image files in `CLASS/*`, or in `train/CLASS/*`, `test/CLASS/*` and perhaps `val/CLASS/*`, by their names."""
    root = Path(settings.root)
    ignored = IgnoredFiles()
    layout = read_layout(root)
    for folder in {"", *layout.folders.values()}:
        ignored.add_beside(root / folder)
    scan = HeaderScan(root, options.range)
    splits = {name: _scan_split(scan, folder, layout.class_names, ignored) for name, folder in layout.folders.items()}
    notes = [*layout.notes, *ignored.lines()]
    for name in ("val", "test"):
        if name in splits and not len(splits[name]) and not _has_bad(scan, layout.folders[name]):
            notes.append(f"{root / layout.folders[name]}: has no images: the split {name} is left out")
            del splits[name]
    size, note = scan.configure(list(splits.values()), settings.image_size)
    notes.insert(0, _describe_layout(root, layout, splits))
    notes += [note] if note else []
    return Source("folder", layout.class_names, scan.channels, size, True, dict(splits), notes, scan.bad, options.range)


def _describe_layout(root: Path, layout: Layout, splits: dict[str, FileSplit]) -> str:
    what = f"{len(layout.class_names)} class folder{'s' if len(layout.class_names) > 1 else ''}"
    if layout.is_flat:
        return f"{root}: {what} without splits, {len(splits['train'])} images"
    counts = ", ".join(f"{layout.folders[name]}/ with {len(split)}" for name, split in splits.items())
    return f"{root}: {what} in each split, images: {counts}"


def _scan_split(scan: HeaderScan, folder: str, class_names: Sequence[str], ignored: IgnoredFiles) -> FileSplit:
    """The readable images of a split. `folder` is relative to the root, and empty for the root itself."""
    names, labels, places, place = Names(), array("q"), array("q"), 0
    for label, class_name in enumerate(class_names):
        for file in list_images(scan.root / folder / class_name, ignored):
            name = "/".join(part for part in (folder, class_name, file) if part)
            try:
                scan.read(name)
            except BadImage as bad:
                if is_named_as_image(Path(file).name):
                    scan.bad.append(bad)
                    place += 1
                else:  # it neither is an image nor has the name of one
                    ignored.add(Path(file).name)
                continue
            names.append(name)
            labels.append(label)
            places.append(place)
            ignored.num_nested += "/" in file
            place += 1
    return FileSplit(scan.root, names, np.array(labels, np.int64), np.array(places, np.int64))


def _has_bad(scan: HeaderScan, folder: str) -> bool:
    """Whether a split has unreadable images."""
    return any(bad.name.startswith(f"{printable(folder)}/") for bad in scan.bad)
