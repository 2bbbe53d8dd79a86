import cmath
import colorsys
import math

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from ssfnas_cli.data.augment import (
    NUM_UNIFORMS,
    Augmentation,
    Normalise,
    crop_and_flip,
    cutout,
    draw_uniforms,
    draw_view,
    self_supervised_view,
    to_float,
)
from ssfnas_cli.settings import Views

PLAIN = {"jitter_probability": 0.0, "gray_probability": 0.0, "solarize_probability": 0.0, "min_scale": 1.0}


def pixels(num=6, side=9, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, side, side, channels), dtype=np.uint8)


def augmentation(num_views=1, channels=3, flip=True, cutout=0.5, **views):
    normalise = Normalise((0.5,) * channels, (0.25,) * channels)
    return Augmentation(num_views, normalise, flip, cutout, Views(**views))


def uniforms(num, **columns):
    """Middle values, and those that a test is about by column number: `u5=0.1`."""
    rows = np.full((num, NUM_UNIFORMS), 0.5, np.float32)
    for column, value in columns.items():
        rows[:, int(column[1:])] = value
    return rows


def drawn(num, view=0, seed=0, epoch=0):
    """What samples 0 to num - 1 draw."""
    return draw_uniforms(seed, epoch, np.arange(num), view + 1)[view]


def view_of(images, rows, view, options, flip):
    """The view of float images [N, C, H, W] that these uniforms make."""
    channels, height, width = images.shape[1:]
    return self_supervised_view(images, draw_view(rows, view, options, flip, height, width, channels))


# What an image's augmentation depends on


@pytest.mark.parametrize(("side", "channels"), [(9, 3), (32, 3), (28, 1)])
@pytest.mark.parametrize("num_views", [1, 2])
def test_an_image_is_the_same_to_the_last_bit_in_whatever_batch_and_place_it_comes(num_views, side, channels):
    num = 67
    augment, images, ids = augmentation(num_views, channels, blur=True), pixels(num, side, channels), np.arange(num)
    whole = augment(images, 1, 2, ids)
    for order in ([40], [66, 0], [3, 2, 1, 0], list(range(5, 38))):
        part = augment(images[order], 1, 2, ids[order])
        assert all(torch.equal(one[order], other) for one, other in zip(whole, part, strict=True)), order


@pytest.mark.parametrize("num_views", [1, 2])
def test_threads_change_no_bit(num_views):
    augment, images, ids = augmentation(num_views, blur=True), pixels(70, 32), np.arange(70)
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(augment(images, 1, 2, ids))
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, results[0], results[1])) and all(map(torch.equal, results[0], results[2]))


@pytest.mark.parametrize("num_views", [1, 2])
def test_seed_epoch_and_sample_each_change_what_happens(num_views):
    augment, images, ids = augmentation(num_views), np.repeat(pixels(1), 6, axis=0), np.arange(6)
    base = augment(images, 1, 2, ids)[0]
    for other in (augment(images, 0, 2, ids)[0], augment(images, 1, 3, ids)[0], augment(images, 1, 2, ids + 6)[0]):
        assert sum(torch.equal(a, b) for a, b in zip(base, other, strict=True)) < 2
    assert len({image.numpy().tobytes() for image in base}) > 4, "each sample draws for itself"


def test_torchs_random_state_plays_no_part():
    augment, images, ids = augmentation(2), pixels(), np.arange(6)
    torch.manual_seed(1)
    one = augment(images, 1, 2, ids)
    torch.manual_seed(2)
    assert all(map(torch.equal, one, augment(images, 1, 2, ids)))


def test_uniforms_are_uniform_and_differ_by_seed_epoch_sample_and_view():
    rows = drawn(3000, seed=3, epoch=1)
    assert rows.shape == (3000, NUM_UNIFORMS) and rows.dtype == np.float32 and rows.min() >= 0 and rows.max() < 1
    assert np.abs(rows.mean(0) - 0.5).max() < 0.03 and np.abs(rows.std(0) - 12**-0.5).max() < 0.02
    assert np.abs(np.corrcoef(rows.T) - np.eye(NUM_UNIFORMS)).max() < 0.08
    others = [(4, 1, 0), (3, 2, 0), (3, 1, 1), (0, 0, 0), (1, 0, 0), (0, 1, 0)]
    seen = {rows[0].tobytes()} | {draw_uniforms(s, e, np.array([0]), v + 1)[v].tobytes() for s, e, v in others}
    assert len(seen) == 7


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (2**63 - 1, 149), (12345678901234567, 3)])
def test_uniforms_are_those_of_numpys_philox(seed, epoch):
    samples = np.array([0, 7, 2**32 - 1, 2**32, 2**62])
    for view, rows in enumerate(draw_uniforms(seed, epoch, samples, 3)):
        for sample, row in zip(samples.tolist(), rows, strict=True):
            bits = np.random.Philox(key=[seed, view], counter=[0, epoch, sample, 0])
            assert np.array_equal(row, np.random.Generator(bits).random(NUM_UNIFORMS, dtype=np.float32))


# The supervised view


def test_every_crop_is_a_place_in_the_padded_image_and_all_are_reached():
    images = pixels(400, side=16, seed=1) | 1  # nothing is black but the padding
    out = crop_and_flip(images, drawn(400), flip=False)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    places = set()
    for image, result in zip(padded, out, strict=True):
        found = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if np.array_equal(image[top : top + 16, left : left + 16], result)
        ]
        assert len(found) == 1
        places |= set(found)
    assert len(places) == 25


@pytest.mark.parametrize(("side", "pad"), [(32, 4), (28, 3), (8, 1), (9, 1), (5, 1)])
def test_the_padding_is_an_eighth_of_the_side(side, pad):
    images = np.ones((1, side, side, 1), np.uint8)
    out = crop_and_flip(images, uniforms(1, u0=0.0, u1=0.999), flip=False)
    assert not out[0, :pad].any() and not out[0, :, -pad:].any()
    assert out[0, pad:, :-pad].all() and out.shape == images.shape


def test_half_of_the_images_are_mirrored_and_none_without_flip():
    images = pixels(400, side=8)
    rows = drawn(400)
    rows[:, :2] = 0.5  # the crop in the middle
    out = crop_and_flip(images, rows, flip=True)
    mirrored = np.array([np.array_equal(a[:, ::-1], b) for a, b in zip(images, out, strict=True)])
    kept = np.array([np.array_equal(a, b) for a, b in zip(images, out, strict=True)])
    assert (mirrored ^ kept).all() and 160 < mirrored.sum() < 240
    assert np.array_equal(crop_and_flip(images, rows, flip=False), images)


@pytest.mark.parametrize("num_views", [1, 2])
def test_without_flip_nothing_is_ever_mirrored(num_views):
    """A ramp to the right stays a ramp to the right."""
    ramp = np.broadcast_to(np.linspace(0, 255, 16).astype(np.uint8)[None, None, :, None], (200, 16, 16, 3))
    for flip in (False, True):
        augment = augmentation(num_views, flip=flip, cutout=0.0, **(PLAIN | {"min_scale": 0.3}))
        out = augment(np.ascontiguousarray(ramp), 0, 0, np.arange(200))[-1]
        falling = out[:, 0, 8, 10] < out[:, 0, 8, 5]
        assert falling.any() == flip and (not flip or 60 < falling.sum() < 140)


@pytest.mark.parametrize(("side", "share", "length"), [(32, 0.5, 16), (8, 0.5, 4), (9, 0.5, 4), (7, 0.4, 3), (8, 1, 8)])
def test_cutout_zeroes_one_square_clipped_at_the_border(side, share, length):
    images = torch.ones(500, 2, side, side)
    out = cutout(images, drawn(500), share)
    assert torch.equal(out[:, 0], out[:, 1]) and ((out == 0) | (out == 1)).all()
    sizes = set()
    for image in out[:, 0]:
        rows, columns = ((image == 0).any(axis).nonzero().flatten() for axis in (1, 0))
        square = torch.ones_like(image)
        square[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = 0
        assert torch.equal(image, square)
        sizes |= {len(rows), len(columns)}
    assert max(sizes) == length and min(sizes) <= math.ceil(length / 2)


def test_cutout_of_nothing_changes_nothing():
    images = torch.rand(3, 1, 8, 8)
    rows = drawn(3)
    assert torch.equal(cutout(images, rows, 0.0), images)
    augment = augmentation(1, cutout=0.0)
    assert (augment(np.full((3, 8, 8, 3), 255, np.uint8), 0, 0, np.arange(3))[0] != 0).all()


def test_cutout_comes_after_normalisation():
    """It erases to the mean, which is 0 then."""
    out = augmentation(1)(np.full((20, 8, 8, 3), 255, np.uint8), 0, 0, np.arange(20))[0]
    assert set(out.unique().tolist()) == {-2.0, 0.0, 2.0}  # padding, cutout, white


def test_normalisation_is_per_channel_and_survives_a_constant_one():
    images = torch.rand(2, 3, 4, 4)
    out = Normalise((0.1, 0.2, 0.3), (0.5, 2.0, 0.0))(images)
    torch.testing.assert_close(out[:, 0], (images[:, 0] - 0.1) / 0.5)
    torch.testing.assert_close(out[:, 1], (images[:, 1] - 0.2) / 2.0)
    assert torch.isfinite(out).all() and out.is_contiguous(memory_format=torch.channels_last)


def test_to_float_scales_bytes_and_moves_the_channels_first():
    images = pixels(2, 5)
    out = to_float(images)
    assert out.shape == (2, 3, 5, 5) and out.dtype == torch.float32
    np.testing.assert_allclose(out[1, 2, 3, 4].item(), images[1, 3, 4, 2] / 255, rtol=1e-6)


# Self-supervised views


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 9, 28])
@pytest.mark.parametrize("view", [0, 1])
def test_views_keep_shape_and_range(view, side, channels):
    images = to_float(pixels(50, side, channels))
    rows = drawn(50, view)
    out = view_of(images, rows, view, Views(blur=True), flip=True)
    assert out.shape == images.shape and out.dtype == torch.float32
    assert out.min() >= -1e-6 and out.max() <= 1 + 1e-6 and not torch.equal(out, images)


def test_the_two_views_of_an_image_differ():
    first, second = augmentation(2)(pixels(), 0, 0, np.arange(6))
    assert all(not torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("channels", [1, 3])
def test_with_everything_off_a_view_is_the_image(channels):
    images = to_float(pixels(20, 9, channels))
    for view in (0, 1):
        out = view_of(images, uniforms(20), view, Views(**PLAIN), flip=False)  # of the aspect 1
        torch.testing.assert_close(out, images, atol=1e-5, rtol=0)


def test_a_resized_crop_shows_the_box_it_draws():
    """Of a ramp, every crop is the ramp between the box's ends: they tell its width, height and place."""
    x = (torch.arange(64) + 0.5) / 64
    ramp = torch.stack([x.expand(64, 64), x[:, None].expand(64, 64), torch.zeros(64, 64)]).expand(500, 3, 64, 64)
    rows = drawn(500)
    out = view_of(ramp, rows, 0, Views(**(PLAIN | {"min_scale": 0.25})), flip=False)
    width, height = ((out[:, k].amax((1, 2)) - out[:, k].amin((1, 2))) * 64 / 63 for k in (0, 1))
    area, aspect = width * height, width / height
    assert area.min() > 0.2 and area.max() < 1.02 and 0.55 < area.mean() < 0.66
    assert 0.7 < aspect.min() < 0.85 and 1.2 < aspect.max() < 1.4
    for k in (0, 1):
        assert out[:, k].amin((1, 2)).min() < 0.05 and out[:, k].amax((1, 2)).max() > 0.95


FACTORS = {"brightness": 6, "contrast": 7, "saturation": 8}


def colour_only(images, view=0, **columns):
    """A view that only jitters: the whole image, factors 1 but for the uniforms given."""
    options = Views(**(PLAIN | {"jitter_probability": 1.0}))
    return view_of(images, uniforms(len(images), **columns), view, options, flip=False)


def soft_images(num=5):
    """Far enough from black and white that no clamp comes into play."""
    return 0.4 + 0.2 * to_float(pixels(num, 16))


@pytest.mark.parametrize("value", [0.1, 0.4, 0.9])
@pytest.mark.parametrize("name", FACTORS)
def test_a_colour_factor_does_what_torchvisions_does(name, value):
    images = soft_images()
    factor = 1 + {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2}[name] * (2 * value - 1)
    adjust = getattr(v2.functional, f"adjust_{name}")
    got = colour_only(images, **{f"u{FACTORS[name]}": value})
    torch.testing.assert_close(got, adjust(images, factor), atol=2e-4, rtol=0)  # torchvision's luma has 4 digits


def test_brightness_contrast_and_saturation_come_in_torchvisions_order():
    images = soft_images()
    expected = v2.functional.adjust_brightness(images, 1.08)
    expected = v2.functional.adjust_contrast(expected, 0.76)
    expected = v2.functional.adjust_saturation(expected, 1.16)
    got = colour_only(images, u6=0.6, u7=0.2, u8=0.9)
    torch.testing.assert_close(got, expected, atol=3e-4, rtol=0)


def test_brightness_and_contrast_of_grey_images_are_torchvisions():
    images = 0.4 + 0.2 * to_float(pixels(5, 16, channels=1))
    expected = v2.functional.adjust_contrast(v2.functional.adjust_brightness(images, 1.08), 0.76)
    torch.testing.assert_close(colour_only(images, u6=0.6, u7=0.2), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(colour_only(images, u8=0.9, u9=0.9, u10=0.0), images, atol=1e-5, rtol=0)


def test_the_hue_turns_about_the_gray_axis_in_yiq():
    images = soft_images(1)
    for value in (0.0, 0.25, 0.5, 1.0):
        angle = 2 * math.pi * 0.1 * (2 * value - 1)  # at most a tenth of a turn
        got = colour_only(images, u9=value)[0]
        for row, column in [(0, 0), (5, 11), (15, 3)]:
            y, i, q = colorsys.rgb_to_yiq(*images[0, :, row, column].tolist())
            turned = complex(i, q) * cmath.exp(1j * angle)
            expected = colorsys.yiq_to_rgb(y, turned.real, turned.imag)
            # colorsys rounds its matrix to two digits
            assert got[:, row, column].tolist() == pytest.approx(expected, abs=3e-3)


def test_the_hue_keeps_the_luma_and_leaves_grays_alone():
    images = soft_images()
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    got = colour_only(images, u9=1.0)
    assert (got - images).abs().max() > 0.02
    torch.testing.assert_close((luma * got).sum(1), (luma * images).sum(1), atol=1e-4, rtol=0)
    gray = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    torch.testing.assert_close(colour_only(gray, u9=1.0), gray, atol=1e-4, rtol=0)


def test_gray_is_the_luma_in_every_channel():
    images = soft_images()
    options = Views(**(PLAIN | {"gray_probability": 1.0}))
    got = view_of(images, uniforms(5), 0, options, flip=False)
    torch.testing.assert_close(got, v2.functional.rgb_to_grayscale(images, 3), atol=2e-4, rtol=0)


@pytest.mark.parametrize(("option", "probability"), [("jitter_probability", 0.8), ("gray_probability", 0.2)])
def test_the_probabilities_are_those_of_the_settings(option, probability):
    images = soft_images(1).expand(1000, 3, 16, 16)
    rows = drawn(1000)
    rows[:, :4] = 0.5
    options = Views(**(PLAIN | {option: probability}))
    out = view_of(images, rows, 0, options, flip=False)
    changed = ((out - images).abs() > 1e-3).flatten(1).any(1).double().mean()
    assert abs(changed - probability) < 0.05


def test_only_the_second_view_is_solarized():
    images = to_float(pixels(1000, 8))
    options = Views(**(PLAIN | {"solarize_probability": 0.2}))
    rows = drawn(1000, 1)
    rows[:, :4] = 0.5
    first, second = (view_of(images, rows, view, options, flip=False) for view in (0, 1))
    torch.testing.assert_close(first, images, atol=1e-5, rtol=0)
    solarized = torch.where(first >= 0.5, 1 - first, first)
    changed = torch.tensor([not torch.equal(a, b) for a, b in zip(first, second, strict=True)])
    assert abs(changed.double().mean() - 0.2) < 0.05
    assert torch.equal(second[changed], solarized[changed])


@pytest.mark.parametrize("side", [32, 96, 224])
def test_blur_is_a_gaussian_of_01_to_2_pixels_in_an_image_of_224(side):
    images = to_float(pixels(4, side))
    options, value = Views(**(PLAIN | {"blur": True})), 0.7
    radius = math.ceil(6 * side / 224)
    sigma = (0.1 + 1.9 * value) * side / 224
    got = view_of(images, uniforms(4, u11=value, u12=0.0), 0, options, flip=False)
    expected = v2.functional.gaussian_blur(images, [2 * radius + 1] * 2, [sigma, sigma])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_the_first_view_is_always_blurred_and_the_second_in_one_of_ten():
    images = to_float(pixels(1000, 48))
    rows = drawn(1000)
    rows[:, :4], rows[:, 11] = 0.5, 0.9
    for view, share in ((0, 1.0), (1, 0.1)):
        out = view_of(images, rows, view, Views(**(PLAIN | {"blur": True})), flip=False)
        changed = ((out - images).abs() > 1e-3).flatten(1).any(1).double().mean()
        assert abs(changed - share) < 0.03
