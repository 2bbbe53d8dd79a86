"""stdout carries data, stderr everything else; `-` is a stream, always explicit."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssfnas_cli.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger("ssfnas")
MAX_STREAM_BYTES = 64 * 2**20


class _OneLine(logging.Formatter):
    """`ssfnas: warning: text`, or just the text for what is merely said."""

    def format(self, record: logging.LogRecord) -> str:
        text = printable(record.getMessage())
        return text if record.levelno <= logging.INFO else f"ssfnas: {record.levelname.lower()}: {text}"


class _ToStderr(logging.Handler):
    """Writes to whatever sys.stderr is now: a live progress bar puts itself in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            print(self.format(record), file=sys.stderr, flush=True)


def set_verbosity(quiet: bool, verbose: bool) -> None:
    """Warnings always; what is said unless `quiet`; details where `verbose`."""
    handler = _ToStderr()
    handler.setFormatter(_OneLine())
    for old in list(log.handlers):
        log.removeHandler(old)
    log.addHandler(handler)
    log.propagate = False
    log.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)


def error_console() -> Console:
    """A rich console on stderr; boxes become ASCII where the locale has no better."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def box_style() -> Any:
    """The table style the output's encoding can show."""
    from rich import box

    return box.SIMPLE_HEAD if (sys.stdout.encoding or "").lower().startswith("utf") else box.ASCII


def emit(payload: Mapping[str, Any], as_json: bool, show: Callable[[Console], None] | None = None) -> None:
    """Print a result: JSON off a terminal or on request, else what `show` draws (a line per fact by default)."""
    if as_json or not sys.stdout.isatty():
        write_text(json.dumps(payload, indent=2, ensure_ascii=False) + "\n")
        return
    from rich.console import Console

    console = Console(highlight=False)
    if show is not None:
        show(console)
        return
    for key, value in payload.items():
        console.print(f"{key:>28}  {value:.2f}" if isinstance(value, float) else f"{key:>28}  {value}", markup=False)


def write_text(text: str) -> None:
    """Text to stdout, flushed, so that a closed pipe shows here."""
    write_bytes(text.encode())


def write_bytes(data: bytes) -> None:
    """Bytes to stdout, flushed."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def read_stdin(what: str) -> bytes:
    """All of stdin, before torch is imported, so that a pipe that brings nothing ends the stage at once.

    Raises:
        InputError: stdin is a terminal, empty, or larger than such a thing can be.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError(f"standard input: '-' waits for {what} from a pipe, and there is none")
    data = sys.stdin.buffer.read(MAX_STREAM_BYTES + 1)
    if len(data) > MAX_STREAM_BYTES:
        raise InputError(f"standard input: more than {MAX_STREAM_BYTES:,} bytes cannot be {what}")
    if not data.strip():
        raise InputError(
            f"standard input: nothing came, expected {what}: the stage before it failed or printed nothing"
        )
    return data


def is_stream(path: Path | str) -> bool:
    """Whether a path means stdin or stdout."""
    return str(path) == "-"


def printable(text: str) -> str:
    r"""The text with what would steer a terminal escaped: control characters, ANSI sequences, marks of direction.

    Names of files, classes and settings may come from strangers. `"a\x1b[31m"` becomes `"a\\x1b[31m"`. What a terminal
    cannot show, such as the halves of a pair that stand for undecodable bytes of a file's name, is escaped, too.
    """
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in text)
