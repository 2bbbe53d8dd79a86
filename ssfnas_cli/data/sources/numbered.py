"""Classes that a source knows by numbers: where these begin, how many there are, and what the classes are called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from registry import Options
from ssfnas_cli.artifacts.files import read_bytes
from ssfnas_cli.console import decode_text
from ssfnas_cli.errors import InputError


class NumberedOptions(Options):
    """Options of every source whose labels are numbers."""

    first_label: int = Field(0, ge=0, le=2**31, description="the label of the first class")
    classes: str = Field(
        "", description="file of class names, one a line in the order of the labels; without one, names are the labels"
    )


def find_file(name: str, root: Path, option: str) -> Path:
    """The file that an option names: relative to the current folder, as everywhere, or else to the root.

    Raises:
        InputError: there is none.
    """
    folder = root if root.is_dir() else root.parent
    for path in (Path(name), folder / name):
        if path.exists():
            return path
    raise InputError(f"--set source.{option}={name}: no such file, neither here nor in {folder}")


def number_classes(
    labels: Mapping[str, NDArray[np.int64]], options: NumberedOptions, root: Path, place: str
) -> tuple[dict[str, NDArray[np.int64]], list[str]]:
    """The labels of each split from 0, and the names of the classes.

    Args:
        labels: as the source has them; every split has some.
        options: of the source.
        root: see `find_file`.
        place: the source in messages.

    Raises:
        InputError: the labels do not begin at `first_label`, a number is left out, or the names do not fit.
    """
    values = np.unique(np.concatenate(list(labels.values())))
    lowest, highest, first = int(values[0]), int(values[-1]), options.first_label
    if lowest < first:
        raise InputError(
            f"{place}: has a label {lowest}, and by --set source.first_label={first} none is lower than that"
        )
    if lowest > first and not options.classes:
        raise InputError(
            f"{place}: its labels start at {lowest} and end at {highest}, and classes are numbered from {first}: "
            f"say --set source.first_label={lowest} if that is the first class"
        )
    names = _read_names(find_file(options.classes, root, "classes")) if options.classes else None
    if names is not None and highest - first >= len(names):
        raise InputError(
            f"{place}: has a label {highest}, and {options.classes} names {len(names)} classes, "
            f"{first} to {first + len(names) - 1}: name all of them, a line each"
        )
    if names is None and highest - first + 1 > len(values):
        missing = next(number for number, label in enumerate(values.tolist(), first) if number != label)
        raise InputError(
            f"{place}: no image has label {missing}, and the highest label is {highest}: number the classes without "
            "gaps, or name all of them with --set source.classes=FILE"
        )
    numbered = {name: part - first for name, part in labels.items()}
    return numbered, names or [str(label) for label in range(first, highest + 1)]


def _read_names(path: Path) -> list[str]:
    """The names of the classes, a line each. Empty lines at the end do not count."""
    try:
        lines = decode_text(read_bytes(path)).splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8 text: it should hold a class name a line") from None
    names = [line.strip() for line in lines]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise InputError(f"{path}: is empty: it should hold a class name a line")
    return names
