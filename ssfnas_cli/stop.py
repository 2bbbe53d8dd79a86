"""Requests to stop: signals and the time limit, from before torch is imported.

SIGTERM, SIGUSR1 and SIGUSR2 (what queues send) and the first SIGINT only set a flag; the training loop saves at the
next step and leaves with 75, or 130 after SIGINT. The first SIGINT is acknowledged; a second one leaves at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from ssfnas_cli.errors import Stopped

SIGNALS = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGINT")
STARTED = time.monotonic()
_received: list[int] = []
_leaving = False
_nothing_to_save = ""  # what a request that ends the program at once says; empty: the loop decides


def install_handlers() -> None:
    """From here on a signal is a request. Called first thing by the commands that train."""
    for name in SIGNALS:
        if hasattr(signal, name) and not (name == "SIGHUP" and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN):
            signal.signal(getattr(signal, name), _receive)
    if os.name == "posix":
        requests, numbers = os.pipe()
        os.set_blocking(numbers, False)
        signal.set_wakeup_fd(numbers, warn_on_full_buffer=False)
        threading.Thread(target=_acknowledge, args=(requests,), daemon=True).start()


def _receive(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT and signal.SIGINT in _received:
        os._exit(130)
    _received.append(number)
    if _nothing_to_save:
        _leave()


def _acknowledge(requests: int) -> None:
    """Say once that a SIGINT has come; `requests` is a pipe that brings the numbers of signals.

    In a thread, as a handler waits for the C++ call that is under way, a whole backward pass perhaps. Past Python's
    buffers, as the process may be ended before they are written.
    """
    while os.read(requests, 1) != bytes([signal.SIGINT]):
        pass
    if not (_nothing_to_save or _leaving):
        over_the_bar = b"\r\x1b[2K" if os.isatty(2) else b""
        with contextlib.suppress(OSError):
            os.write(2, over_the_bar + b"stopping after this step; Ctrl-C again leaves at once\n")


def _leave() -> NoReturn:
    global _leaving
    _leaving = True
    raise Stopped(f"stopped by {signal.Signals(_received[-1]).name} {_nothing_to_save}", interrupted())


@contextlib.contextmanager
def waiting(nothing_to_save: str = "before anything was begun") -> Iterator[None]:
    """While there is nothing to save (this program only waits for a pipe, say), a request ends it at once."""
    global _nothing_to_save
    _nothing_to_save = nothing_to_save
    try:
        leave_if_asked()
        yield
        leave_if_asked()
    finally:
        _nothing_to_save = ""


def leave_if_asked() -> None:
    """Within `waiting`: end now if a request has come. Its exception is lost where code that ignores all meets it."""
    if _received:
        _leave()


def leave_to_main_process() -> None:
    """In a loader process: a queue signals every process of a job, and only the main one decides what to do."""
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
