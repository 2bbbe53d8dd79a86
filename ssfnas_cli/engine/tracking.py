"""`track_test`: the accuracy on held-out splits at the ends of epochs, so seldom that it costs little.

An epoch of a long-tailed training split is short, and the test split may be larger than it. So `track_every=auto`
chooses from the numbers of images every how many epochs the held-out splits are evaluated: their evaluation should take
less than a quarter of the time of the training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ssfnas_cli.artifacts.dataset import DataSet, Split
from ssfnas_cli.console import log
from ssfnas_cli.engine.predict import Scores
from ssfnas_cli.engine.shared_images import SharedSplits
from ssfnas_cli.settings import Training

SHARE = 0.25  # of the training's time, at most
# What the evaluation of an image takes at most, over what its training step takes (benchmarks/tracking.py).
COST = 0.5


class Tracking:
    """Which splits are tracked, and in which epochs.

    Args:
        settings: of the training.
        data: the data set.
        names: the splits whose accuracy is tracked.
        epochs: of the training. The last one is always tracked.
        trained: how many views of images the steps of an epoch train on.
    """

    def __init__(self, settings: Training, data: DataSet, names: list[str], epochs: int, trained: int):
        self.settings, self.data, self.epochs, self.trained = settings, data, epochs, trained
        self.shared: SharedSplits | None = SharedSplits(data, names) if settings.track_test and names else None
        self.every = 0 if self.shared is None else self._interval(self.shared)

    def _interval(self, shared: SharedSplits) -> int:
        if self.settings.track_every != "auto":
            return self.settings.track_every
        cost = COST * _num_images(shared) / self.trained
        return max(1, min(self.epochs, math.ceil(cost / SHARE)))

    def rows(self, epoch: int) -> dict[str, tuple[Split, np.ndarray]]:
        """The splits, and the rows of them, that the network is run on at the end of an epoch, counted from 0."""
        if self.shared is None or ((epoch + 1) % self.every and epoch + 1 < self.epochs):
            return {}
        return {name: (split, np.arange(len(split))) for name, split in self.shared.wholes.items()}

    def accuracies(self, epoch: int, score: Callable[[Split], Scores]) -> dict[str, float]:
        """Top-1 accuracy in percent of every tracked split; nothing in an epoch that is not tracked.

        Args:
            epoch: counted from 0.
            score: gives the class scores and labels of a split.
        """
        return {} if self.shared is None or not self.rows(epoch) else self.shared.accuracies(score)

    def say(self) -> None:
        """Log every how many epochs the splits are evaluated, if they are."""
        if self.shared is None:
            return
        often = "every epoch" if self.every == 1 else f"every {self.every} epochs and after the last one"
        auto = self.resolved().get("track_every")
        why = f" (track_every=auto: {auto['why']})" if auto else ""
        log.info("%s: evaluated after %s%s", ", ".join(self.shared.splits), often, why)

    def resolved(self) -> dict[str, dict[str, Any]]:
        """What `auto` means here and why, for config.json."""
        if self.shared is None or self.settings.track_every != "auto":
            return {}
        why = f"{_num_images(self.shared):,} held-out images; an epoch trains on {self.trained:,}"
        return {"track_every": {"value": self.every, "why": why}}


def _num_images(shared: SharedSplits) -> int:
    return sum(len(split) for split in shared.wholes.values())
