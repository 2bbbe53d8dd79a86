"""Requests to stop: signals and the time limit, from before torch is imported.

SIGTERM, SIGUSR1 and SIGUSR2 (what queues send) and the first SIGINT only set a flag; the training loop saves at the
next step and leaves with 75, or 130 after SIGINT. A second SIGINT leaves at once.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

STARTED = time.monotonic()
_received: list[int] = []


def install_handlers() -> None:
    """From here on a signal is a request. Called first thing by the commands that train."""
    for name in ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _receive)


def _receive(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT and signal.SIGINT in _received:
        os._exit(130)
    _received.append(number)


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
