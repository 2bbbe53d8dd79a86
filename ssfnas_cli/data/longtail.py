"""The number of images of each class (balanced, step, exponential or the source's profile), and their selection.

The counts are those of kaidic/LDAM-DRW's imbalance_cifar.py, including its truncation, with one exception: in `step`
with an odd number of classes, the middle class, which the original omits, is a head class.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ssfnas_cli.errors import InputError

# Each use of the seed has its own number and thus its own random stream. Renumbering would change every data set.
STREAMS = {"train": 0, "val": 1, "test": 2, "test_longtail": 3, "holdout": 4, "retrain holdout": 5}


def largest_class(available: Sequence[int], max_per_class: int = 0) -> int:
    """n_max: the size of the largest class, or `max_per_class` if that is smaller and not 0.

    A limit above the largest class has no effect; as n_max it would flatten the requested profile.
    """
    largest = max(available, default=0)
    return min(largest, max_per_class or largest)


def largest_first(available: Sequence[int]) -> list[int]:
    """The classes from the largest to the smallest. Classes of equal size keep their order."""
    return sorted(range(len(available)), key=lambda label: -available[label])


def class_shares(
    dist: str, mu: float, available: Sequence[int], max_per_class: int = 0, order: Sequence[int] | None = None
) -> list[int]:
    """The number of images that the distribution assigns to each class, whether or not the class has that many.

    Args:
        dist, mu, available, max_per_class: see `class_counts`.
        order: the classes from head to tail, for `exp` and `step`; None means the class order, as published for CIFAR.
    """
    num_classes = len(available)
    n_max = largest_class(available, max_per_class)
    if dist == "balance":
        return [n_max] * num_classes
    if dist == "natural":
        largest = max(available, default=0)
        return [max(1, count * n_max // largest) if largest else 0 for count in available]
    if dist == "exp":
        # This is the floating-point formula of the original, since published counts depend on its truncation.
        profile = [int(n_max * mu ** (i / max(num_classes - 1, 1))) for i in range(num_classes)]
    else:
        num_head = (num_classes + 1) // 2
        profile = [n_max] * num_head + [int(n_max * mu)] * (num_classes - num_head)
    shares = [0] * num_classes
    for label, share in zip(range(num_classes) if order is None else order, profile, strict=True):
        shares[label] = share
    return shares


def class_counts(
    dist: str, mu: float, available: Sequence[int], max_per_class: int = 0, order: Sequence[int] | None = None
) -> list[int]:
    """The number of images of each class, in class order: its share, or all of its images if it has fewer.

    Args:
        dist: `balance`, `step`, `exp` or `natural`.
        mu: the imbalance factor, which is the size of the smallest class divided by that of the largest, in (0, 1], for
            `step` and `exp`.
        available: images per class in the source.
        max_per_class: limit of n_max; 0 means the size of the largest class.
        order: see `class_shares`.

    Raises:
        InputError: a class would be empty.
    """
    shares = class_shares(dist, mu, available, max_per_class, order)
    for label, (share, has) in enumerate(zip(shares, available, strict=True)):
        if has < 1:
            raise InputError(f"class {label} has no training images: add some, or remove it from the source")
        if share < 1:
            n_max = largest_class(available, max_per_class)
            raise InputError(
                f"class {label} would get no images ({n_max} in the largest class, mu {mu:g}): "
                "raise --mu or --max-per-class"
            )
    return [min(share, has) for share, has in zip(shares, available, strict=True)]


def longtail_test_counts(train_counts: Sequence[int], test_available: Sequence[int]) -> list[int]:
    """The number of test images of each class, with the profile of the training split.

    The head class keeps all its test images. The others keep a number in proportion to their training images, but at
    least one and at most all.
    """
    head = max(train_counts, default=0)
    head_test = max(
        (test for train, test in zip(train_counts, test_available, strict=True) if train == head), default=0
    )
    # Integer arithmetic is exact: 834 * (1000 / 5000) in floating point could be rounded to either side of a count.
    return [
        min(has, max(1, train * head_test // head)) if head else 0
        for train, has in zip(train_counts, test_available, strict=True)
    ]


def class_order(indices: ArrayLike, seed: int, split: str, label: int) -> NDArray[np.int64]:
    """The indices of one class in a random order that depends only on the seed, the split and the class.

    Samples are taken from the front. A smaller sample is therefore part of a larger one, and the next image replaces
    one that cannot be read.
    """
    indices = np.asarray(indices, dtype=np.int64)
    bits = np.random.Philox(np.random.SeedSequence([seed, STREAMS[split], label]))
    # NEP 19 guarantees the raw bits in every version of numpy, but not the result of Generator.permutation.
    return indices[np.argsort(bits.random_raw(len(indices)), kind="stable")]


def sample_class(indices: ArrayLike, count: int, seed: int, split: str, label: int) -> NDArray[np.int64]:
    """The first `count` indices of one class in the order of `class_order`.

    Raises:
        InputError: the class has fewer images.
    """
    order = class_order(indices, seed, split, label)
    if count > len(order):
        raise InputError(f"class {label} has {len(order)} images in {split}, {count} were asked for")
    return order[:count]
