"""log.txt: what a run says, kept in its folder."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from ssfnas_cli.artifacts.files import reason, unshare
from ssfnas_cli.console import log, printable
from ssfnas_cli.errors import DiskError


@contextlib.contextmanager
def logging_to(path: Path) -> Iterator[None]:
    unshare(path)
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
    """A log that a full disk silences: the same lines went to stderr, and the checkpoint will say what is wrong."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


class _LogLine(logging.Formatter):
    """A record on one line, with names that strangers chose escaped."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))
