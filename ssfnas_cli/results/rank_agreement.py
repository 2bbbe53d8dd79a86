"""Whether two figures rank the same things alike: Kendall's tau and Spearman's rho, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ssfnas_cli.results.statistics import LEVEL

LEAST, LEAST_FOR_INTERVAL = 3, 5  # pairs


class Agreement(NamedTuple):
    """A rank correlation of some pairs.

    Attributes:
        value: from -1 to 1; None for fewer than LEAST pairs, or if one side is constant.
        low, high: the interval at LEVEL; None for fewer than LEAST_FOR_INTERVAL pairs, or if all pairs agree or all
            disagree, where it would have no width.
        p: of the two-sided test of independence.
    """

    value: float | None
    low: float | None
    high: float | None
    p: float | None


def kendall(one: Sequence[float], other: Sequence[float]) -> Agreement:
    """Kendall's tau-b, which allows for ties."""
    return _agreement("kendalltau", one, other)


def spearman(one: Sequence[float], other: Sequence[float]) -> Agreement:
    """Spearman's rho, the correlation of the ranks."""
    return _agreement("spearmanr", one, other)


def _agreement(name: str, one: Sequence[float], other: Sequence[float]) -> Agreement:
    if len(one) < LEAST or len(set(one)) == 1 or len(set(other)) == 1:
        return Agreement(None, None, None, None)
    from scipy import stats

    found = getattr(stats, name)(one, other)
    value = float(found.statistic)
    low, high = _interval(name, value, len(one))
    return Agreement(value, low, high, float(found.pvalue))


def _interval(name: str, value: float, number: int) -> tuple[float | None, float | None]:
    """The interval by Fisher's z, whose variance for ranks is that of Bonett and Wright (Psychometrika, 2000)."""
    if number < LEAST_FOR_INTERVAL or abs(value) > 1 - 1e-12:
        return None, None
    from scipy import stats

    variance = 0.437 / (number - 4) if name == "kendalltau" else (1 + value**2 / 2) / (number - 3)
    half = float(stats.norm.ppf((1 + LEVEL) / 2)) * math.sqrt(variance)
    return math.tanh(math.atanh(value) - half), math.tanh(math.atanh(value) + half)


def described(agreement: Mapping[str, Any], number: int) -> str:
    """A rank correlation in words."""
    if agreement["value"] is None:
        return f"{number} retrained genotypes of different accuracies are too few: 3 at least"
    interval = (
        "no interval" if agreement["low"] is None else f"95 % from {agreement['low']:.2f} to {agreement['high']:.2f}"
    )
    return f"{agreement['value']:.3f} ({interval}, p {agreement['p']:.3g}, {number} genotypes)"
