"""Samplers: which training images an epoch shows, and in which order.

A sampler's factory takes `(options, class_counts)`. Its `order` is a function of its arguments alone, so a resumed run
draws what the undisturbed one would have drawn, whoever loads the images.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from registry.core import SAMPLERS, Options


class Sampler(abc.ABC):
    """Base of every sampler.

    Args:
        class_counts: images per class of the split, or of the half of it, that is sampled.
    """

    def __init__(self, options: Options, class_counts: Sequence[int]):
        self.options = options
        self.class_counts = list(class_counts)

    @abc.abstractmethod
    def order(self, labels: NDArray[np.int64], seed: int, epoch: int, progress: float) -> NDArray[np.int64]:
        """Positions in `labels` [N], in the order in which this epoch shows them; `progress` runs from 0 to 1."""

    def length(self, progress: float) -> int:
        """How many positions `order` gives: an epoch has as many steps as this fills batches."""
        return sum(self.class_counts)


@SAMPLERS.register("instance")
class Instance(Sampler):
    """Every image once an epoch, shuffled: a class is seen as often as it has images."""

    def order(self, labels: NDArray[np.int64], seed: int, epoch: int, progress: float) -> NDArray[np.int64]:
        return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(len(labels))
