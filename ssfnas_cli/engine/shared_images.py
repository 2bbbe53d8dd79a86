"""Prediction of splits that share images, such as `test_longtail`, which is a part of `test`: each image once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ssfnas_cli.artifacts.dataset import DataSet, Split
from ssfnas_cli.engine.predict import Scores, accuracy


class Part(NamedTuple):
    """A split whose images are all in another one: the name of that split, and their places there [n]."""

    whole: str
    rows: np.ndarray


class SharedSplits:
    """Some splits of a data set, of which some may be parts of others.

    Attributes:
        splits: by name, in the order given.
    """

    def __init__(self, data: DataSet, names: list[str]):
        self.splits = {name: data.split(name) for name in names}

    @cached_property
    def parts(self) -> dict[str, Part]:
        """The splits that are parts of others, by name. Finding them reads their images."""
        found: dict[str, Part] = {}
        wholes: list[str] = []
        for name in sorted(self.splits, key=lambda name: -len(self.splits[name])):  # stable: `test` before its equal
            for whole in wholes:
                rows = _rows_within(self.splits[name], self.splits[whole])
                if rows is not None:
                    found[name] = Part(whole, rows)
                    break
            else:
                wholes.append(name)
        return found

    @property
    def wholes(self) -> dict[str, Split]:
        """The splits that have to be predicted."""
        return {name: split for name, split in self.splits.items() if name not in self.parts}

    @property
    def same(self) -> list[list[str]]:
        """Pairs of splits that hold the same images."""
        return [
            [part.whole, name] for name, part in self.parts.items() if len(part.rows) == len(self.splits[part.whole])
        ]

    def predict(self, score: Callable[[Split], Scores]) -> dict[str, Scores]:
        """Class scores [n, C] and labels [n] of every split. `score` gives those of a split that is no part."""
        whole = {name: score(split) for name, split in self.wholes.items()}
        part = {name: (whole[part.whole][0][part.rows], self.splits[name].labels) for name, part in self.parts.items()}
        return {name: (whole | part)[name] for name in self.splits}

    def accuracies(self, score: Callable[[Split], Scores]) -> dict[str, float]:
        """Top-1 accuracy of every split in percent; `score` as for `predict`."""
        return {name: accuracy(*scores) for name, scores in self.predict(score).items()}


def _rows_within(part: Split, whole: Split, chunk: int = 1024) -> np.ndarray | None:
    """The places of a split's images in another one [len(part)], or None if one of them is not there."""
    order = np.argsort(whole.source_index, kind="stable")
    found = np.searchsorted(whole.source_index, part.source_index, sorter=order)
    if found.size == 0 or found.max() >= len(whole):
        return None
    rows = order[found]
    same = np.array_equal(whole.source_index[rows], part.source_index)
    if not same or not np.array_equal(whole.labels[rows], part.labels):
        return None
    for start in range(0, len(rows), chunk):  # a place in the source means nothing between splits of different origin
        places = np.arange(start, min(start + chunk, len(rows)))
        if not np.array_equal(part.rows(places), whole.rows(rows[places])):
            return None
    return rows
