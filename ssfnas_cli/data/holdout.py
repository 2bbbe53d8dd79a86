"""Images that are set aside.

A source may lack splits: a test split is cut from all its images, a val split from the training images. A retraining
may set aside a part of the training split, which corrections of the finished network are chosen on.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from ssfnas_cli.data.longtail import class_order
from ssfnas_cli.data.sources.base import PartOfSplit, Source
from ssfnas_cli.errors import InputError, UsageError


def cut_test(source: Source, share: float, seed: int, place: str, is_asked: bool = False) -> list[str]:
    """Divide `train` into `train` and `test` if the source has no test split. Return lines for the user.

    `test` gets a random `share` of the images of each class, rounded down, but at least 1.

    Args:
        source: its splits are changed.
        share: between 0 and 1.
        seed: seed of the selection.
        place: the source's name in messages.
        is_asked: whether the share is another than usual, so that it is expected to be cut. --show-settings prints the
            usual one for a source with a test split, too.

    Raises:
        UsageError: the share is 0, or asked for although the source has a test split.
        InputError: a class has only 1 image.
    """
    if "test" in source.splits and is_asked:
        raise UsageError(f"--test-share: {place} has a test split of its own: leave the flag out")
    if "test" in source.splits:
        return []
    if not share:
        raise UsageError(f"--test-share: 0 leaves no test images, and {place} has no test split of its own")
    whole = source.splits["train"]
    in_test = np.zeros(len(whole), dtype=bool)
    for label, name in enumerate(source.class_names):
        order = class_order(np.flatnonzero(whole.labels == label), seed, "holdout", label)
        if len(order) == 1:
            raise InputError(
                f"{place}: class '{name}' has 1 image, and one to train on and one to test on are needed: "
                "add images, or take the class away"
            )
        in_test[order[: max(1, _part(len(order), share))]] = True
    for name, places in (("train", ~in_test), ("test", in_test)):
        source.splits[name] = PartOfSplit(whole, np.flatnonzero(places))
    return [f"test: {in_test.sum()} of {len(whole)} images, drawn from each class by the seed (--test-share {share:g})"]


def check_val(source: Source, share: float, place: str) -> None:
    """Check that a val split is not requested from a source that has one.

    Raises:
        UsageError: it is.
    """
    if share and "val" in source.splits:
        raise UsageError(f"--val-share: {place} has a val split of its own: leave the flag out")


def val_counts(counts: list[int], share: float) -> list[int]:
    """How many images of each class move from train to val: the share, rounded down.

    A class gives at least 1 image and keeps at least 2 in train, which a search divides. A class of fewer than 3 images
    gives none.
    """
    if not share:
        return [0] * len(counts)
    return [min(max(1, _part(count, share)), count - 2) if count > 2 else 0 for count in counts]


def _part(count: int, share: float) -> int:
    """The share of a number, rounded down. In floating point 0.29 of 100 is 28.999…"""
    return int(count * Fraction(str(share)))


def split_holdout(labels: np.ndarray, num_classes: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide the positions of a training split into those to train on and those to set aside, class by class.

    They depend on nothing but the arguments. Both are sorted. `val_counts` says how many images a class gives.

    Args:
        labels: of the split [N].
        share: of each class; with 0 none is set aside.
        seed: seed of the selection.
    """
    counts = np.bincount(labels, minlength=num_classes).tolist()
    aside = np.zeros(len(labels), dtype=bool)
    for label, number in enumerate(val_counts(counts, share)):
        aside[class_order(np.flatnonzero(labels == label), seed, "retrain holdout", label)[:number]] = True
    return np.flatnonzero(~aside), np.flatnonzero(aside)


def rest_counts(counts: list[int], share: float) -> list[int]:
    """How many images of each class remain to train on when a share is set aside."""
    return [count - aside for count, aside in zip(counts, val_counts(counts, share), strict=True)]
