"""Mixed batches: mixup and CutMix against slow loops, their draws against their distributions."""

import numpy as np
import pytest
import torch

from ssfnas_cli.data.batches import Subset, TrainingBatches, load_batches, training_subset
from ssfnas_cli.data.mixing import Mixing, draw_box
from ssfnas_cli.settings import RetrainSettings

LABELS = torch.arange(12)


def images(num=12, channels=3, height=9, width=7):
    draw = torch.Generator().manual_seed(1)
    return torch.rand(num, channels, height, width, generator=draw).to(memory_format=torch.channels_last)


def mix(mixup=None, cutmix=None, seed=5, epoch=0, number=0, view=None):
    return Mixing(mixup, cutmix, seed)((images() if view is None else view,), LABELS, epoch, number)


def test_mixup_averages_each_image_with_another_of_the_batch():
    before = images()
    (view,), mixed = mix(mixup=1.0)
    assert 0 < mixed.share < 1 and sorted(mixed.labels.tolist()) == list(range(12))
    for k, partner in enumerate(mixed.labels.tolist()):
        one, other = before[k].double(), before[partner].double()
        torch.testing.assert_close(view[k].double(), mixed.share * one + (1 - mixed.share) * other, rtol=0, atol=1e-6)
    assert view.is_contiguous(memory_format=torch.channels_last)


def test_cutmix_pastes_one_box_for_the_batch_and_counts_its_pixels():
    before = images()
    for number in range(40):
        (view,), mixed = mix(cutmix=1.0, number=number)
        inside = torch.zeros(9, 7, dtype=torch.bool)
        for k, partner in enumerate(mixed.labels.tolist()):
            if partner == k:
                assert torch.equal(view[k], before[k])
                continue
            changed = (view[k] != before[k]).any(0)
            inside |= changed
            assert torch.equal(view[k][:, changed], before[partner][:, changed])
            assert torch.equal(view[k][:, ~changed], before[k][:, ~changed])
        rows, columns = inside.any(1).nonzero()[:, 0], inside.any(0).nonzero()[:, 0]
        area = len(rows) * len(columns)
        assert inside.sum() == area, "a rectangle"
        assert mixed.share == pytest.approx(1 - area / 63)
    assert torch.equal(images(), before), "the images given are left alone"


def test_the_box_has_the_share_of_the_image_unless_it_is_clipped_and_its_centre_is_anywhere():
    draw, centres = np.random.default_rng(0), []
    for _ in range(3000):
        (rows, columns), share = draw_box(draw, 0.75, 40, 20)
        assert rows.stop - rows.start <= 20 and columns.stop - columns.start <= 10
        assert share == 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / 800
        if rows.start > 0 and rows.stop < 40 and columns.start > 0 and columns.stop < 20:
            assert share == 0.75
        centres.append((rows.start + rows.stop) / 2)
    assert min(centres) == 5 and max(centres) > 34 and abs(np.mean(centres) - 20) < 1, "also at the border, clipped"
    assert draw_box(draw, 1.0, 40, 20)[1] == 1.0


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_lambda_is_of_the_symmetric_beta_distribution(alpha):
    shares = [mix(mixup=alpha, number=number)[1].share for number in range(1500)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.04)
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.15)


def test_extreme_concentrations_give_finite_shares():
    shares = [mix(mixup=alpha, number=number)[1].share for number in range(200) for alpha in (1e-6, 1e-300, 1000.0)]
    assert np.isfinite(shares).all() and min(shares) >= 0 and max(shares) <= 1


def test_with_both_half_of_the_batches_have_either():
    view = images(height=16, width=16)
    cut = 0
    for number in range(400):
        (mixed_view,), mixed = mix(1.0, 1.0, number=number, view=view)
        moved = [k for k, partner in enumerate(mixed.labels.tolist()) if partner != k]
        known = (mixed_view[moved] == view[moved]) | (mixed_view[moved] == view[mixed.labels][moved])
        cut += bool(known.all())
    assert 160 < cut < 240


def test_what_is_mixed_follows_from_seed_epoch_and_batch():
    def facts(**place):
        (view,), mixed = mix(1.0, 1.0, **place)
        return view.sum().item(), mixed.labels.tolist(), mixed.share

    torch.manual_seed(0)
    first = facts()
    np.random.seed(3)
    torch.manual_seed(3)
    assert facts() == first
    others = [facts(**{name: 1}) for name in ("seed", "epoch", "number")]
    assert len({str(other) for other in [first, *others]}) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_an_epoch_are_mixed_alike_in_loader_processes(tiny_digits, workers):
    split, settings = tiny_digits.split("train"), RetrainSettings()
    subset: Subset = training_subset(tiny_digits, split, np.arange(len(split)), settings, "train", 1)
    order = np.random.default_rng(0).permutation(len(split))
    plain = TrainingBatches(subset, order, 16, 1)
    dataset = TrainingBatches(subset, order, 16, 1, Mixing(0.5, None, 9))
    for number, batch in enumerate(load_batches(dataset, 2, workers), start=2):
        expected, mixed = Mixing(0.5, None, 9)(plain[number].views, plain[number].labels, 1, number)
        assert torch.equal(batch.labels, plain[number].labels) and torch.equal(batch.views[0], expected[0])
        assert torch.equal(batch.mixed.labels, mixed.labels) and batch.mixed.share == mixed.share
        assert plain[number].mixed is None
