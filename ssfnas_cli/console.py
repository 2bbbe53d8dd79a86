"""Standard streams: stdout carries data and stderr everything else. A path `-` means stdin or stdout."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ssfnas_cli import world
from ssfnas_cli.errors import InputError
from ssfnas_cli.json_text import layout_json

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger("ssfnas")
MAX_STREAM_BYTES = 64 * 2**20
_stdout: TextIO | None = None  # the program's stdout after `reserve_stdout`


def reserve_stdout() -> None:
    """Reserve stdout for data: whatever else is written to descriptor 1 from now on goes to stderr.

    Otherwise a plugin or a C library that prints would break the JSON that the next stage reads. `sys.stdout` remains
    the real stdout until `redirect_prints` because the parser writes help and completions to it. A stream that the
    caller has closed is opened on the null device, so that no file that is opened later gets its descriptor.
    """
    global _stdout
    if sys.stderr is None:  # the caller has closed it
        _redirect_to_null(2)
        sys.stderr = os.fdopen(2, "w", closefd=False)
    encoding = "utf-8"
    if sys.stdout is None:  # the caller has closed it
        os.dup2(2, 1)  # this comes first, or the file below would get descriptor 1
        descriptor = os.open(os.devnull, os.O_RDONLY)  # writing to it fails, as writing to a closed stream does
    else:
        encoding = sys.stdout.encoding
        sys.stdout.flush()
        descriptor = os.dup(1)
        os.dup2(2, 1)
    # Help and tables may hold characters that an ASCII locale lacks. Data is written as bytes.
    _stdout = sys.stdout = os.fdopen(descriptor, "w", encoding=encoding, errors="replace")


def _redirect_to_null(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)


def redirect_prints() -> None:
    """Make `print` write to stderr, too, from now on."""
    sys.stdout = sys.stderr


def stdout() -> TextIO:
    """The stream that carries data."""
    return _stdout or sys.stdout


def discard(stream: TextIO) -> None:
    """Redirect a stream that has lost its reader to the null device, so that Python does not complain at exit."""
    _redirect_to_null(stream.fileno())


class _Formatter(logging.Formatter):
    """Formats warnings and errors as `ssfnas: warning: text`, and lower levels as the text alone."""

    def format(self, record: logging.LogRecord) -> str:
        text = _printable_lines(_fill_in(record))
        return text if record.levelno <= logging.INFO else f"ssfnas: {record.levelname.lower()}: {text}"


def _fill_in(record: logging.LogRecord) -> str:
    """A record's message. A line break in a name that it holds is escaped; those of the message itself stay."""
    if not isinstance(record.args, tuple) or not record.args:
        return record.getMessage()
    return str(record.msg) % tuple(arg if isinstance(arg, int | float) else printable(str(arg)) for arg in record.args)


class _StderrHandler(logging.Handler):
    """Writes to the current sys.stderr, which a live progress bar replaces while it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            print(self.format(record), file=sys.stderr, flush=True)


def set_verbosity(quiet: bool, verbose: bool) -> None:
    """Show warnings, and messages unless `quiet`. Show details, too, if `verbose`. Only the first rank speaks."""
    handler = _StderrHandler()
    handler.setFormatter(_Formatter())
    for old in list(log.handlers):
        log.removeHandler(old)
    log.addHandler(handler)
    log.propagate = False
    level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
    log.setLevel(level if world.is_first() else logging.CRITICAL)


class _TolerantStream:
    """A text stream that ignores failures to write. A run must not end because its terminal has disconnected."""

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
    """A rich console on stderr. It draws boxes in ASCII if the locale supports nothing else."""
    return plain_console(_TolerantStream(sys.stderr))


def plain_console(stream: Any) -> Console:
    """A rich console that shows text literally: markup and emoji codes stay, control characters are escaped."""
    from rich.console import Console
    from rich.text import Text

    class PlainConsole(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(_printable_lines(text), **options)

    return PlainConsole(file=stream, markup=False, emoji=False, highlight=False)


def box_style() -> Any:
    """A table style that the encoding of stdout supports."""
    from rich import box

    return box.SIMPLE_HEAD if (stdout().encoding or "").lower().startswith("utf") else box.ASCII


def emit(payload: Mapping[str, Any], as_json: bool, show: Callable[[Console], None] | None = None) -> None:
    """Print a result: as JSON on request and off a terminal, else as `show` draws it (by default, a line per entry)."""
    if not world.is_first():
        return
    if as_json or not stdout().isatty():
        write_text(layout_json(payload) + "\n")
        return
    console = plain_console(stdout())
    if show is not None:
        show(console)
        return
    for key, value in payload.items():
        for item in value if isinstance(value, list) else [value]:
            console.print(f"{key:>28}  {_in_a_line(item)}", soft_wrap=True)


def _in_a_line(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_in_a_line(item)}" for key, item in value.items())
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def write_text(text: str) -> None:
    """Write text to stdout without buffering, so that a closed pipe raises here."""
    if world.is_first():
        write_bytes(text.encode())


def write_bytes(data: bytes) -> None:
    """Write bytes to stdout without buffering."""
    stream = stdout()
    stream.flush()
    remaining = memoryview(data)
    try:
        while remaining:
            remaining = remaining[os.write(stream.fileno(), remaining) :]
    except OSError as error:
        error.filename = "standard output"
        raise


def expect_stdin(what: str, modules: Sequence[str] = ()) -> None:
    """Check that something comes on stdin, which is read later. Do it before importing torch, as `read_stdin`.

    Args:
        what: what is expected, for messages.
        modules: modules that will be needed. They are imported if nothing has come for a second: the stage before is at
            work then, and this one starts seconds earlier when its turn comes.

    Raises:
        InputError: stdin is a terminal or empty.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError(f"standard input: '-' waits for {what} from a pipe, and there is none")
    if modules and not select.select([sys.stdin], [], [], 1.0)[0]:
        for name in modules:
            import_module(name)
    if not sys.stdin.buffer.peek(1):  # type: ignore[union-attr]
        raise _nothing_came(what)


def _nothing_came(what: str) -> InputError:
    return InputError(f"standard input: nothing came, expected {what}: the stage before it failed or printed nothing")


def read_stdin(what: str, modules: Sequence[str] = ()) -> bytes:
    """Read all of stdin. Do it before importing torch, so that a stage with an empty pipe fails immediately.

    Several ranks may have one stdin, so the first one reads it and shares it with the others.

    Args:
        what: what is expected, for messages.
        modules: see `expect_stdin`.

    Raises:
        InputError: stdin is a terminal, is empty, or exceeds MAX_STREAM_BYTES.
    """
    return world.share_bytes(_read_stdin(what, modules) if world.is_first() else b"")


def _read_stdin(what: str, modules: Sequence[str]) -> bytes:
    expect_stdin(what, modules)
    data = sys.stdin.buffer.read(MAX_STREAM_BYTES + 1)
    if len(data) > MAX_STREAM_BYTES:
        raise InputError(f"standard input: more than {MAX_STREAM_BYTES:,} bytes cannot be {what}")
    if not data.strip():
        raise _nothing_came(what)
    return data


def decode_text(data: bytes) -> str:
    """Decode UTF-8, or UTF-16 if the data begins with its byte-order mark, as the `>` of a Windows shell writes it.

    Raises:
        UnicodeDecodeError: the data is in neither encoding.
    """
    return data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")


def is_stream(path: Path | str) -> bool:
    """Whether a path means stdin or stdout."""
    return str(path) == "-"


def command_line() -> str:
    """The command in a form that a shell accepts, such as `ssfnas search --data 'my data' ...`."""
    return shlex.join(["ssfnas", *sys.argv[1:]])


def first_of(names: Sequence[str], most: int) -> str:
    """The first names of a list and the number of the others, for a message: `cat, dog and 3 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def printable(text: str) -> str:
    r"""Escape what would control a terminal: control characters, ANSI sequences and marks of direction.

    Names of files, classes and settings may come from untrusted sources. `"a\x1b[31m"` becomes `"a\\x1b[31m"`. What a
    terminal cannot show, such as the surrogates that stand for undecodable bytes in a file name, is escaped, too.
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _printable_lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def format_duration(seconds: float) -> str:
    """Format a duration as `M:SS`, or as `H:MM:SS` from an hour on."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"


def mend_divergence(kind: str) -> str:
    """What to do about a run of a kind that has diverged: to go on with it would most likely end in the same."""
    rates = "'--set lr=' or '--set alpha_lr='" if kind == "search" else "'--set lr='"
    return f"try a lower {rates}, with --force or another -o"


def next_step(kind: str, path: Path | str, state: str, command: str = "", is_evaluated: bool = False) -> str:
    """What to do with a run, as a command that can be typed where there is one; empty if nothing is left to do.

    Args:
        kind: `search` or `retrain`.
        path: the run folder.
        state: of the run; `interrupted` where it should be running and nobody does, `given up` where it collapsed.
        command: the command that began it, if it is known.
        is_evaluated: whether a retraining has the figures that come next.
    """
    if state in ("stopped", "interrupted"):
        return command or "run the same command again: it goes on"
    if state == "given up":
        return f"{command or 'the same command, with'} --set stop_when_collapsed=false"
    if state == "running":
        return "wait"
    if state == "diverged":
        return mend_divergence(kind)
    if is_evaluated:
        return ""
    return shlex.join(["ssfnas", "derive" if kind == "search" else "evaluate", str(path)])
