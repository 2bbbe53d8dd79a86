import numpy as np
import pytest
from scipy.stats import chisquare

from registry import SAMPLERS, PluginError


def build(name, counts):
    plugin = SAMPLERS.get(name)
    return plugin.factory(plugin.parse_options(), counts)


def test_by_instance_every_image_comes_once_an_epoch_in_an_order_that_follows_from_seed_and_epoch():
    labels = np.repeat([0, 1, 2], [30, 15, 5])
    sampler = build("instance", [30, 15, 5])
    orders = {(seed, epoch): sampler.order(labels, seed, epoch, 0.5) for seed in range(3) for epoch in range(3)}
    for order in orders.values():
        assert sorted(order.tolist()) == list(range(50)) and len(order) == sampler.length(0.5)
    assert len({tuple(order) for order in orders.values()}) == 9
    assert np.array_equal(orders[1, 2], build("instance", [30, 15, 5]).order(labels, 1, 2, 0.0))


COUNTS = [60, 25, 12, 3]
LABELS = np.repeat(range(4), COUNTS)[np.random.default_rng(0).permutation(100)]
EPOCHS = 60


def option(name, **options):
    plugin = SAMPLERS.get(name)
    return plugin.factory(plugin.parse_options(options), COUNTS)


def drawn(sampler, epochs=range(EPOCHS), seed=7):
    return [sampler.order(LABELS, seed, epoch, epoch / EPOCHS) for epoch in epochs]


@pytest.mark.parametrize(("name", "power"), [("square_root", 0.5), ("class_balanced", 0.0)])
def test_classes_are_drawn_with_their_probabilities_and_images_of_a_class_alike(name, power):
    orders = np.concatenate(drawn(option(name)))
    shares = np.array(COUNTS) ** power
    expected = len(orders) * shares / shares.sum()
    assert chisquare(np.bincount(LABELS[orders]), expected).pvalue > 1e-3
    assert chisquare(np.bincount(LABELS[orders]), len(orders) * np.array(COUNTS) / 100).pvalue < 1e-9
    for c in range(4):
        assert chisquare(np.bincount(orders, minlength=100)[c == LABELS]).pvalue > 1e-3


def test_progressive_sampling_goes_from_images_to_classes():
    sampler = option("progressive")
    for progress in (0.0, 0.5, 0.9):
        orders = [sampler.order(LABELS, seed, 3, progress) for seed in range(80)]
        expected = (1 - progress) * np.array(COUNTS) / 100 + progress / 4
        assert chisquare(np.bincount(LABELS[np.concatenate(orders)]), 8000 * expected).pvalue > 1e-3
    late = option("progressive", defer=0.5)
    np.testing.assert_allclose(late.probabilities(0.5), np.array(COUNTS) / 100)
    np.testing.assert_allclose(late.probabilities(0.75), (np.array(COUNTS) / 100 + 0.25) / 2)


def test_over_sampling_is_balanced_and_repeats_no_image_before_all_of_its_class_were_shown():
    seen = np.zeros(100, int)
    for order in drawn(option("over")):
        assert np.bincount(LABELS[order]).tolist() == [25] * 4
        for position in order:
            seen[position] += 1
        for c in range(4):
            assert np.ptp(seen[c == LABELS]) <= 1
    assert seen.max() > 400


def test_deferred_over_sampling_begins_its_rounds_at_its_first_epoch():
    seen = np.zeros(100, int)
    for order in drawn(option("over", defer=0.5), range(30, EPOCHS)):
        np.add.at(seen, order, 1)
        assert all(np.ptp(seen[c == LABELS]) <= 1 for c in range(4))


def test_under_sampling_shows_as_many_of_each_class_and_others_every_epoch():
    sampler = option("under")
    orders = drawn(sampler)
    for order in orders:
        assert len(order) == sampler.length(0.0) == 12 and len(set(order)) == 12
        assert np.bincount(LABELS[order]).tolist() == [3] * 4
    assert len(set(np.concatenate(orders))) > 80


@pytest.mark.parametrize("name", ["square_root", "class_balanced", "progressive", "over", "under"])
def test_draws_follow_from_seed_and_epoch_and_fill_the_length_that_is_told(name):
    sampler = option(name)
    for epoch in (0, 1, 40):
        order = sampler.order(LABELS, 5, epoch, epoch / EPOCHS)
        assert np.array_equal(order, option(name).order(LABELS, 5, epoch, epoch / EPOCHS))
        assert len(order) == sampler.length(epoch / EPOCHS) and order.min() >= 0 and order.max() < 100
        assert name == "under" or len(order) == 100
    assert not np.array_equal(sampler.order(LABELS, 5, 0, 0), sampler.order(LABELS, 5, 1, 0))
    assert not np.array_equal(sampler.order(LABELS, 5, 0, 0), sampler.order(LABELS, 6, 0, 0))


@pytest.mark.parametrize("name", ["square_root", "class_balanced", "progressive", "over", "under"])
def test_a_deferred_sampler_shows_every_image_once_until_its_epoch(name):
    sampler = option(name, defer=0.8)
    for epoch in range(EPOCHS):
        order = sampler.order(LABELS, 7, epoch, epoch / EPOCHS)
        assert (sorted(order) == list(range(100))) == (epoch < 48), epoch
        assert len(order) == sampler.length(epoch / EPOCHS)


@pytest.mark.parametrize("name", ["square_root", "class_balanced", "progressive", "over", "under"])
def test_a_class_without_images_is_never_drawn(name):
    plugin = SAMPLERS.get(name)
    sampler = plugin.factory(plugin.parse_options(), [6, 0, 2])
    labels = np.array([0] * 6 + [2] * 2)
    assert set(labels[sampler.order(labels, 0, 0, 0.0)]) <= {0, 2}
    assert len(sampler.order(labels, 0, 0, 0.0)) == sampler.length(0.0) == (4 if name == "under" else 8)


def test_under_sampling_that_would_leave_one_image_is_refused():
    plugin = SAMPLERS.get("under")
    with pytest.raises(PluginError, match="'under': would leave one image"):
        plugin.factory(plugin.parse_options(), [0, 1])
