"""Means and deviations over seeds, and paired differences between two groups with a t interval and an exact test."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

LEVEL = 0.95  # of the intervals
MAX_EXACT = 16  # pairs, of which there are 2^16 changes of sign


class Spread(NamedTuple):
    """Mean and standard deviation of some values; `std` is None for fewer than two."""

    mean: float | None
    std: float | None
    num: int


def spread(values: Sequence[float | None]) -> Spread:
    """The mean and the sample standard deviation (n - 1) of the values that are there."""
    there = [value for value in values if value is not None]
    mean = statistics.fmean(there) if there else None
    return Spread(mean, statistics.stdev(there) if len(there) > 1 else None, len(there))


class Difference(NamedTuple):
    """The difference of two groups over pairs of runs with the same seed.

    Attributes:
        mean: of the differences.
        low, high: the interval of Student's t at LEVEL around the mean; None for one pair.
        p: of the two-sided exact permutation test: the share of all 2^n changes of sign of the differences whose mean
            is at least as far from 0; None for one pair or for more than MAX_EXACT. It cannot be below 2^(1-n).
        num: the number of pairs, n.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    num: int


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> Difference | None:
    """Compare two groups whose values belong to the same seeds, pair by pair; None without a pair."""
    differences = [mine - theirs for mine, theirs in zip(values, baseline, strict=True)]
    num = len(differences)
    if not num:
        return None
    mean = statistics.fmean(differences)
    if num == 1:
        return Difference(mean, None, None, None, 1)
    import numpy as np
    from scipy import stats

    half = float(stats.t.ppf((1 + LEVEL) / 2, num - 1)) * statistics.stdev(differences) / math.sqrt(num)
    p = None
    if num <= MAX_EXACT:
        test = stats.permutation_test(
            (np.asarray(differences),), np.mean, permutation_type="samples", n_resamples=2**MAX_EXACT
        )
        p = float(test.pvalue)
    return Difference(mean, mean - half, mean + half, p, num)
