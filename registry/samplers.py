"""Samplers, which choose the training images of an epoch and their order.

A sampler's factory takes `(options, class_counts)`. Its `order` depends on nothing but its arguments. A resumed run
therefore draws the same images as an uninterrupted one, whichever process loads them.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from registry.core import SAMPLERS, Options


class Sampler(abc.ABC):
    """Base class of samplers.

    Args:
        class_counts: the number of images per class in the split, or in the half of it, that is sampled.
    """

    def __init__(self, options: Options, class_counts: Sequence[int]):
        self.options = options
        self.class_counts = list(class_counts)

    @abc.abstractmethod
    def order(self, labels: NDArray[np.int64], seed: int, epoch: int, progress: float) -> NDArray[np.int64]:
        """Positions in `labels` [N], in the order in which the epoch visits them. `progress` runs from 0 to 1."""

    def length(self, progress: float) -> int:
        """The length of `order`, which determines the number of steps of an epoch."""
        return sum(self.class_counts)


@SAMPLERS.register("instance")
class Instance(Sampler):
    """Instance-balanced sampling: every epoch visits each image once, in random order."""

    def order(self, labels: NDArray[np.int64], seed: int, epoch: int, progress: float) -> NDArray[np.int64]:
        return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(len(labels))
