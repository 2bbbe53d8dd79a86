"""Views made by compiled kernels, held against torch's operations, on the same draws."""

import numpy as np
import pytest
import torch

from ssfnas_cli.data import augment
from ssfnas_cli.data.augment import Augmentation, Normalise
from ssfnas_cli.data.batches import Subset, TrainingBatches, load_batches
from ssfnas_cli.native import library
from ssfnas_cli.native.views import load
from ssfnas_cli.settings import Views

needs_compiler = pytest.mark.skipif(library.compiler() is None, reason="no C++ compiler")


def pixels(num, height, width, channels):
    return np.random.default_rng(0).integers(0, 256, (num, height, width, channels), dtype=np.uint8)


def augmentation(channels=3, compiled=True, flip=True, **views):
    normalise = Normalise((0.5, 0.4, 0.3)[:channels], (0.25, 0.0, 2.0)[:channels])
    return Augmentation(2, normalise, flip, views=Views(**views), compiled=compiled)


@needs_compiler
@pytest.mark.parametrize("blur", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(2, 2), (8, 8), (9, 9), (13, 20), (32, 32), (64, 64)])
def test_compiled_views_are_torchs_to_the_rounding_of_float32(height, width, channels, blur):
    images, ids = pixels(50, height, width, channels), np.arange(50) + 7
    options = {"blur": blur, "solarize_probability": 0.5}
    ours = augmentation(channels, **options)(images, 1, 2, ids)
    theirs = augmentation(channels, compiled=False, **options)(images, 1, 2, ids)
    scale = torch.tensor([0.25, 1e-3, 2.0][:channels]).view(1, -1, 1, 1)  # of what is rounded, before the division
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape == (50, channels, height, width) and one.dtype == torch.float32
        assert one.is_contiguous(memory_format=torch.channels_last)
        # Where rounding carries a value over 1/2 it is solarized or not, which makes no difference there: 1 - x is x.
        torch.testing.assert_close(one * scale, other * scale, rtol=0, atol=2e-6)


@needs_compiler
@pytest.mark.parametrize(("side", "channels"), [(9, 3), (32, 3), (28, 1)])
def test_an_image_is_the_same_to_the_last_bit_in_whatever_batch_and_place_it_comes(side, channels):
    augment, images, ids = augmentation(channels, blur=True), pixels(67, side, side, channels), np.arange(67)
    whole = augment(images, 1, 2, ids)
    for order in ([40], [66, 0], [3, 2, 1, 0], list(range(5, 38))):
        part = augment(images[order], 1, 2, ids[order])
        assert all(torch.equal(one[order], other) for one, other in zip(whole, part, strict=True)), order


@needs_compiler
@pytest.mark.parametrize("workers", [1, 2])
def test_loader_processes_make_the_same_views(tiny_digits, workers):
    split = tiny_digits.split("train")
    subset = Subset(split, np.arange(len(split)), augmentation(1), seed=0)
    dataset = TrainingBatches(subset, np.arange(len(subset)), 16, epoch=1)
    alone, together = list(load_batches(dataset, 0, 0)), list(load_batches(dataset, 0, workers))
    assert len(alone) == len(together) == len(dataset)
    for one, other in zip(alone, together, strict=True):
        assert all(map(torch.equal, one.views, other.views))


@needs_compiler
def test_images_that_are_a_piece_of_a_larger_array_are_read_right():
    images, ids = pixels(10, 16, 24, 3), np.arange(5)
    piece = images[::2, :, 4:20]
    ours, copied = augmentation()(piece, 0, 0, ids), augmentation()(piece.copy(), 0, 0, ids)
    assert all(map(torch.equal, ours, copied))


@needs_compiler
def test_kernels_refuse_arrays_that_do_not_fit():
    kernels = load()
    assert kernels is not None
    with pytest.raises(AssertionError):
        kernels.render(pixels(2, 8, 8, 3), taps=np.ones((2, 1)), rows=np.zeros((2, 7)))


def test_without_a_compiler_torch_makes_the_views(monkeypatch):
    monkeypatch.setattr(augment, "load_kernels", lambda: None)
    images, ids = pixels(6, 9, 9, 3), np.arange(6)
    ours, theirs = augmentation()(images, 0, 0, ids), augmentation(compiled=False)(images, 0, 0, ids)
    assert all(map(torch.equal, ours, theirs))


def test_nothing_is_compiled_unless_asked_for(monkeypatch):
    def refuse():
        raise AssertionError("loaded")

    monkeypatch.setattr(augment, "load_kernels", refuse)
    augmentation(compiled=False)(pixels(6, 9, 9, 3), 0, 0, np.arange(6))
    with pytest.raises(AssertionError, match="loaded"):
        augmentation(compiled=True)
