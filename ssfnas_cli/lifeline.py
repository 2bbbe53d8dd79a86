"""What ties a rank to the others beside the training: how all of them end when one fails, and with whose error.

A rank that fails leaves its error in the store in which the ranks found each other. The first rank prints it, and all
end with its exit code. A thread of each rank looks there every second, so that this does not depend on what the rank
is doing. It also counts a heartbeat: a rank that was killed leaves no error, and is known by its silence. If the
network between two machines is cut, the store itself is silent for those on the other side, and each call waits for
an answer: a second thread counts how long.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from ssfnas_cli.errors import ResourceError

BEAT_SECONDS = 1.0
SILENCE_SECONDS = 30.0  # after which a rank counts as gone although its connections are not closed
CLOSED_SECONDS = 4.0  # of silence, if a connection was closed
GRACE_SECONDS = 15.0  # for what a rank is doing when another fails, before it is ended from outside
SAID_SECONDS = 20.0  # how long a rank waits for the first one to print its error, before it does so itself
GOES_ON = "the same command goes on from the last checkpoint"


class Lifeline:
    """The tie of one rank.

    Args:
        store: in which the ranks find each other, a `torch.distributed.Store`.
        rank: of this process.
        size: the number of ranks.
    """

    def __init__(self, store: Any, rank: int, size: int):
        self.store, self.rank, self.size = store, rank, size
        self._ended, self._failing, self._said = threading.Event(), threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._answers = 0  # how often the store has answered the watching thread
        self._error: tuple[str, int] | None = None  # this rank's own: message and exit code

    def wait_for_all(self, seconds: float) -> None:
        """Wait until all ranks have come, and watch over them from then on.

        Raises:
            ResourceError: some have not come in that time.
        """
        self.store.add(f"beat/{self.rank}", 1)  # a rank that is gone within its first second is missed, too
        self.store.set(f"came/{self.rank}", "1")
        for watch in (self._watch, self._watch_the_store):
            threading.Thread(target=watch, daemon=True).start()
        came = [f"came/{rank}" for rank in range(self.size)]
        if not _wait(lambda: self.store.check(came) or self.store.check(["error"]), seconds):
            missing = [str(rank) for rank, key in enumerate(came) if not self.store.check([key])]
            raise ResourceError(
                f"only some of {self.size} ranks have come within {seconds:.0f} s: {_named(missing)} not"
            )

    @contextlib.contextmanager
    def ending_after(self, seconds: float, message: str) -> Iterator[None]:
        """All ranks end with an error if one of them stays longer than so many seconds within this context."""
        timer = threading.Timer(seconds, self._publish, (message, ResourceError.exit_code))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def end(self) -> None:
        """Watch no more: all ranks are done."""
        self._ended.set()

    # Failure

    def fail(self, message: str, code: int, lost: bool) -> tuple[str, int]:
        """Tell the others of this rank's error, or learn which one ended it.

        Args:
            message: of the error, one line.
            code: the exit code.
            lost: whether the error is only that another rank cannot be reached, which has an error of its own.

        Returns:
            The line to print, or nothing if another rank prints it, and the exit code.
        """
        self._failing.set()
        self._error = None if lost else (message, code)
        try:
            error = self._cause(message) if lost else self._publish(message, code, self.rank)
            if self.rank == 0 and not lost:
                error = {"rank": 0, "message": message, "code": code}  # if all have the same error, it is not a rank's
            text, code = self._say(error), error["code"]
            self._part()
        except Exception as reason:  # the store is gone, and with it the machine that kept it
            if lost:
                message, code = _store_is_gone(reason), ResourceError.exit_code
            text = "" if self._said.is_set() else message
        self._ended.set()
        return text, code

    def _publish(self, message: str, code: int, rank: int | None = None) -> dict[str, Any]:
        """The first error of all: this one, unless another was earlier. `rank` is whose it is, if it is a rank's."""
        mine = json.dumps({"rank": rank, "message": message, "code": code})
        return json.loads(self.store.compare_set("error", "", mine))

    def _cause(self, message: str) -> dict[str, Any]:
        """Why another rank cannot be reached: its error, or its silence."""
        beats = self._beats()
        if not _wait(lambda: self.store.check(["error"]), CLOSED_SECONDS):
            silent = [rank for rank, beat in enumerate(self._beats()) if beat == beats[rank] and rank != self.rank]
            return self._publish(_silence(silent) if silent else message, ResourceError.exit_code)
        return json.loads(self.store.get("error"))

    def _say(self, error: dict[str, Any]) -> str:
        """The line that the first rank has to print, once. Another one does so if the first one does not."""
        text = f"rank {error['rank']}: {error['message']}" if error["rank"] else error["message"]
        with self._lock:
            if self._said.is_set():
                return ""
            self._said.set()
        if self.rank == 0:
            self.store.set("said", "1")
            return text
        if _wait(lambda: self.store.check(["said"]), SAID_SECONDS):
            return ""
        return text if self.store.add("speakers", 1) == 1 else ""

    def _part(self) -> None:
        """Go, but not before the others have read why: the store may end with the first rank."""
        self.store.set(f"parted/{self.rank}", "1")
        if self.rank == 0:
            others = [f"parted/{rank}" for rank in range(1, self.size)]
            _wait(lambda: self.store.check(others) or self._all_silent(), SAID_SECONDS)

    def _all_silent(self) -> bool:
        """Whether no other rank lives any more that has not parted."""
        waiting = [rank for rank in range(1, self.size) if not self.store.check([f"parted/{rank}"])]
        before = self._beats()
        time.sleep(2 * BEAT_SECONDS)
        after = self._beats()
        return all(before[rank] == after[rank] for rank in waiting)

    # The thread

    def _watch(self) -> None:
        """Beat, and end this process if another rank has failed and the main thread does not notice."""
        heard = [(0, time.monotonic())] * self.size
        since = looked = time.monotonic()
        failed = False
        while not self._ended.wait(BEAT_SECONDS):
            try:
                self.store.add(f"beat/{self.rank}", 1)
                failed = failed or self.store.check(["error"])
                if not failed:
                    since = time.monotonic()
                    if since - looked > SILENCE_SECONDS / 2:  # this process was stopped itself
                        heard = [(0, since)] * self.size
                    looked = since
                    self._listen(heard)
                elif time.monotonic() - since > 2 * BEAT_SECONDS and not self._failing.is_set():
                    self._end_from_outside(since)
                self._answers += 1
            except Exception as reason:
                if self._ended.wait(GRACE_SECONDS) or self._failing.is_set():
                    return
                _print(_store_is_gone(reason))
                os._exit(ResourceError.exit_code)

    def _watch_the_store(self) -> None:
        """End this process if the store has stopped answering, which no call to it notices by itself.

        Counted are pauses, not time, so that a process that was stopped itself does not take its own for a silence.
        """
        answers, pauses = 0, 0
        while not self._ended.wait(BEAT_SECONDS):
            answers, pauses = self._answers, 0 if self._answers != answers else pauses + 1
            if pauses * BEAT_SECONDS > SILENCE_SECONDS:
                gone = _store_is_gone(TimeoutError(f"no answer for {SILENCE_SECONDS:.0f} s"))
                text, code = self._error or (gone, ResourceError.exit_code)
                if not self._said.is_set():
                    _print(text)
                os._exit(code)

    def _listen(self, heard: list[tuple[int, float]]) -> None:
        """Publish that ranks are silent. The first rank listens to all others, and they listen to it."""
        now = time.monotonic()
        for rank in range(1, self.size) if self.rank == 0 else [0]:
            beat = self.store.add(f"beat/{rank}", 0)
            if beat != heard[rank][0]:
                heard[rank] = (beat, now)
            elif beat and now - heard[rank][1] > SILENCE_SECONDS:
                self._publish(_silence([rank]), ResourceError.exit_code)

    def _end_from_outside(self, since: float) -> None:
        error = json.loads(self.store.get("error"))
        if self.rank == 0 and (text := self._say(error)):
            _print(text)
        if time.monotonic() - since > GRACE_SECONDS:
            with contextlib.suppress(Exception):
                self.store.set(f"parted/{self.rank}", "1")
            os._exit(error["code"])

    def _beats(self) -> list[int]:
        return [self.store.add(f"beat/{rank}", 0) for rank in range(self.size)]


def _silence(ranks: list[int]) -> str:
    who = _named([str(rank) for rank in ranks])
    has = "has" if len(ranks) == 1 else "have"
    return f"{who} {has} ended without a word, killed for want of memory perhaps, or the machine is gone: {GOES_ON}"


def _store_is_gone(reason: Exception) -> str:
    return f"the first rank cannot be reached any more ({(str(reason).splitlines() or [''])[0]}): {GOES_ON}"


def _named(ranks: list[str]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(ranks)}"


def _wait(holds: Callable[[], bool], seconds: float) -> bool:
    """Wait until something holds, at most so long. Returns whether it does."""
    end = time.monotonic() + seconds
    pause = 0.01
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(pause)
        pause = min(2 * pause, 0.5)
    return True


def _print(text: str) -> None:
    with contextlib.suppress(OSError):
        print(f"ssfnas: {text}", file=sys.stderr, flush=True)
