"""Predictions of any number of image files, in their order: files are decoded ahead while the network computes.

Several ranks share the work: the first one finds the files, each reads and predicts a part of every block of them, and
the first one gets all rows.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ssfnas_cli import world
from ssfnas_cli.console import log
from ssfnas_cli.data.images import BadImage
from ssfnas_cli.deploy.model import BATCH_SIZE, Model, probabilities
from ssfnas_cli.deploy.paths import Named
from ssfnas_cli.deploy.prepare import prepare
from ssfnas_cli.engine.corrections import Floats

AHEAD = 2 * BATCH_SIZE  # images that are being decoded or are ready
BLOCK = 8 * BATCH_SIZE  # images that a rank gets at a time, if there are several
REPORT_SECONDS = 30.0
T = TypeVar("T")
S = TypeVar("S")


class Row(NamedTuple):
    """What is said of a file: its most probable classes with their probabilities, or why it could not be read."""

    path: str
    top: list[tuple[str, float]]
    error: str = ""
    is_other: bool = False  # a file in a folder that is no image, and does not have the name of one


class Stream:
    """Predicts images one after the other, in memory that does not grow with their number.

    Attributes:
        num_read: images that were predicted.
        num_bad: files that could not be read.
        num_others: files in folders that are no images, and do not have the name of one.

    Of several ranks, each counts the images of all.
    """

    def __init__(self, model: Model, shift: Floats, num_top: int):
        self.model, self.shift, self.num_top = model, shift, num_top
        self.num_read = self.num_bad = self.num_others = 0
        self._began = self._reported = time.monotonic()

    def rows(self, named: Iterable[Named]) -> Iterator[list[Row]]:
        """Yield the rows of the files in their order, some at a time. Of several ranks only the first uses `named`."""
        for rows in self._predicted(named) if world.size() == 1 else self._by_ranks(iter(named)):
            self._count(rows)
            yield [row for row in rows if not row.is_other]
            self._report()

    def _by_ranks(self, named: Iterator[Named]) -> Iterator[list[Row]]:
        """The rows of blocks of files, a part of each predicted by each rank."""
        size, rank = world.size(), world.place().rank
        while block := world.from_first(lambda: list(islice(named, size * BLOCK))):
            share = -(-len(block) // size)
            mine = [Named(*one) for one in block[rank * share : (rank + 1) * share]]
            parts = world.gather([row for rows in self._predicted(mine) for row in rows])
            yield [Row(path, *rest) for part in parts for path, *rest in part]

    def _predicted(self, named: Iterable[Named]) -> Iterator[list[Row]]:
        """The rows of files by batches."""
        read = look_ahead(self._read, named, min(4, os.cpu_count() or 1), AHEAD)
        while batch := list(islice(read, BATCH_SIZE)):
            yield list(self._rows(batch))

    def _read(self, one: Named) -> NDArray[np.uint8] | BadImage:
        if one.why:
            return BadImage(one.path, one.why)
        try:
            return prepare(one.path, self.model.card)
        except BadImage as bad:
            return bad

    def _rows(self, batch: list[tuple[Named, NDArray[np.uint8] | BadImage]]) -> Iterator[Row]:
        arrays = [image for _, image in batch if not isinstance(image, BadImage)]
        found = iter(self._top(np.stack(arrays)) if arrays else [])
        for one, image in batch:
            if isinstance(image, BadImage):
                yield Row(one.path, [], image.why, one.is_found)
            else:
                yield Row(one.path, next(found))

    def _count(self, rows: list[Row]) -> None:
        """Count images, and warn of those that could not be read."""
        for row in rows:
            if row.is_other:
                self.num_others += 1
            elif row.error:
                self.num_bad += 1
                log.warning("%s: %s", row.path, row.error)
            else:
                self.num_read += 1

    def _top(self, arrays: NDArray[np.uint8]) -> Iterator[list[tuple[str, float]]]:
        logits = self.model.logits(arrays)
        order = np.argsort(-(logits.double().numpy() + self.shift), axis=1, kind="stable")[:, : self.num_top]
        for best, row in zip(order.tolist(), probabilities(logits, self.shift), strict=True):
            yield [(self.model.class_names[c], float(row[c])) for c in best]

    def _report(self) -> None:
        if time.monotonic() - self._reported > REPORT_SECONDS:
            self._reported = time.monotonic()
            log.info("%s", self.describe())

    def describe(self) -> str:
        """How many images there were, and how fast."""
        seconds = time.monotonic() - self._began
        noun, rate = "image" if self.num_read == 1 else "images", self.num_read / max(seconds, 1e-9)
        speed = f", {rate:,.0f} a second" if rate >= 1 and self.num_read > 1 else ""
        return f"{self.num_read:,} {noun} in {seconds:.1f} s{speed}"


def look_ahead(act: Callable[[T], S], items: Iterable[T], threads: int, ahead: int) -> Iterator[tuple[T, S]]:
    """Yield every item with what `act` makes of it, in order; threads work on at most `ahead` items that come next."""
    pool = ThreadPoolExecutor(threads)
    waiting: deque[tuple[T, Future[S]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(act, item)))
            if len(waiting) == ahead:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
