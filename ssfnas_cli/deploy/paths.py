"""The image files that arguments name, one after the other: files, folders in the order of names, lists on stdin.

Nothing is collected, except the names of the folders that are being read, some 80 bytes for each.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ssfnas_cli.artifacts.files import reason
from ssfnas_cli.data.sources.tree import SIDE_FOLDERS, SIDE_SUFFIXES, is_named_as_image
from ssfnas_cli.errors import InputError

CHUNK_BYTES = 1 << 16
MAX_PATH_BYTES = 1 << 20
# How PNG, JPEG, GIF, TIFF, WebP, BMP and AVIF or HEIF files begin. As good as no path begins so.
IMAGE_START = re.compile(
    rb"\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a|II\*\0|MM\0\*|RIFF.{4}WEBP|BM.{4}\0{4}|.{4}ftyp(avif|hei|mif1)", re.DOTALL
)


class Named(NamedTuple):
    """A path that may be an image.

    Attributes:
        path: as given, or below a folder that was given.
        why: why no image can come of it; empty if it has to be read.
        is_found: whether it was found in a folder without having the name of an image: if it is none, nothing is lost.
    """

    path: str
    why: str = ""
    is_found: bool = False


def find_images(arguments: Iterable[str], stdin: BinaryIO | None) -> Iterator[Named]:
    """Yield the images that arguments name, in their order.

    Args:
        arguments: paths of files and folders, and `-` for paths on stdin.
        stdin: where those paths come from, separated by line breaks or by zero bytes. They name files only: a list that
            `find` made names the files of a folder beside the folder.
    """
    for argument in arguments:
        if argument == "-" and stdin is not None:
            for path in read_paths(stdin):
                yield Named(path, "is a folder: list its files, as 'find -type f' does" if _is_folder(path) else "")
        elif _is_folder(argument):
            found = False
            for one in _walk(argument):
                found = True
                yield one
            if not found:
                yield Named(argument, "is a folder without images")
        else:
            yield Named(argument)


def _is_folder(path: str) -> bool:
    try:
        return Path(path).is_dir()
    except OSError:  # such as a name that is too long
        return False


def read_paths(stream: BinaryIO) -> Iterator[str]:
    """Yield the paths of a stream, which are separated by zero bytes if its first bytes hold one, else by line breaks.

    A name may contain a line break, but no name a zero byte. The first bytes are what is there when the first of both
    marks has come, up to CHUNK_BYTES: a list that is still being written is not waited for.

    Raises:
        InputError: what comes are no paths, or none at all.
    """
    found = False
    for path in _split_paths(stream):
        found = True
        yield path
    if not found:
        raise InputError("standard input: nothing came, expected paths of images: the stage before it found none")


def _split_paths(stream: BinaryIO) -> Iterator[str]:
    rest, separator = b"", b""
    while chunk := stream.read1(CHUNK_BYTES):  # type: ignore[attr-defined]
        if not separator and not rest and IMAGE_START.match(chunk):
            raise InputError("standard input: an image came, and a list of paths is expected: save it as a file")
        rest += chunk
        separator = separator or next((mark for mark in (b"\0", b"\n") if mark in rest), b"")
        *whole, rest = rest.split(separator) if separator else [rest]
        if len(rest) > MAX_PATH_BYTES:
            raise InputError("standard input: a list of paths is expected, one in a line")
        yield from _decoded(whole, separator)
    yield from _decoded([rest], separator)


def _decoded(paths: Iterable[bytes], separator: bytes) -> Iterator[str]:
    for path in paths:
        if path := path if separator == b"\0" else path.removesuffix(b"\r"):
            yield os.fsdecode(path)


def _walk(root: str) -> Iterator[Named]:
    """Yield the possible images below a folder, in the order of their names; each folder is read once."""
    seen: set[tuple[int, int]] = set()
    open_folders = [iter([root])]
    while open_folders:
        path = next(open_folders[-1], None)
        if path is None:
            open_folders.pop()
            continue
        try:
            status = Path(path).stat()
            if stat.S_ISDIR(status.st_mode):
                if (status.st_dev, status.st_ino) not in seen:
                    seen.add((status.st_dev, status.st_ino))
                    open_folders.append(_entries(path))
                continue
            if not stat.S_ISREG(status.st_mode):
                continue
        except OSError as error:  # a dangling link, or a folder that may not be read
            yield Named(path, f"cannot be read: {reason(error)}")
            continue
        if Path(path).suffix.lower() not in SIDE_SUFFIXES:
            yield Named(path, is_found=not is_named_as_image(Path(path).name))


def _entries(folder: str) -> Iterator[str]:
    """The paths in a folder, in the order of names, without hidden ones and those that operating systems create."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    start = folder if folder.endswith("/") else f"{folder}/"
    return (start + name for name in names if not name.startswith(".") and name.lower() not in SIDE_FOLDERS)
