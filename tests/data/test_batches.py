import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from registry import SAMPLERS
from ssfnas_cli.data.augment import Augmentation, to_float
from ssfnas_cli.data.batches import (
    STREAMS,
    BilevelBatches,
    Subset,
    TrainingBatches,
    cut_batches,
    load_batches,
    normaliser,
    num_batches,
    plain_batches,
    stratified_halves,
    stream_seed,
)
from ssfnas_cli.errors import InputError


def subset(data, rows=None, num_views=1, seed=0, cutout=0.5):
    split = data.split("train")
    rows = np.arange(len(split)) if rows is None else rows
    return Subset(split, rows, Augmentation(num_views, normaliser(data), True, cutout), seed)


def shuffled(num, seed, epoch):
    plugin = SAMPLERS.get("instance")
    return plugin.factory(plugin.parse_options(), [num]).order(np.zeros(num, int), seed, epoch, 0.0)


def shuffled_batches(num, batch_size, seed, epoch):
    return cut_batches(shuffled(num, seed, epoch), batch_size)


def training(part, batch_size, epoch):
    return TrainingBatches(part, shuffled(len(part), part.seed, epoch), batch_size, epoch)


def bilevel(data, epoch=0, seed=0, batch_size=16):
    halves = stratified_halves(data.split("train").labels, data.class_names, 0)
    weights = training(subset(data, halves[0], seed=seed), batch_size, epoch)
    return BilevelBatches(weights, subset(data, halves[1], 2, seed), batch_size, subset(data, halves[0], 2, seed + 9))


def tensors(item):
    """Every tensor of a batch or a pair of batches, in order (a loader process turns tuples into lists)."""
    if isinstance(item, torch.Tensor):
        return [item]
    if item is None:  # nothing was mixed
        return []
    return [tensor for part in item for tensor in tensors(part)]


def equal(one, other):
    one, other = tensors(one), tensors(other)
    return len(one) == len(other) and all(map(torch.equal, one, other))


# The order of images


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 200), st.integers(2, 70), st.integers(0, 3), st.integers(0, 3))
def test_an_epoch_holds_every_image_once_in_batches_of_two_or_more(num, batch_size, seed, epoch):
    batches = shuffled_batches(num, batch_size, seed, epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(num))
    sizes = [len(batch) for batch in batches]
    assert len(batches) == num_batches(num, batch_size)
    assert max(sizes) - min(sizes) <= 1 and min(sizes) >= min(2, num)
    assert max(sizes) <= batch_size or (batch_size == 2 and max(sizes) == 3)
    assert len(batches) == -(-num // batch_size) or min(sizes) in (2, 3)


def test_what_is_left_over_is_spread_over_the_batches():
    assert [len(batch) for batch in shuffled_batches(130, 64, 0, 0)] == [44, 43, 43]
    assert [len(batch) for batch in shuffled_batches(10, 4, 0, 0)] == [4, 3, 3]
    assert [len(batch) for batch in shuffled_batches(3, 2, 0, 0)] == [3], "no batch of a single image"
    assert [len(batch) for batch in shuffled_batches(1, 4, 0, 0)] == [1]


def test_the_order_changes_with_seed_and_epoch_and_is_a_shuffle():
    flat = lambda seed, epoch: np.concatenate(shuffled_batches(100, 10, seed, epoch)).tolist()
    assert flat(0, 0) == flat(0, 0)
    assert len({tuple(flat(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    firsts = [shuffled_batches(20, 10, 0, epoch)[0] for epoch in range(400)]
    assert 170 < sum(3 in batch for batch in firsts) < 230  # in the first of two batches half of the time


# Batches by number


def test_a_batch_is_the_rows_it_names_augmented_by_their_own_numbers(tiny_digits):
    rows = np.array([30, 4, 77])
    part = subset(tiny_digits, rows)
    batch = part.batch(np.arange(3), 10, epoch=3)
    split = tiny_digits.split("train")
    assert len(part) == 3 and batch.labels.tolist() == split.labels[rows].tolist()
    for place in range(3):
        alone = part.batch(np.array([place]), 10 + place, epoch=3)
        assert torch.equal(batch.views[0][place], alone.views[0][0]), "whatever batch it is in"
    assert not torch.equal(batch.views[0], part.batch(np.arange(3), 10, epoch=4).views[0])
    same_image = part.batch(np.array([1, 1, 1]), 0, epoch=0).views[0]
    assert not torch.equal(same_image[0], same_image[1]), "an image that is drawn twice looks different each time"


def test_no_two_streams_share_shuffles_or_draws():
    seeds = {stream_seed(seed, stream) for seed in range(5) for stream in STREAMS}
    assert len(seeds) == 5 * len(STREAMS) and all(0 <= seed < 2**63 for seed in seeds)


def test_training_batches_stay_within_their_subset(tiny_digits):
    rows = np.array([5, 17, 40, 41, 99, 120, 130])
    dataset = training(subset(tiny_digits, rows), 3, epoch=0)
    assert len(dataset) == 3
    labels = torch.cat([batch.labels for batch in load_batches(dataset, 0, 0)])
    assert sorted(labels.tolist()) == sorted(tiny_digits.split("train").labels[rows].tolist())


def test_the_alpha_half_is_redrawn_at_every_step_without_repeats(tiny_digits, monkeypatch):
    dataset, drawn = bilevel(tiny_digits), []
    half, original = dataset.alpha_half, Subset.batch

    def spy(self, places, first_draw, epoch):
        if self is half:
            drawn.append(self.indices[places])
        return original(self, places, first_draw, epoch)

    monkeypatch.setattr(Subset, "batch", spy)
    for number in range(len(dataset)):
        dataset[number]
    assert len({tuple(rows) for rows in drawn}) == len(dataset)
    for rows in drawn:
        assert len(set(rows.tolist())) == 16 and set(rows) <= set(half.indices)
    assert len(set(np.concatenate(drawn).tolist())) < 16 * len(dataset), "sampled, not swept"


def test_an_alpha_half_smaller_than_a_batch_is_drawn_whole(tiny_digits):
    dataset = bilevel(tiny_digits, batch_size=1000)
    (train, val, _) = dataset[0]
    assert len(train.labels) == len(dataset.weights.subset) and len(val.labels) == len(dataset.alpha_half)


def test_the_halves_may_need_different_numbers_of_views(tiny_digits):
    train, val, apart = bilevel(tiny_digits)[0]
    assert (len(train.views), len(val.views), len(apart.views)) == (1, 2, 2)
    assert torch.equal(train.labels, apart.labels), "the same images, with the views of another loss"


@pytest.mark.parametrize("start", [0, 2])
def test_loader_processes_give_the_same_batches_in_the_same_order(tiny_digits, start):
    dataset = bilevel(tiny_digits, epoch=1)
    alone, together = list(load_batches(dataset, start, 0)), list(load_batches(dataset, start, 2))
    assert len(alone) == len(together) == len(dataset) - start
    assert all(equal(one, other) for one, other in zip(alone, together, strict=True))


def test_starting_in_the_middle_of_an_epoch_gives_what_would_have_come(tiny_digits):
    for dataset in (bilevel(tiny_digits, epoch=2), training(subset(tiny_digits), 16, 2)):
        whole = list(load_batches(dataset, 0, 0))
        for start in (1, 3, len(dataset)):
            rest = list(load_batches(dataset, start, 0))
            assert len(rest) == len(whole) - start
            assert all(equal(one, other) for one, other in zip(whole[start:], rest, strict=True))


def test_epochs_and_seeds_give_other_batches(tiny_digits):
    first = bilevel(tiny_digits)[0]
    assert equal(first, bilevel(tiny_digits)[0])
    for other in (bilevel(tiny_digits, epoch=1), bilevel(tiny_digits, seed=1)):
        assert not any(map(torch.equal, tensors(first), tensors(other[0])))


# Evaluation


def test_plain_batches_keep_the_order_and_do_nothing_but_normalise(tiny_digits):
    split, rows = tiny_digits.split("test"), [9, 3, 3, 50, 0]
    batches = list(plain_batches(split, rows, 2, normaliser(tiny_digits)))
    assert [len(batch.labels) for batch in batches] == [2, 2, 1]
    views = torch.cat([batch.views[0] for batch in batches])
    (mean,), (std,) = tiny_digits.mean, tiny_digits.std
    torch.testing.assert_close(views, (to_float(split.rows(rows)) - mean) / std)
    assert torch.cat([batch.labels for batch in batches]).tolist() == split.labels[rows].tolist()


def test_the_training_split_is_standardised_by_its_own_statistics(tiny_digits):
    split = tiny_digits.split("train")
    (batch,) = plain_batches(split, range(len(split)), 1000, normaliser(tiny_digits))
    assert abs(batch.views[0].mean()) < 1e-4 and abs(batch.views[0].std() - 1) < 1e-3


# Halves


LABELS = st.lists(st.integers(2, 9), min_size=1, max_size=6).flatmap(
    lambda counts: st.permutations([c for c, count in enumerate(counts) for _ in range(count)]).map(
        lambda labels: (len(counts), np.array(labels))
    )
)


@settings(max_examples=60, deadline=None)
@given(LABELS, st.integers(0, 5))
def test_halves_are_disjoint_complete_and_equal_in_every_class(case, seed):
    num_classes, labels = case
    names = [f"class {c}" for c in range(num_classes)]
    weights, alphas = stratified_halves(labels, names, seed)
    assert sorted([*weights.tolist(), *alphas.tolist()]) == list(range(len(labels)))
    for c in range(num_classes):
        first, second = ((labels[half] == c).sum() for half in (weights, alphas))
        assert first - second in (0, 1) and second >= 1
    assert (np.diff(weights) > 0).all() and (np.diff(alphas) > 0).all()
    again = stratified_halves(labels, names, seed)
    assert np.array_equal(again[0], weights) and np.array_equal(again[1], alphas)


def test_on_a_set_sorted_by_class_the_first_half_does_not_hold_the_head_only():
    labels = np.repeat([0, 1, 2], [100, 20, 4])
    for half in stratified_halves(labels, list("abc"), 0):
        assert np.bincount(labels[half]).tolist() == [50, 10, 2]


def test_the_halves_are_drawn_anew_by_seed_and_in_no_order():
    labels = np.zeros(40, int)
    first = {tuple(stratified_halves(labels, ["a"], seed)[0]) for seed in range(10)}
    assert len(first) == 10 and tuple(range(20)) not in first


def test_every_class_too_small_for_both_halves_is_named():
    labels = np.array([0, 0, 1, 3, 3, 3])
    with pytest.raises(InputError) as error:
        stratified_halves(labels, ["ant", "bee", "cat", "dog"], 0)
    text = str(error.value)
    assert (
        "'bee', 'cat'" in text
        and "'ant'" not in text
        and "'dog'" not in text
        and "a data set with more of them" in text
    )
