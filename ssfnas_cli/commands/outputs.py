"""Writing the output of a command to stdout or to a file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ssfnas_cli.artifacts.files import atomic_path, set_aside
from ssfnas_cli.console import is_stream, log
from ssfnas_cli.console import write_bytes as write_stdout
from ssfnas_cli.errors import DiskError, OutputExistsError, UsageError


def refuse_existing(output: Path | None, force: bool, flag: str = "--output") -> None:
    """Check the output file before the work begins. Only --force may replace an existing file.

    Raises:
        OutputExistsError: the file exists. The message says what to do.
        DiskError: there is no folder for it.
    """
    if output is None or is_stream(output):
        return
    if not output.parent.is_dir():
        raise DiskError(f"{flag} {output}: cannot be written: there is no folder {output.parent}: make it first")
    if not output.exists():
        return
    if output.is_dir():
        raise OutputExistsError(f"{flag} {output}: is a folder; name a file")
    if not force:
        raise OutputExistsError(f"{flag} {output}: is there already: choose another name, or --force")


def picture_format(output: Path, formats: Sequence[str]) -> str:
    """The format of a picture by its file's suffix; stdout gets an SVG.

    Raises:
        UsageError: the suffix is of none of the formats.
    """
    suffix = "svg" if is_stream(output) else output.suffix.removeprefix(".").lower()
    if suffix not in formats:
        raise UsageError(f"--output {output}: should end in one of {', '.join('.' + name for name in formats)}")
    return suffix


def write_output(output: Path | None, data: bytes, force: bool) -> None:
    """Write the output to stdout or to a file, as `new_file` does."""
    if output is None or is_stream(output):
        write_stdout(data)
        return
    with new_file(output, force) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def open_output(output: Path | None, force: bool) -> Iterator[Callable[[str], object]]:
    """Yield a function that writes text to stdout, or to a file that is there only when all of it has been written.

    What UTF-8 cannot express, such as the undecodable bytes of a file's name, is written as `\\udcXX`.
    """
    if output is None or is_stream(output):
        yield lambda text: write_stdout(text.encode("utf-8", "backslashreplace"))
        return
    with (
        new_file(output, force) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream,
    ):
        yield stream.write


@contextlib.contextmanager
def new_file(output: Path, force: bool, flag: str = "--output") -> Iterator[Path]:
    """Yield a path to write to, of the same name, whose file becomes the output when it is whole.

    With --force, an old file is moved aside then, so that a command that fails moves none.
    """
    with atomic_path(output) as temporary:
        yield temporary
        refuse_existing(output, force, flag)
        if output.exists():
            log.warning("--force: what was %s is now %s", output, set_aside(output))
