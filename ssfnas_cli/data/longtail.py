"""How many images each class gets, and which: balanced, step, exponential or the source's own profile.

Counts follow kaidic/LDAM-DRW's imbalance_cifar.py, truncation included. The one difference: in `step` with an
odd number of classes the middle one, which the original loses, is a head class.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ssfnas_cli.errors import InputError

# One number per use of the seed: no two draws share a random stream. Renumbering changes every data set.
STREAMS = {"train": 0, "val": 1, "test": 2, "test_longtail": 3, "holdout": 4}


def largest_class(available: Sequence[int], max_per_class: int = 0) -> int:
    """n_max: the size of the largest class, or `max_per_class` if that is less and not 0.

    A limit above the largest class changes nothing: taken as n_max it would flatten the profile asked for.
    """
    largest = max(available, default=0)
    return min(largest, max_per_class or largest)


def largest_first(available: Sequence[int]) -> list[int]:
    """The classes from the largest to the smallest; of equal ones the first comes first."""
    return sorted(range(len(available)), key=lambda label: -available[label])


def class_shares(
    dist: str, mu: float, available: Sequence[int], max_per_class: int = 0, order: Sequence[int] | None = None
) -> list[int]:
    """Images each class should have, in class order, whether or not it has as many.

    Args:
        dist, mu, available, max_per_class: see `class_counts`.
        order: the classes from head to tail of `exp` and `step`; None takes the class order, as published for CIFAR.
    """
    num_classes = len(available)
    n_max = largest_class(available, max_per_class)
    if dist == "balance":
        return [n_max] * num_classes
    if dist == "natural":
        largest = max(available, default=0)
        return [max(1, count * n_max // largest) if largest else 0 for count in available]
    if dist == "exp":
        # The float formula of the original, not an exact one: published counts depend on its truncation.
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
    """Images each class gets, in class order: its share, or all it has if that is less.

    Args:
        dist: `balance`, `step`, `exp` or `natural`.
        mu: imbalance factor, smallest over largest class, in (0, 1]; used by `step` and `exp`.
        available: images per class in the source.
        max_per_class: n_max; 0 takes the largest class.
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
    """Test images per class in the training profile.

    The head class keeps all its test images, the others in proportion; at least one a class, never more than
    it has.
    """
    head = max(train_counts, default=0)
    head_test = max(
        (test for train, test in zip(train_counts, test_available, strict=True) if train == head), default=0
    )
    # Whole numbers: 834 * (1000 / 5000) in floats could land on either side of a count.
    return [
        min(has, max(1, train * head_test // head)) if head else 0
        for train, has in zip(train_counts, test_available, strict=True)
    ]


def class_order(indices: ArrayLike, seed: int, split: str, label: int) -> NDArray[np.int64]:
    """The indices of one class in a random order that depends on the seed, the split and the class alone.

    Images are taken from the front: a smaller sample is part of a larger one, and the next in line replaces
    an image that cannot be read.
    """
    indices = np.asarray(indices, dtype=np.int64)
    bits = np.random.Philox(np.random.SeedSequence([seed, STREAMS[split], label]))
    # Raw bits are the same in every numpy (NEP 19); what Generator.permutation makes of them is not promised.
    return indices[np.argsort(bits.random_raw(len(indices)), kind="stable")]


def sample_class(indices: ArrayLike, count: int, seed: int, split: str, label: int) -> NDArray[np.int64]:
    """`count` of the indices of one class, without replacement, in the order of `class_order`.

    Raises:
        InputError: the class has fewer.
    """
    order = class_order(indices, seed, split, label)
    if count > len(order):
        raise InputError(f"class {label} has {len(order)} images in {split}, {count} were asked for")
    return order[:count]
