"""Samplers, which choose the training images of an epoch and their order.

A sampler's factory takes `(options, class_counts)`. Its `order` depends on nothing but its arguments. A resumed run
therefore draws the same images as an uninterrupted one, whichever process loads them.

Every sampler except `instance` can be deferred: the epochs that begin before that share of the training visit each
image once. An epoch has as many draws as there are images, so that methods are compared at an equal number of steps;
only `under` has fewer.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from registry.balance import Deferred, is_deferred
from registry.core import SAMPLERS, Options, PluginError

Positions = NDArray[np.int64]


class Sampler(abc.ABC):
    """Base class of samplers.

    Args:
        class_counts: the number of images per class in the split, or in the half of it, that is sampled.

    Attributes:
        keeps_prior: whether every image is shown equally often, so that a loss sees the classes as often as they are.
    """

    keeps_prior: ClassVar[bool] = False

    def __init__(self, options: Options, class_counts: Sequence[int]):
        self.options = options
        self.class_counts = list(class_counts)

    @abc.abstractmethod
    def order(self, labels: Positions, seed: int, epoch: int, progress: float) -> Positions:
        """Positions in `labels` [N], in the order in which the epoch visits them.

        Args:
            labels: of the images that are sampled.
            seed: of the draws.
            epoch: counted from 0.
            progress: the share of the training that is done when the epoch begins, from 0 to 1.
        """

    def length(self, progress: float) -> int:
        """The length of `order`, which determines the number of steps of an epoch."""
        return sum(self.class_counts)


def epoch_numbers(seed: int, epoch: int) -> np.random.Generator:
    """The random numbers of an epoch."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch]))


@SAMPLERS.register("instance")
class Instance(Sampler):
    """Instance-balanced sampling: every epoch visits each image once, in random order."""

    keeps_prior = True

    def order(self, labels: Positions, seed: int, epoch: int, progress: float) -> Positions:
        return epoch_numbers(seed, epoch).permutation(len(labels))


class DeferredSampler(Sampler):
    """Base of the samplers that treat classes differently, perhaps only after a share of the training."""

    options: Deferred

    def order(self, labels: Positions, seed: int, epoch: int, progress: float) -> Positions:
        if is_deferred(self.options, progress):
            return epoch_numbers(seed, epoch).permutation(len(labels))
        return self.rebalanced(labels, seed, epoch, progress)

    @abc.abstractmethod
    def rebalanced(self, labels: Positions, seed: int, epoch: int, progress: float) -> Positions:
        """What `order` gives once the sampler is no longer deferred."""


class ByClass(DeferredSampler):
    """Base of the samplers that draw a class with a probability of their own, then one of its images: with repeats."""

    @abc.abstractmethod
    def probabilities(self, progress: float) -> NDArray[np.float64]:
        """Of the classes [C]; those of classes without images are 0."""

    def rebalanced(self, labels: Positions, seed: int, epoch: int, progress: float) -> Positions:
        of_image = self.probabilities(progress) / np.maximum(self.class_counts, 1)
        shares = of_image[labels]
        return epoch_numbers(seed, epoch).choice(len(labels), len(labels), p=shares / shares.sum())

    def powers(self, exponent: float) -> NDArray[np.float64]:
        """Probabilities [C] that go with the number of images to a power; 0 to the power of 0 is 0 here."""
        counts = np.asarray(self.class_counts, dtype=np.float64)
        raw = np.where(counts > 0, np.maximum(counts, 1) ** exponent, 0)
        return raw / raw.sum()


@SAMPLERS.register("square_root", options=Deferred)
class SquareRoot(ByClass):
    """A class is drawn in proportion to the square root of its number of images (Mahajan et al., 2018)."""

    def probabilities(self, progress: float) -> NDArray[np.float64]:
        return self.powers(0.5)


@SAMPLERS.register("class_balanced", options=Deferred)
class ClassBalanced(ByClass):
    """Every class is drawn equally often (Kang et al., 2020)."""

    def probabilities(self, progress: float) -> NDArray[np.float64]:
        return self.powers(0.0)


@SAMPLERS.register("progressive", options=Deferred)
class Progressive(ByClass):
    """From every image equally often, at the start, to every class equally often (Kang et al., 2020, Eq. 2).

    The start is the end of the deferral.
    """

    def probabilities(self, progress: float) -> NDArray[np.float64]:
        moved = (progress - self.options.defer) / (1 - self.options.defer)
        return (1 - moved) * self.powers(1.0) + moved * self.powers(0.0)


@SAMPLERS.register("over", options=Deferred)
class Over(DeferredSampler):
    """Every class equally often, and every image of a class once before any of them is repeated.

    That holds across epochs: the images of a class come in one shuffled round after another.
    """

    def rebalanced(self, labels: Positions, seed: int, epoch: int, progress: float) -> Positions:
        since = epoch - self._first_epoch(epoch, progress)
        present = [c for c, count in enumerate(self.class_counts) if count]
        quotas = [len(part) for part in np.array_split(np.arange(len(labels)), len(present))]
        drawn = [
            _rounds(np.flatnonzero(labels == c), seed, c, since * quota, quota)
            for c, quota in zip(present, quotas, strict=True)
        ]
        return epoch_numbers(seed, epoch).permutation(np.concatenate(drawn))

    def _first_epoch(self, epoch: int, progress: float) -> int:
        """The first epoch that is not deferred."""
        if not self.options.defer:
            return 0
        num_epochs = round(epoch / progress)
        return math.ceil(self.options.defer * num_epochs - 1e-9)


def _rounds(members: Positions, seed: int, label: int, start: int, num: int) -> Positions:
    """Entries `start` to `start + num` of an endless row of shuffled rounds of `members`."""
    first, last = start // len(members), (start + num - 1) // len(members)
    rounds = []
    for number in range(first, last + 1):
        numbers = np.random.Philox(key=np.array([seed, 2**63 + label], np.uint64), counter=[0, 0, number, 0])
        rounds.append(np.random.Generator(numbers).permutation(members))
    begin = start - first * len(members)
    return np.concatenate(rounds)[begin : begin + num] if num else members[:0]


@SAMPLERS.register("under", options=Deferred)
class Under(DeferredSampler):
    """As many images of every class as the smallest has, others in every epoch: an epoch is shorter.

    Raises:
        PluginError: an epoch would have a single image, over which nothing can be averaged.
    """

    def __init__(self, options: Options, class_counts: Sequence[int]):
        super().__init__(options, class_counts)
        present = [count for count in self.class_counts if count]
        self.quota = min(present)
        if self.quota * len(present) < 2:
            raise PluginError("sampler 'under': would leave one image, and a batch needs two: take another sampler")

    def length(self, progress: float) -> int:
        if is_deferred(self.options, progress):
            return super().length(progress)
        return self.quota * sum(count > 0 for count in self.class_counts)

    def rebalanced(self, labels: Positions, seed: int, epoch: int, progress: float) -> Positions:
        numbers = epoch_numbers(seed, epoch)
        members = (np.flatnonzero(labels == c) for c, count in enumerate(self.class_counts) if count)
        return numbers.permutation(np.concatenate([numbers.choice(m, self.quota, replace=False) for m in members]))
