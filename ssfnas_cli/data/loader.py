"""Loader processes, which make batches in parallel to the training.

This uses a process pool and not torch's DataLoader. If a loader process of a DataLoader cannot pass a batch on (shared
memory is full, or no file descriptor is free), a thread loses the error and the training waits for ever. The pool
raises an exception.
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

from registry import collective
from ssfnas_cli import stop
from ssfnas_cli.console import log
from ssfnas_cli.errors import ResourceError, SsfnasError, Stopped

BATCHES_PER_PROCESS = 2  # batches per process that are in progress or ready
POLL_SECONDS = 0.5  # between two checks for a request to stop
PATIENCE_SECONDS = 5.0  # how long to wait for a batch after a request to stop, since the training saves after its step
SILENCE_SECONDS = 60.0  # without a batch, after which a warning is shown
SHARED_MEMORY = Path("/dev/shm")


class Items(Protocol):
    """Items that can be loaded by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Any: ...


def load_in_processes(items: Items, numbers: range, workers: int, max_time: float | None = None) -> Iterator[Any]:
    """Yield items in the order of `numbers`. `workers` processes load them.

    Args:
        items, numbers, workers: as said.
        max_time: the time limit of the run, in seconds since the program started; None means no limit.

    Raises:
        ResourceError: a process died, or shared memory, file descriptors or processes ran out.
        Stopped: a signal has arrived or the time limit has passed, and no batch arrives.
    """
    others = set(multiprocessing.active_children())
    try:
        pool = ProcessPoolExecutor(workers, initializer=_initialise, initargs=(items, *collective.place()))
    except OSError as error:  # its locks need shared memory, and its pipes need descriptors
        raise _resource_error(error, workers, set()) or error from error
    futures: deque[Future[Any]] = deque()
    processes: set[BaseProcess] = set()
    remaining = iter(numbers)
    try:
        for number in itertools.islice(remaining, BATCHES_PER_PROCESS * workers):
            futures.append(pool.submit(_load_item, number))
        processes = set(multiprocessing.active_children()) - others
        while futures:
            item = _wait_for(futures.popleft(), max_time)
            for number in itertools.islice(remaining, 1):
                futures.append(pool.submit(_load_item, number))
            yield item
    except SsfnasError:
        raise
    except Exception as error:
        raise _resource_error(error, workers, processes) or error from error.__cause__
    finally:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()  # they ignore SIGTERM, and the program would wait for one that hangs
        # Waiting is quick now, and needed: a pool that is still closing when Python exits can print a traceback.
        pool.shutdown(wait=True, cancel_futures=True)


def _wait_for(future: Future[Any], max_time: float | None) -> Any:
    silent = since_request = 0.0
    while True:
        try:
            return future.result(POLL_SECONDS)
        except TimeoutError:
            if future.done():  # the loader process raised it
                raise
        silent += POLL_SECONDS
        if request := stop.requested_by(max_time):
            since_request += POLL_SECONDS
            if since_request >= PATIENCE_SECONDS:
                raise Stopped(
                    f"stopped by {request} while loader processes bring no batch: the same command goes on",
                    interrupted=stop.interrupted(),
                )
        if silent == SILENCE_SECONDS:
            log.warning("loader processes have brought no batch for %.0f s: still waiting", silent)


_items: Items  # set in a loader process


def _initialise(items: Items, rank: int, num_ranks: int) -> None:
    """Initialise a loader process of a rank, whose shares of the batches it makes."""
    global _items
    _items = items
    collective.use(rank, num_ranks)
    stop.ignore_signals()
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _load_item(number: int) -> Any:
    return _items[number]


def _resource_error(error: Exception, workers: int, processes: set[BaseProcess]) -> ResourceError | None:
    """The error for a limit of the machine that an exception indicates, or None if it indicates none."""
    text = f"{error} {error.__cause__}"
    if "Too many open files" in text:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        what = f"too many open files (the limit is {limit}): raise it with 'ulimit -n', or take fewer workers"
    elif "shm" in text or "torch_" in text or "No space left" in text:
        what = (
            f"shared memory is full{_shared_memory_usage()}: give it more (docker run --shm-size), or take --workers 0"
        )
    elif isinstance(error, BrokenProcessPool):
        codes = [process.exitcode or 0 for process in processes]
        deaths = [signal.Signals(-code).name for code in codes if code < 0]
        cause = f" of {deaths[0]}" if deaths else ""
        what = f"a loader process has died{cause}, for want of memory perhaps: take fewer workers, or --workers 0"
    elif isinstance(error, OSError):
        what = f"loader processes cannot work: {error.strerror or error}: take fewer workers, or --workers 0"
    else:
        return None
    return ResourceError(f"--workers {workers}: {what}. The same command goes on from the last checkpoint")


def _shared_memory_usage() -> str:
    try:
        usage = shutil.disk_usage(SHARED_MEMORY)
    except OSError:
        return ""
    return f" ({SHARED_MEMORY}: {usage.free / 2**20:.1f} of {usage.total / 2**20:.1f} MiB free)"
