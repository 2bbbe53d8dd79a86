"""The mistakes of a network on a split that say most: of which it was most sure, and the worst of each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Mistake(NamedTuple):
    """An image that was taken for one of another class.

    Attributes:
        row: its place in the split.
        true, predicted: its class, and the one that it was taken for.
        confidence, truth: the probabilities that the network gave to these: to the predicted class, to the true one.
    """

    row: int
    true: int
    predicted: int
    confidence: float
    truth: float


class Mistakes(NamedTuple):
    """The mistakes that say most; `num_wrong` of `num_images` images were mistaken."""

    num_images: int
    num_wrong: int
    confident: list[Mistake]
    worst: list[Mistake]


def find_mistakes(scores: NDArray, labels: NDArray, train_counts: Sequence[int], num: int) -> Mistakes:
    """Choose at most `num` mistakes of either sort.

    The most confident ones gave a wrong class the highest probability. The worst ones gave the true class the least:
    first the worst of each class, then the second of each, and so on, the classes with the fewest training images
    before the others, so that a large class does not hide the small ones. No image is chosen twice.

    Args:
        scores: logits [N, C].
        labels: [N].
        train_counts: training images by class [C].
        num: how many of either sort.
    """
    from scipy.special import log_softmax

    logs = log_softmax(np.asarray(scores, dtype=np.float64), axis=1)
    predicted = logs.argmax(1)
    wrong = np.flatnonzero(predicted != labels)
    confidence, truth = logs[wrong, predicted[wrong]], logs[wrong, labels[wrong]]
    sure = np.argsort(-confidence, kind="stable")[:num]
    rest = np.setdiff1d(np.arange(len(wrong)), sure)
    worst = _in_turns(rest[np.argsort(truth[rest], kind="stable")], labels[wrong], train_counts)[:num]

    def mistake(place: int) -> Mistake:
        row = int(wrong[place])
        chances = float(np.exp(confidence[place])), float(np.exp(truth[place]))
        return Mistake(row, int(labels[row]), int(predicted[row]), *chances)

    return Mistakes(len(labels), len(wrong), [mistake(one) for one in sure], [mistake(one) for one in worst])


def _in_turns(places: NDArray, labels: NDArray, train_counts: Sequence[int]) -> NDArray:
    """Places in turns of their classes, the smallest class first; those of a class keep their order."""
    taken = [0] * len(train_counts)
    turns = []
    for label in labels[places]:
        turns.append((taken[label], train_counts[label], label))
        taken[label] += 1
    return places[sorted(range(len(places)), key=turns.__getitem__)]
