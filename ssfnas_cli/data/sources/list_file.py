"""One list file: `relative/path label` a line, as ImageNet-LT, Places-LT and iNaturalist lists have them."""

from __future__ import annotations

import io
import os
import posixpath
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from ssfnas_cli.artifacts.files import open_plain, reason
from ssfnas_cli.console import printable
from ssfnas_cli.data.duplicates import fingerprint
from ssfnas_cli.data.sources.files import Names
from ssfnas_cli.errors import InputError

MAX_LINE = 1 << 16  # characters
MAX_DIGITS = 9
# A path, which may hold blanks and commas, and what follows the last of them. Either may stand in quotes.
LINE = re.compile(r"(?P<path>.*[^\s,;])[\s,;]+(?P<label>[^\s,;]+)")
HEADERS = {"label", "labels", "class", "class_id", "classid", "target", "targets", "category", "category_id", "y"}
# A path that is followed by several numbers: the end of such a line is no part of the path.
SEVERAL_LABELS = re.compile(r".*\.\w+\"?(?:[\s,;]+[+-]?\d+)+")


class ListFile:
    """The images of a list, in its order.

    Attributes:
        names: their paths below the root.
        labels: int64 [n], as the list has them.
        lines: int64 [n], the number of each image's line, from 1.
        num_repeated: lines that repeat a path with the same label, which are left out.
    """

    def __init__(self, path: Path, root: Path):
        """Read a list.

        Raises:
            InputError: it cannot be read, or a line is not `path label`, leads out of the root, or gives a path of an
                earlier line another label. The message names the line.
        """
        self.path, self._root = path, root
        self._prefixes = [f"{place}/".replace("//", "/") for place in (os.path.abspath(root), os.path.realpath(root))]  # noqa: PTH100
        self.names = Names()
        labels, lines, hashes = array("q"), array("q"), array("Q")
        for number, line in self._numbered_lines():
            if (entry := self._parse(line, number, not len(lines))) is None:
                continue
            name, label = entry
            self.names.append(name)
            labels.append(label)
            lines.append(number)
            hashes.append(fingerprint(os.fsencode(name)))
        self.labels, self.lines = np.array(labels, np.int64), np.array(lines, np.int64)
        self.hashes = np.array(hashes, np.uint64)
        self.num_repeated = self._drop_repeats()

    def __len__(self) -> int:
        return len(self.labels)

    def place(self, index: int) -> str:
        """The line of an image in messages."""
        return f"line {self.lines[index]} of {self.path}"

    def _numbered_lines(self) -> Iterator[tuple[int, str]]:
        """Lines without their ends. Blank lines and comments are left out."""
        with open_plain(self.path) as stream, _as_text(stream) as text:
            try:
                number = 0
                while line := text.readline(MAX_LINE):
                    number += 1
                    if len(line) == MAX_LINE:
                        raise InputError(f"{self.path}: line {number} is without an end: is it a list of `path label`?")
                    if (line := line.strip()) and not line.startswith("#"):
                        yield number, line
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"{self.path}: cannot be read: {reason(error)}") from error

    def _parse(self, line: str, number: int, is_first: bool) -> tuple[str, int] | None:
        """The path and the label of a line; None if it is a line of headings."""
        match, where = LINE.fullmatch(line), f"{self.path}: line {number}"
        if match is None:
            raise InputError(
                f"{where}: '{_shown(line)}' is not `path label`: a number after a blank or a comma is missing"
            )
        path, label = match["path"], match["label"].strip("\"'")
        if not re.fullmatch(r"[+-]?[0-9]+", label):
            if is_first and label.lower() in HEADERS:
                return None
            raise InputError(f"{where}: its label '{_shown(label)}' is no whole number: number the classes from 0")
        if len(label) > MAX_DIGITS or int(label) < 0:
            raise InputError(f"{where}: its label {_shown(label)} is out of range: number the classes from 0")
        if path[0] == path[-1] == '"' and len(path) > 1:
            path = path[1:-1].replace('""', '"')
        return self._below_root(path, where), int(label)

    def _below_root(self, path: str, where: str) -> str:
        """The path of an image from the root, without detours."""
        if "\\" in path and not os.path.lexists(self._root / path):
            path = path.replace("\\", "/")
        for prefix in self._prefixes:
            if path.startswith(prefix):
                path = path.removeprefix(prefix)
                break
        normal = posixpath.normpath(path)
        if normal.startswith(("/", "../")) or normal in (".", ".."):
            raise InputError(
                f"{where}: '{_shown(path)}' is not below --root {self._root}: give a --root that holds all images"
            )
        return normal

    def _drop_repeats(self) -> int:
        """Leave out lines that repeat an earlier one, and return how many."""
        first_of, inverse = np.unique(self.hashes, return_index=True, return_inverse=True)[1:]
        firsts = first_of[inverse]
        repeats = firsts != np.arange(len(self))
        conflicts = np.flatnonzero(self.labels[firsts] != self.labels)
        if len(conflicts):
            here, there = int(conflicts[0]), int(firsts[conflicts[0]])
            raise InputError(
                f"{self.path}: '{_shown(self.names[here])}' has label {self.labels[there]} in line "
                f"{self.lines[there]} and {self.labels[here]} in line {self.lines[here]}: an image has one class here, "
                f"and {len(conflicts)} lines give another: keep one line an image"
            )
        if repeats.any():
            names = Names()
            for index in np.flatnonzero(~repeats).tolist():
                names.append(self.names[index])
            self.names = names
            self.labels, self.lines, self.hashes = (part[~repeats] for part in (self.labels, self.lines, self.hashes))
        return int(repeats.sum())

    def fault(self, index: int) -> str:
        """Why there is no file for an image."""
        name = self.names[index]
        if SEVERAL_LABELS.fullmatch(name):
            return f"is missing ({self.place(index)}), or is it several labels? One class an image is supported"
        return f"is missing ({self.place(index)})"


def shared_paths(one: ListFile, other: ListFile) -> NDArray[np.int64]:
    """The positions in `other` of the images that `one` lists, too."""
    return np.flatnonzero(np.isin(other.hashes, one.hashes))


def _as_text(stream: IO[bytes]) -> io.TextIOWrapper:
    """UTF-8, or UTF-16 by its byte-order mark. Paths may hold bytes that are not UTF-8."""
    start = stream.peek(2)[:2]  # type: ignore[attr-defined]
    if start in (b"\xff\xfe", b"\xfe\xff"):
        return io.TextIOWrapper(stream, "utf-16")
    return io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape")


def _shown(text: str) -> str:
    return printable(text if len(text) <= 200 else f"{text[:199]}…")
