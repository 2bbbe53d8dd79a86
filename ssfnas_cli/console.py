"""stdout carries data, stderr everything else; `-` is a stream, always explicit."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ssfnas_cli.errors import InputError
from ssfnas_cli.json_text import layout_json

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger("ssfnas")
MAX_STREAM_BYTES = 64 * 2**20
_stdout: TextIO | None = None  # the program's stdout once `keep_stdout` has taken it


def keep_stdout() -> None:
    """Keep stdout for data: whatever else is written to descriptor 1 from now on lands on stderr.

    A plugin that prints, or a library in C that does, would break the JSON that the next stage reads. `sys.stdout` is
    the real one until `divert_prints`, as the parser writes help and completions there. A stream that the caller has
    closed becomes a null device, so that no file that is opened later gets its number.
    """
    global _stdout
    if sys.stderr is None:  # it is closed
        _to_null(2)
        sys.stderr = os.fdopen(2, "w", closefd=False)
    encoding = "utf-8"
    if sys.stdout is None:  # it is closed
        os.dup2(2, 1)  # first, or the file below gets its number
        own = os.open(os.devnull, os.O_RDONLY)  # to write there is an error, as it is to write to what is closed
    else:
        encoding = sys.stdout.encoding
        sys.stdout.flush()
        own = os.dup(1)
        os.dup2(2, 1)
    # help and tables may hold what an ASCII locale lacks; data is bytes
    _stdout = sys.stdout = os.fdopen(own, "w", encoding=encoding, errors="replace")


def _to_null(number: int) -> None:
    handle = os.open(os.devnull, os.O_WRONLY)
    if handle != number:
        os.dup2(handle, number)
        os.close(handle)


def divert_prints() -> None:
    """From here on `print` writes to stderr, too."""
    sys.stdout = sys.stderr


def stdout() -> TextIO:
    """The stream that carries data."""
    return _stdout or sys.stdout


def discard(stream: TextIO) -> None:
    """Nobody can read a stream any more: what is still to be written goes nowhere, and nothing is said at exit."""
    _to_null(stream.fileno())


class _OneLine(logging.Formatter):
    """`ssfnas: warning: text`, or just the text for what is merely said."""

    def format(self, record: logging.LogRecord) -> str:
        text = _printable_lines(record.getMessage())
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


class _Deaf:
    """A text stream whose reader may go, as a terminal does when its connection drops: that must not end a run."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def error_console() -> Console:
    """A rich console on stderr; boxes become ASCII where the locale has no better."""
    return plain_console(_Deaf(sys.stderr))


def plain_console(stream: Any) -> Console:
    """A rich console that shows text as it is: no markup, no emoji codes, control characters escaped."""
    from rich.console import Console
    from rich.text import Text

    class PlainConsole(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(_printable_lines(text), **options)

    return PlainConsole(file=stream, markup=False, emoji=False, highlight=False)


def box_style() -> Any:
    """The table style the output's encoding can show."""
    from rich import box

    return box.SIMPLE_HEAD if (stdout().encoding or "").lower().startswith("utf") else box.ASCII


def emit(payload: Mapping[str, Any], as_json: bool, show: Callable[[Console], None] | None = None) -> None:
    """Print a result: JSON off a terminal or on request, else what `show` draws (a line per fact by default)."""
    if as_json or not stdout().isatty():
        write_text(layout_json(payload) + "\n")
        return
    console = plain_console(stdout())
    if show is not None:
        show(console)
        return
    for key, value in payload.items():
        text = f"{value:.2f}" if isinstance(value, float) else str(value)
        console.print(f"{key:>28}  {text}", soft_wrap=True)


def write_text(text: str) -> None:
    """Text to stdout, at once, so that a closed pipe shows here."""
    write_bytes(text.encode())


def write_bytes(data: bytes) -> None:
    """Bytes to stdout, at once."""
    stream = stdout()
    stream.flush()
    left = memoryview(data)
    try:
        while left:
            left = left[os.write(stream.fileno(), left) :]
    except OSError as error:
        error.filename = "standard output"
        raise


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


def decode_text(data: bytes) -> str:
    """Text in UTF-8, or in UTF-16 where a byte-order mark says so (a Windows shell's `>` writes that).

    Raises:
        UnicodeDecodeError: it is neither.
    """
    return data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")


def is_stream(path: Path | str) -> bool:
    """Whether a path means stdin or stdout."""
    return str(path) == "-"


def command_line() -> str:
    """The command as it can be typed again: `ssfnas search --data 'my data' ...`."""
    return shlex.join(["ssfnas", *sys.argv[1:]])


def printable(text: str) -> str:
    r"""The text with what would steer a terminal escaped: control characters, ANSI sequences, marks of direction.

    Names of files, classes and settings may come from strangers. `"a\x1b[31m"` becomes `"a\\x1b[31m"`. What a terminal
    cannot show, such as the halves of a pair that stand for undecodable bytes of a file's name, is escaped, too.
    """
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in text)


def _printable_lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))
