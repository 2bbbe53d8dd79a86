"""Means, deviations and paired differences against figures worked out by other means."""

import itertools
import random
import statistics

import pytest

from ssfnas_cli.results.statistics import MAX_EXACT, paired_difference, spread


def test_spread_of_some_and_of_missing_values():
    assert spread([2.0, None, 4.0, 9.0]) == (5.0, pytest.approx(13**0.5), 3)
    assert spread([7.0]) == (7.0, None, 1)
    assert spread([None]) == (None, None, 0)


def test_the_interval_is_the_one_of_a_published_table():
    # differences 1, 2, 3: mean 2, deviation 1, and t of 2 degrees of freedom at 97.5 % is 4.303 (any table)
    found = paired_difference([11.0, 22.0, 33.0], [10.0, 20.0, 30.0])
    half = 4.303 / 3**0.5
    assert found.mean == 2 and found.num == 3
    assert (found.low, found.high) == (pytest.approx(2 - half, abs=1e-3), pytest.approx(2 + half, abs=1e-3))
    assert found.p == 0.25, "2 of the 8 changes of sign are as far from 0"


@pytest.mark.parametrize("num", [2, 3, 5, 8])
def test_p_counts_the_changes_of_sign_that_are_as_extreme(num):
    numbers = random.Random(num)
    differences = [numbers.choice([-1, 1, 2, 3]) * 0.5 for _ in range(num)]
    means = [
        statistics.fmean(sign * d for sign, d in zip(signs, differences, strict=True))
        for signs in itertools.product((-1, 1), repeat=num)
    ]
    extreme = sum(abs(mean) >= abs(statistics.fmean(differences)) - 1e-12 for mean in means)
    found = paired_difference(differences, [0.0] * num)
    assert found.p == pytest.approx(min(1.0, extreme / 2**num))


def test_one_pair_has_a_difference_and_nothing_else():
    assert paired_difference([3.0], [1.0]) == (2.0, None, None, None, 1)
    assert paired_difference([], []) is None


def test_equal_groups_differ_by_nothing():
    found = paired_difference([5.0, 6.0, 7.0], [5.0, 6.0, 7.0])
    assert (found.mean, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_too_many_pairs_for_an_exact_test_have_an_interval_alone():
    values = [float(n % 5) for n in range(MAX_EXACT + 1)]
    found = paired_difference(values, [0.0] * len(values))
    assert found.p is None and found.low < found.mean < found.high
