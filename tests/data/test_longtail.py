import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssfnas_cli.data.longtail import (
    class_counts,
    class_order,
    class_shares,
    largest_class,
    largest_first,
    longtail_test_counts,
    sample_class,
)
from ssfnas_cli.errors import InputError

CIFAR10 = {
    0.1: ([5000, 3871, 2997, 2320, 1796, 1391, 1077, 834, 645, 500], 20431, 27500),
    0.05: ([5000, 3584, 2569, 1842, 1320, 946, 678, 486, 348, 250], 17023, 26250),
    0.02: ([5000, 3237, 2096, 1357, 878, 568, 368, 238, 154, 100], 13996, 25500),
    0.01: ([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50], 12406, 25250),
}
CIFAR100_SUMS = {0.1: 19573, 0.05: 15907, 0.02: 12608, 0.01: 10847}
CLASSES = st.lists(st.integers(1, 3000), min_size=1, max_size=40)
MUS = st.floats(0.001, 1.0)


@pytest.mark.parametrize("mu", CIFAR10)
def test_exp_counts_are_the_published_ones_for_cifar10(mu):
    counts, total, _ = CIFAR10[mu]
    assert class_counts("exp", mu, [5000] * 10) == counts
    assert sum(counts) == total


@pytest.mark.parametrize("mu", CIFAR10)
def test_step_counts_are_the_published_ones_for_cifar10(mu):
    counts = class_counts("step", mu, [5000] * 10)
    assert counts == [5000] * 5 + [int(5000 * mu)] * 5
    assert sum(counts) == CIFAR10[mu][2]


@pytest.mark.parametrize("mu", CIFAR100_SUMS)
def test_exp_sums_are_the_published_ones_for_cifar100(mu):
    assert sum(class_counts("exp", mu, [500] * 100)) == CIFAR100_SUMS[mu]


def test_the_middle_class_of_an_odd_number_is_a_head_class_in_step():
    assert class_counts("step", 0.1, [50] * 5) == [50, 50, 50, 5, 5]


@pytest.mark.parametrize("dist", ["balance", "step", "exp", "natural"])
def test_a_single_class_keeps_all_its_images(dist):
    assert class_counts(dist, 0.1, [7]) == [7]


def test_a_class_smaller_than_its_share_keeps_what_it_has():
    available = [100, 100, 20, 100]
    assert class_shares("exp", 0.1, available) == [100, 46, 21, 10]
    assert class_counts("exp", 0.1, available) == [100, 46, 20, 10]


def test_max_per_class_limits_the_largest_class():
    assert class_counts("exp", 0.1, [5000] * 10, max_per_class=500)[::9] == [500, 50]
    assert class_counts("balance", 1.0, [30, 20, 5], max_per_class=10) == [10, 10, 5]


def test_a_limit_above_the_largest_class_changes_nothing():
    assert class_counts("exp", 0.1, [100] * 4, max_per_class=9999) == class_counts("exp", 0.1, [100] * 4)


def test_natural_is_the_sources_profile_scaled_with_at_least_one_a_class():
    assert class_counts("natural", 0.1, [486, 128, 206, 194, 66]) == [486, 128, 206, 194, 66]
    assert class_counts("natural", 0.1, [400, 100, 3], max_per_class=40) == [40, 10, 1]


def test_a_head_to_tail_order_says_which_class_gets_which_share():
    available = [10, 100, 20, 100]
    assert largest_first(available) == [1, 3, 2, 0]
    assert class_shares("exp", 0.1, available, order=largest_first(available)) == [10, 100, 21, 46]
    assert class_counts("step", 0.1, available, order=largest_first(available)) == [10, 100, 10, 100]
    assert class_shares("exp", 0.1, [5000] * 10, order=largest_first([5000] * 10)) == CIFAR10[0.1][0]


def test_a_class_left_without_images_is_named_with_the_mend():
    with pytest.raises(InputError, match=r"class 2 .*raise --mu or --max-per-class"):
        class_counts("exp", 0.01, [50, 50, 50])


def test_a_class_the_source_has_no_images_of_is_named():
    with pytest.raises(InputError, match="class 1 has no training images"):
        class_counts("balance", 1.0, [5, 0, 5])


def test_the_longtail_test_split_has_the_training_profile():
    for counts, _, _ in CIFAR10.values():
        expected = [count // 5 for count in counts]
        assert longtail_test_counts(counts, [1000] * 10) == expected


def test_the_longtail_test_split_has_at_least_one_and_never_more_than_there_is():
    assert longtail_test_counts([1000, 500, 1], [100, 10, 100]) == [100, 10, 1]


@given(CLASSES, MUS, st.sampled_from(["balance", "step", "exp", "natural"]), st.integers(0, 4000))
def test_counts_stay_within_one_and_what_there_is(available, mu, dist, limit):
    try:
        counts = class_counts(dist, mu, available, limit)
    except InputError as error:
        assert "--mu" in str(error) and min(class_shares(dist, mu, available, limit)) == 0
        return
    assert all(1 <= count <= has for count, has in zip(counts, available, strict=True))
    assert max(counts) <= largest_class(available, limit)


@given(st.integers(1, 3000), st.integers(2, 60), MUS)
def test_exp_falls_from_n_max_to_mu_times_n_max(n_max, num_classes, mu):
    shares = class_shares("exp", mu, [n_max] * num_classes)
    assert shares == sorted(shares, reverse=True)
    assert (shares[0], shares[-1]) == (n_max, int(n_max * mu))


@given(CLASSES, st.data())
def test_longtail_test_counts_are_bounded_and_fill_the_head(train, data):
    test = data.draw(st.lists(st.integers(1, 500), min_size=len(train), max_size=len(train)))
    counts = longtail_test_counts(train, test)
    assert all(1 <= count <= has for count, has in zip(counts, test, strict=True))
    head = max(test[place] for place, count in enumerate(train) if count == max(train))
    assert max(counts[place] for place, count in enumerate(train) if count == max(train)) == head


@given(st.integers(1, 300), st.integers(0, 2**32), st.integers(0, 1000))
def test_a_class_order_is_a_permutation_that_depends_on_its_key_alone(size, seed, label):
    indices = np.arange(size) * 3
    order = class_order(indices, seed, "train", label)
    assert sorted(order) == indices.tolist()
    assert np.array_equal(order, class_order(indices, seed, "train", label))


def test_a_smaller_sample_is_the_front_of_a_larger_one():
    large = sample_class(np.arange(100), 60, 0, "train", 3)
    assert len(set(large.tolist())) == 60
    assert np.array_equal(sample_class(np.arange(100), 20, 0, "train", 3), large[:20])


def test_seeds_splits_and_classes_draw_independently():
    keys = [(0, "train", 0), (1, "train", 0), (0, "test_longtail", 0), (0, "train", 1)]
    assert len({tuple(class_order(np.arange(50), *key)) for key in keys}) == len(keys)


def test_the_order_of_a_seed_never_changes():
    assert sample_class(np.arange(100), 5, 0, "train", 3).tolist() == [47, 5, 39, 42, 48]


def test_a_sample_larger_than_its_class_is_refused():
    with pytest.raises(InputError, match="class 2 has 3 images in train, 4 were asked for"):
        sample_class([1, 2, 3], 4, 0, "train", 2)
