"""Rank correlations against slow direct ones, and how often their intervals hold the truth."""

import itertools
import math
import random

import numpy as np
import pytest

from ssfnas_cli.results.rank_agreement import kendall, spearman

NOTHING = (None, None, None, None)


def some_pairs(number, seed=0, ties=False):
    numbers = random.Random(seed)
    one = [numbers.gauss(0, 1) for _ in range(number)]
    other = [value + numbers.gauss(0, 1) for value in one]
    return ([round(value) for value in one], other) if ties else (one, other)


@pytest.mark.parametrize("ties", [False, True])
def test_kendalls_tau_counts_pairs_that_agree_and_disagree(ties):
    one, other = some_pairs(15, ties=ties)
    products = [(a - c) * (b - d) for (a, b), (c, d) in itertools.combinations(zip(one, other, strict=True), 2)]
    tied = [sum(x == y for x, y in itertools.combinations(side, 2)) for side in (one, other)]
    agree, disagree = sum(p > 0 for p in products), sum(p < 0 for p in products)
    expected = (agree - disagree) / math.sqrt(math.prod(len(products) - number for number in tied))
    assert (tied[0] > 0) == ties and kendall(one, other).value == pytest.approx(expected)


def test_spearmans_rho_is_six_times_the_squared_distances_of_the_ranks():
    one, other = some_pairs(12)
    ranks = [[sorted(side).index(value) for value in side] for side in (one, other)]
    distance = sum((a - b) ** 2 for a, b in zip(*ranks, strict=True))
    assert spearman(one, other).value == pytest.approx(1 - 6 * distance / (12 * (144 - 1)))


@pytest.mark.parametrize("measure", [kendall, spearman])
def test_95_percent_intervals_hold_the_truth_about_that_often(measure):
    """For normal pairs with correlation r, tau is 2/pi asin(r), and rho 6/pi asin(r/2)."""
    r, numbers = 0.6, np.random.default_rng(0)
    truth = 2 / math.pi * math.asin(r) if measure is kendall else 6 / math.pi * math.asin(r / 2)
    held = 0
    for _ in range(600):
        x = numbers.normal(size=20)
        y = r * x + math.sqrt(1 - r * r) * numbers.normal(size=20)
        found = measure(x.tolist(), y.tolist())
        held += found.low <= truth <= found.high
    assert 0.92 <= held / 600 <= 0.98


@pytest.mark.parametrize("measure", [kendall, spearman])
def test_too_few_or_constant_figures_say_nothing_and_agreement_in_all_has_no_interval(measure):
    assert measure([], []) == measure([1.0, 2.0], [1.0, 2.0]) == NOTHING
    assert measure([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) == NOTHING
    whole = measure([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [2.0, 4.0, 6.0, 7.0, 8.0, 9.0])
    assert whole[:3] == (pytest.approx(1.0), None, None) and whole.p < 0.01
    four = measure([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 4.0, 3.0])
    assert four.value is not None and (four.low, four.high) == (None, None)
