"""Requests to stop a run: signals and the time limit. This module imports no torch, so it can be set up first.

SIGTERM, SIGUSR1 and SIGUSR2 (which queues send) and the first SIGINT only set a flag. The training loop saves a
checkpoint at the next step and exits with code 75, or 130 after SIGINT. The first SIGINT is acknowledged; a second one
ends the program immediately.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from ssfnas_cli import world
from ssfnas_cli.errors import Stopped

SIGNALS = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGINT")
STARTED = time.monotonic()
_received: list[int] = []
_stopping = False
# The end of the message if a request ends the program immediately. If it is empty, the training loop decides when.
_interruptible_because = ""


def install_handlers() -> None:
    """Treat signals as requests to stop from now on. The commands that train call this first."""
    for name in SIGNALS:
        if hasattr(signal, name) and not (name == "SIGHUP" and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN):
            signal.signal(getattr(signal, name), _handle_signal)
    if os.name == "posix":
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        threading.Thread(target=_answer_interrupts, args=(read_end,), daemon=True).start()


def _handle_signal(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT and signal.SIGINT in _received:
        os._exit(130)
    _received.append(number)
    if _interruptible_because:
        raise_if_requested()


def _answer_interrupts(signal_numbers: int) -> None:
    """Tell the user that a first SIGINT has arrived, and end the program at a second one.

    This runs in a thread because Python calls a signal handler only after the current C++ call, which may be a whole
    backward pass, and only once for two signals that arrive during that call. It bypasses Python's buffers because the
    process may end before they are flushed.

    Args:
        signal_numbers: the read end of a pipe to which the number of each signal is written as it arrives.
    """
    _wait_for_interrupt(signal_numbers)
    if not (_interruptible_because or _stopping):
        erase_progress_bar = b"\r\x1b[2K" if os.isatty(2) else b""
        with contextlib.suppress(OSError):
            os.write(2, erase_progress_bar + b"stopping after this step; Ctrl-C again leaves at once\n")
    _wait_for_interrupt(signal_numbers)
    os._exit(130)


def _wait_for_interrupt(signal_numbers: int) -> None:
    while os.read(signal_numbers, 1) != bytes([signal.SIGINT]):
        pass


class _Signalled(BaseException):
    """A request has arrived in a context that it may end.

    The handler raises it wherever the program happens to be, also within code that catches every Exception or, as
    `Path.is_dir` does, every ValueError. It is none of them, so that such code cannot swallow it.
    """


@contextlib.contextmanager
def interruptible(because: str = "before anything was begun") -> Iterator[None]:
    """Let a request end the program immediately within this context, because there is nothing to save.

    Args:
        because: the end of the message, which says why nothing is lost.

    Raises:
        Stopped: a signal arrives within the context, or arrived before it.
    """
    global _interruptible_because
    outer = _interruptible_because
    try:
        try:
            _interruptible_because = because
            raise_if_requested()
            yield
            raise_if_requested()
        finally:
            _interruptible_because = outer
    except _Signalled:
        raise Stopped(f"stopped by {signal.Signals(_received[-1]).name} {because}", interrupted()) from None


def raise_if_requested() -> None:
    """End the program if a signal has arrived. Call it within `interruptible`.

    The handler does so, too, but Python drops what it raises within a destructor.
    """
    global _stopping
    if _received:
        _stopping = True
        raise _Signalled


def ignore_signals() -> None:
    """Ignore signals in a loader process. Queues signal every process of a job, but only the main process decides."""
    for name in SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def interrupted() -> bool:
    """Whether one of the requests was a SIGINT."""
    return signal.SIGINT in _received


def requested_by(max_time: float | None) -> str | None:
    """What asks the run to stop: the name of a signal or the time limit, or None if the run may continue.

    Args:
        max_time: the limit, in seconds since the program started; None means no limit.
    """
    if _received:
        return signal.Signals(_received[-1]).name
    if max_time is not None and time.monotonic() - STARTED >= max_time:
        return f"--max-time {max_time:g} s"
    return None


def agreed_request(max_time: float | None) -> str | None:
    """What asks any of the ranks to stop, as `requested_by` does; every rank gets the same answer."""
    if world.size() == 1:
        return requested_by(max_time)
    limit = 1000  # above the numbers of all signals
    mine = 0
    if requested_by(max_time) is not None:
        mine = _received[-1] if _received else limit
    asked = world.largest(mine)
    if asked == 0:
        return None
    if asked == limit:
        return "--max-time" if max_time is None else f"--max-time {max_time:g} s"  # a rank may have one of its own
    return signal.Signals(asked).name
