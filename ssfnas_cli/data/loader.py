"""Loader processes: batches are made beside the training, and nothing waits for what cannot come.

A process pool, and not torch's DataLoader: there a batch that a loader process cannot hand over (shared memory is full,
no descriptor is free) is lost in a thread, and the training waits for it for ever. Here it is an exception.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import resource
import shutil
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

import torch

from ssfnas_cli import stop
from ssfnas_cli.console import log
from ssfnas_cli.errors import ResourceError, SsfnasError, Stopped

AHEAD = 2  # batches that each process has under way or ready
POLL_SECONDS = 0.5  # between two looks for a request to stop
PATIENCE_SECONDS = 5.0  # for the batch under way once a stop is asked for: after its step the training saves
SILENCE_SECONDS = 60.0  # without a batch, after which a word is due
SHARED_MEMORY = Path("/dev/shm")


class Items(Protocol):
    """What can be loaded: items by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Any: ...


def load_in_processes(items: Items, numbers: range, workers: int) -> Iterator[Any]:
    """Items by number, in order, made by `workers` processes.

    Raises:
        ResourceError: a process died, or shared memory, descriptors or processes ran out.
        Stopped: a stop is asked for while no batch comes.
    """
    others = set(multiprocessing.active_children())
    try:
        pool = ProcessPoolExecutor(workers, initializer=_begin, initargs=(items,))
    except OSError as error:  # its locks lie in shared memory, its pipes are descriptors
        raise _lacking(error, workers, set()) or error from error
    futures: deque[Future[Any]] = deque()
    processes: set[BaseProcess] = set()
    left = iter(numbers)
    try:
        for number in itertools.islice(left, AHEAD * workers):
            futures.append(pool.submit(_make, number))
        processes = set(multiprocessing.active_children()) - others
        while futures:
            item = _wait_for(futures.popleft())
            for number in itertools.islice(left, 1):
                futures.append(pool.submit(_make, number))
            yield item
    except SsfnasError:
        raise
    except Exception as error:
        raise _lacking(error, workers, processes) or error from error.__cause__
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.kill()  # they ignore SIGTERM, and one that hangs would keep the program from ending


def _wait_for(future: Future[Any]) -> Any:
    silent = asked = 0.0
    while True:
        try:
            return future.result(POLL_SECONDS)
        except TimeoutError:
            if future.done():  # what was raised is the process's own
                raise
        silent += POLL_SECONDS
        if why := stop.requested_by(None):
            asked += POLL_SECONDS
            if asked >= PATIENCE_SECONDS:
                raise Stopped(
                    f"stopped by {why} while loader processes bring no batch: the same command goes on",
                    interrupted=stop.interrupted(),
                )
        if silent == SILENCE_SECONDS:
            log.warning("loader processes have brought no batch for %.0f s: still waiting", silent)


_items: Items  # in a loader process: what it makes batches of


def _begin(items: Items) -> None:
    """The first thing that a loader process does."""
    global _items
    _items = items
    stop.ignore_signals()
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _make(number: int) -> Any:
    return _items[number]


def _lacking(error: Exception, workers: int, processes: set[BaseProcess]) -> ResourceError | None:
    """The machine's limit that an exception speaks of, or None if it does not."""
    told = f"{error} {error.__cause__}"
    if "Too many open files" in told:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        what = f"too many open files (the limit is {limit}): raise it with 'ulimit -n', or take fewer workers"
    elif "shm" in told or "torch_" in told or "No space left" in told:
        what = f"shared memory is full{_room()}: give it more (docker run --shm-size), or take --workers 0"
    elif isinstance(error, BrokenProcessPool):
        codes = [process.exitcode or 0 for process in processes]
        deaths = [signal.Signals(-code).name for code in codes if code < 0]
        by = f" of {deaths[0]}" if deaths else ""
        what = f"a loader process has died{by}, for want of memory perhaps: take fewer workers, or --workers 0"
    elif isinstance(error, OSError):
        what = f"loader processes cannot work: {error.strerror or error}: take fewer workers, or --workers 0"
    else:
        return None
    return ResourceError(f"--workers {workers}: {what}. The same command goes on from the last checkpoint")


def _room() -> str:
    try:
        usage = shutil.disk_usage(SHARED_MEMORY)
    except OSError:
        return ""
    return f" ({SHARED_MEMORY}: {usage.free / 2**20:.1f} of {usage.total / 2**20:.1f} MiB free)"
