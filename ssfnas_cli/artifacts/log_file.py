"""log.txt, which records the messages of a run in its folder."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from ssfnas_cli.artifacts.files import break_hard_links, reason
from ssfnas_cli.console import log, printable
from ssfnas_cli.errors import DiskError


@contextlib.contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Append log messages to a file within this context.

    Raises:
        DiskError: the file cannot be opened.
    """
    break_hard_links(path)
    try:
        handler = _LogFile(path, encoding="utf-8")
    except OSError as error:
        raise DiskError(f"{path}: cannot be written: {reason(error)}") from error
    handler.setFormatter(_LogLine("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        with contextlib.suppress(OSError):
            handler.close()


class _LogFile(logging.FileHandler):
    """A log file that ignores failures to write. Messages also go to stderr, and a checkpoint reports a full disk."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


class _LogLine(logging.Formatter):
    """Formats a record as one line and escapes control characters, since names may come from untrusted sources."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))
