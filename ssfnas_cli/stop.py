"""Requests to stop: signals and the time limit, from before torch is imported.

SIGTERM, SIGUSR1 and SIGUSR2 (what queues send) and the first SIGINT only set a flag; the training loop saves at the
next step and leaves with 75, or 130 after SIGINT. A second SIGINT leaves at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from ssfnas_cli.errors import Stopped

SIGNALS = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT")
STARTED = time.monotonic()
_received: list[int] = []
_waiting = False


def install_handlers() -> None:
    """From here on a signal is a request. Called first thing by the commands that train."""
    for name in SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _receive)


def _receive(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT and signal.SIGINT in _received:
        os._exit(130)
    _received.append(number)
    if _waiting:
        _leave()


def _leave() -> NoReturn:
    raise Stopped(f"stopped by {signal.Signals(_received[-1]).name} before anything was begun", interrupted())


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """While this program only waits, for a pipe say, a request ends it at once."""
    global _waiting
    _waiting = True
    try:
        if _received:
            _leave()
        yield
    finally:
        _waiting = False


def leave_to_main_process(number: int) -> None:
    """In loader process `number`: a queue signals every process of a job, and only the main one decides what to do."""
    for name in SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def interrupted() -> bool:
    """Whether one of the requests was SIGINT."""
    return signal.SIGINT in _received


def request(max_time: float | None) -> str | None:
    """Why to stop, or None. `max_time` is in seconds since the program started."""
    if _received:
        return signal.Signals(_received[-1]).name
    if max_time is not None and time.monotonic() - STARTED >= max_time:
        return f"--max-time {max_time:g} s"
    return None
