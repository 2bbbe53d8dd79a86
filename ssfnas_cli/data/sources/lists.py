"""The source `list`: image files that list files name, `relative/path label` a line, one list a split."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from registry import SOURCES, SourceFacts
from ssfnas_cli.artifacts.files import reason
from ssfnas_cli.console import printable
from ssfnas_cli.data.images import BadImage
from ssfnas_cli.data.sources.base import SPLITS, Source
from ssfnas_cli.data.sources.files import FileOptions, FileSplit, HeaderScan, Names
from ssfnas_cli.data.sources.list_file import ListFile, shared_paths
from ssfnas_cli.data.sources.numbered import NumberedOptions, find_file, number_classes
from ssfnas_cli.data.sources.tree import ROLES
from ssfnas_cli.errors import InputError, UsageError

if TYPE_CHECKING:
    from ssfnas_cli.settings import MakeDatasetSettings

SUFFIXES = {".txt", ".csv", ".tsv", ".lst", ".list"}
WANTED = (
    "source 'list' wants train.txt, and perhaps test.txt and val.txt, in --root, with `path label` a line; "
    "others with --set source.train=FILE"
)


class ListOptions(FileOptions, NumberedOptions):
    """Options of `list`."""

    train: str = Field("", description="list file of train; default: the list in --root that is named after the split")
    val: str = Field("", description="list file of val; without any of the three, as for train")
    test: str = Field("", description="list file of test; without any of the three, as for train")


@SOURCES.register(
    "list", options=ListOptions, facts=SourceFacts(root="the folder that the paths in the list files start from")
)
def open_list(options: ListOptions, settings: MakeDatasetSettings) -> Source:
    """Image files named by lists, `path label` a line: `train.txt`, `val.txt`, `test.txt`, or others (ImageNet-LT)."""
    root = Path(settings.root)
    if not root.is_dir():
        raise InputError(f"--root: {root} is not a folder: give the one that the paths in the list files start from")
    lists = {split: ListFile(path, root) for split, path in _list_files(root, options).items()}
    notes = [f"{root}: " + ", ".join(f"{len(part)} images in {part.path}" for part in lists.values())]
    for split in [split for split, part in lists.items() if not len(part)]:
        if split == "train":
            raise InputError(f"{lists[split].path}: lists no images: {WANTED}")
        notes.append(f"{lists.pop(split).path}: lists no images: the split {split} is left out")
    notes += _describe_repeats(lists)
    place = str(lists["train"].path) if len(lists) == 1 else f"{root}, its lists"
    labels, class_names = number_classes({name: part.labels for name, part in lists.items()}, options, root, place)
    scan = HeaderScan(root, options.range)
    splits = {name: _scan_split(scan, part, labels[name]) for name, part in lists.items()}
    size, note = scan.configure(list(splits.values()), settings.image_size)
    notes += [note] if note else []
    return Source("list", class_names, scan.channels, size, True, dict(splits), notes, scan.bad, options.range)


def _list_files(root: Path, options: ListOptions) -> dict[str, Path]:
    """The list of each split: those that the options name, or else those in the root that are named after a split."""
    given = {split: getattr(options, split) for split in SPLITS}
    if any(given.values()):
        if not given["train"]:
            raise UsageError("--set source.train=FILE: is missing: name the list to train on, too")
        return {split: find_file(name, root, split) for split, name in given.items() if name}
    found: dict[str, Path] = {}
    try:
        files = sorted(path for path in root.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    except OSError as error:
        raise InputError(f"--root: {root} cannot be read: {reason(error)}") from error
    for path in files:
        roles = {ROLES[word] for word in re.split(r"[^a-z0-9]+", path.stem.lower()) if word in ROLES}
        if len(roles) == 1:
            (split,) = roles
            if split in found:
                raise InputError(
                    f"{root}: has both {printable(found[split].name)} and {printable(path.name)} for the split "
                    f"{split}: name one with --set source.{split}=FILE, and so the other lists"
                )
            found[split] = path
    if "train" not in found:
        raise InputError(f"{root}: has no list of training images: {WANTED}")
    return {split: found[split] for split in SPLITS if split in found}


def _describe_repeats(lists: dict[str, ListFile]) -> list[str]:
    """Lines about paths that stand twice in a list, or in two lists, which is leakage."""
    lines = [
        f"warning: {part.path}: {part.num_repeated} lines repeat an earlier path and label: each image counts once"
        for part in lists.values()
        if part.num_repeated
    ]
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        if first in lists and second in lists and len(shared := shared_paths(lists[first], lists[second])):
            lines.append(
                f"warning: {lists[second].path}: {len(shared)} of its {len(lists[second])} paths are in "
                f"{lists[first].path}, too, for example {printable(lists[second].names[int(shared[0])])}: "
                "take them out of one list"
            )
    return lines


def _scan_split(scan: HeaderScan, listed: ListFile, labels: np.ndarray) -> FileSplit:
    """The readable images of a list, whose headers are read. `labels` are numbered from 0."""
    names, kept, missing = Names(), np.zeros(len(listed), dtype=bool), 0
    for index, name in enumerate(listed.names):
        try:
            scan.read(name)
        except BadImage as bad:
            if not (scan.root / name).exists():
                bad = BadImage(bad.name, listed.fault(index))
                missing += 1
            scan.bad.append(bad)
            continue
        names.append(name)
        kept[index] = True
    if missing == len(listed):
        raise InputError(
            f"{listed.path}: no image that it lists is below --root {scan.root}; {scan.bad[-missing]}: give the "
            "folder that its paths start from"
        )
    return FileSplit(scan.root, names, labels[kept], np.flatnonzero(kept))
