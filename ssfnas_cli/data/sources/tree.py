"""The layout of an image folder: which folders are splits or classes, and which files are neither."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ssfnas_cli.artifacts.dataset import is_data_set
from ssfnas_cli.artifacts.files import reason
from ssfnas_cli.console import printable
from ssfnas_cli.errors import InputError

WANTED = "source 'folder' wants CLASS/, or train/CLASS/ and test/CLASS/"
ROLES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
SIDE_FOLDERS = {
    *("@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "$recycle.bin", "__macosx"),
    *("lost+found", "system volume information", "__pycache__"),
}
# A file with such a suffix counts as an image, so that damaged images and unsupported formats are reported.
IMAGE_SUFFIXES = {
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif", ".ppm"),
    *(".pgm", ".pbm", ".pnm", ".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".psd", ".svg", ".eps", ".ico"),
    *(".tga", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raw", ".dcm", ".exr", ".hdr", ".pcx"),
}
# A file with such a suffix is never an image, whatever its first bytes are.
SIDE_SUFFIXES = {
    *(".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml", ".md", ".html", ".log", ".db"),
    *(".ini", ".md5", ".sha1", ".sha256", ".npy", ".npz", ".mat", ".pkl", ".zip", ".gz", ".tar", ".py", ".mp4"),
}


class IgnoredFiles:
    """Counts files and folders that are neither images nor classes, by suffix or name."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self.num_nested = 0  # images in subfolders of class folders, which are used

    def add(self, name: str) -> None:
        """Count a file or folder."""
        suffix = Path(name).suffix.lower()
        self._counts[printable(suffix if suffix and not name.startswith(".") else name)] += 1

    def add_beside(self, folder: Path) -> None:
        """Count the files in `folder`, which should contain only folders of classes or splits."""
        for name in _listing(folder, self)[1]:
            if is_named_as_image(name):
                self._counts["images outside class folders"] += 1
            else:
                self.add(name)

    def lines(self) -> list[str]:
        """Lines for the user about what was counted."""
        lines = []
        if self._counts:
            kinds = self._counts.most_common(6)
            shown = ", ".join(f"{count} {kind}" for kind, count in kinds)
            more = ", …" if len(self._counts) > len(kinds) else ""
            lines.append(
                f"passed over {self._counts.total()} files and folders that are no images of a class: {shown}{more}"
            )
        if self.num_nested:
            lines.append(
                f"{self.num_nested} images lie in folders inside the class folders, and belong to those classes"
            )
        return lines


@dataclass
class Layout:
    """The folder of each split below the root (`""` for the root itself), and the sorted names of the classes."""

    folders: dict[str, str]
    class_names: list[str]
    notes: list[str] = field(default_factory=list)

    @property
    def is_flat(self) -> bool:
        return self.folders == {"train": ""}


def read_layout(root: Path) -> Layout:
    """Determine which folders are splits and which are classes.

    A folder is a split if it has the name of one (`train`, `Training`, `valid`, `test`, …) and contains folders. If
    there are no splits, the folders of the root are the classes.

    Raises:
        InputError: there are no classes, or the layout is ambiguous.
    """
    if not root.is_dir():
        raise InputError(f"--root: {root} is not a folder: {WANTED}")
    folders = visible_folders(root)
    inside = {name: visible_folders(root / name) for name in folders if name.lower() in ROLES}
    if any(ROLES[name.lower()] == "train" and inside[name] for name in inside):
        return _with_splits(root, folders, inside)
    if odd := next((name for name in inside if inside[name]), None):
        raise InputError(f"{root}: has {odd}/ with folders in it but no train/ of that kind: {WANTED}")
    if not folders:
        raise InputError(f"{root}: has no class folders: {WANTED}")
    if set(inside) == set(folders):
        raise InputError(f"{root}: there are no class folders in {', '.join(f'{name}/' for name in folders)}: {WANTED}")
    # A train may be a class among other vehicles.
    if split := next((name for name in inside if ROLES[name.lower()] != "train"), None):
        other = printable(next(name for name in folders if name not in inside))
        raise InputError(
            f"{root / split}: lies beside the class folder '{other}' and has the name of a split: if it is one, lay "
            f"the images out as train/CLASS/ and {split}/CLASS/ or take it away; if it is a class, rename it"
        )
    for name in folders:
        if odd := next((sub for sub in visible_folders(root / name) if sub.lower() in ROLES), None):
            raise InputError(
                f"{root}: the class folder '{printable(name)}' holds a folder '{odd}', which may be a split: "
                f"give --root {printable(str(root / name))} if it is one, or lay the images out as {odd}/CLASS/"
            )
    return Layout({"train": ""}, folders)


def _with_splits(root: Path, folders: list[str], inside: dict[str, list[str]]) -> Layout:
    splits, notes = {}, []
    for role in ("train", "val", "test"):
        named = [name for name in inside if ROLES[name.lower()] == role]
        if len(named) > 1:
            raise InputError(f"{root}: has both {named[0]}/ and {named[1]}/, which mean the same split: keep one")
        for name in named:
            if inside[name]:
                splits[role] = name
            elif any(is_named_as_image(file) for file in _listing(root / name)[1]):
                raise InputError(
                    f"{root / name}: has images but no class folders, so that their classes are not known: "
                    f"move them to {name}/CLASS/, or take the folder away"
                )
            else:
                notes.append(f"{root / name}: is empty: the split {role} is left out")
    if beside := [printable(name) for name in folders if name not in inside]:
        notes.append(f"warning: {root}: passed over the folders beside {splits['train']}/: {', '.join(beside[:6])}")
    class_names = inside[splits["train"]]
    for name in splits.values():
        if odd := sorted(set(inside[name]) ^ set(class_names)):
            here, there = (name, splits["train"]) if odd[0] in inside[name] else (splits["train"], name)
            raise InputError(
                f"{root}: class folder '{printable(odd[0])}' is in {here} but not in {there}: "
                "every split needs the same classes"
            )
    return Layout(splits, class_names, notes)


def visible_folders(folder: Path) -> list[str]:
    """The sorted names of the subfolders, without hidden folders and those that operating systems create.

    Raises:
        InputError: the folder cannot be read.
    """
    return _listing(folder)[0]


def list_images(folder: Path, ignored: IgnoredFiles) -> list[str]:
    """The sorted relative paths of possible images in a class folder. Subfolders are searched, each only once."""
    found: list[tuple[str, ...]] = []
    pending: list[tuple[str, ...]] = [()]
    seen: set[tuple[int, int]] = set()
    while pending:
        place = pending.pop()
        here = folder.joinpath(*place)
        status = here.stat()
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder that was searched
            continue
        seen.add((status.st_dev, status.st_ino))
        folders, files = _listing(here, ignored)
        pending += [(*place, name) for name in folders]
        for name in files:
            if Path(name).suffix.lower() in SIDE_SUFFIXES:
                ignored.add(name)
            else:
                found.append((*place, name))
    return ["/".join(place) for place in sorted(found)]


def is_named_as_image(name: str) -> bool:
    """Whether a file has the name of an image."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")


def _listing(folder: Path, ignored: IgnoredFiles | None = None) -> tuple[list[str], list[str]]:
    """The sorted names of the folders and of the files in a folder. Hidden ones, pipes and devices are only counted."""
    folders, files = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                is_folder = _is(entry.is_dir)
                ours = is_folder and is_data_set(Path(entry))  # which was made here
                if entry.name.startswith(".") or entry.name.lower() in SIDE_FOLDERS or ours:
                    if ignored is not None:
                        ignored.add(entry.name)
                elif is_folder:
                    folders.append(entry.name)
                # A link that leads nowhere is included, so that it is reported like any other unreadable file.
                elif _is(entry.is_file) or entry.is_symlink():
                    files.append(entry.name)
                elif ignored is not None:
                    ignored.add(entry.name)
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {reason(error)}") from error
    return sorted(folders), sorted(files)


def _is(kind: Callable[[], bool]) -> bool:
    """Whether a folder's entry is of a kind, as `os.DirEntry` tells it; a link that leads in a circle is of none."""
    try:
        return kind()
    except OSError:
        return False
