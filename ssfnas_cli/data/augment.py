"""Augmentation of batches [N, C, H, W] in [0, 1]. The random numbers depend only on (seed, epoch, draw, view).

A draw is the position of an image in the epoch's order of images, so an image that occurs twice is augmented
differently each time.

An image is augmented identically, to the last bit, in any batch, in any loader process, with any number of threads and
after any interruption. For this, each image has its own row of uniform numbers, and each operation below uses only the
values of one image and rounds each value the same way wherever it is in a batch. Matrix products and fused
multiply-adds are therefore not used, and sums are computed row by row.

Three things make it fast (see benchmarks/input.py and docs/performance.md):
- One vectorised generator replaces a generator object per sample.
- A resized crop is separable, so whole lines are gathered at the speed of memory. grid_sample would compute an address
  per pixel. Colours are mixed in planes.
- native/views.cpp applies all operations to an image while it is in the cache.
The last operation writes the channels-last layout of the networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ssfnas_cli.data.policies import Policy
from ssfnas_cli.native.views import load as load_kernels
from ssfnas_cli.settings import Views

Uniforms = NDArray[np.float32]
DEFAULT_VIEWS = Views()

NUM_UNIFORMS = 16
SMALLEST_SIGMA, LARGEST_SIGMA, SIGMA_SIDE = (
    0.1,
    2.0,
    224,
)  # standard deviations of the blur, in pixels of an image with that side
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as in PIL and torchvision
_TO_YIQ = np.array([_LUMA, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)
# For each number of channels: the luma, the matrix from a colour to its gray, and the matrices that a rotation of the
# hue multiplies by the cosine and the sine of its angle and adds to the gray.
_HUE = {
    1: (np.ones(1), np.ones((1, 1)), np.zeros((1, 1)), np.zeros((1, 1))),
    3: (
        _LUMA,
        np.tile(_LUMA, (3, 1)),
        np.outer(_FROM_YIQ[:, 1], _TO_YIQ[1]) + np.outer(_FROM_YIQ[:, 2], _TO_YIQ[2]),
        np.outer(_FROM_YIQ[:, 2], _TO_YIQ[1]) - np.outer(_FROM_YIQ[:, 1], _TO_YIQ[2]),
    ),
}

# Philox4x64-10 (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011)
_PHILOX_FACTORS = np.array([0xD2E7470EE14C6C93, 0xCA5A826395121157], dtype=np.uint64)
_PHILOX_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_PHILOX_ROUNDS = 10


def draw_uniforms(seed: int, epoch: int, draws: np.ndarray, num_views: int) -> Uniforms:
    """Uniform numbers [num_views, N, NUM_UNIFORMS] in [0, 1), with a row for each draw and view.

    A row equals what `np.random.Generator(np.random.Philox(key=[seed, view], counter=[0, epoch, draw, 0]))` draws.
    """
    num_blocks = NUM_UNIFORMS // 8  # a block has four words of 64 bits, each of which yields two numbers
    counters = np.zeros((4, num_views, len(draws), num_blocks), dtype=np.uint64)
    counters[0] = np.arange(1, num_blocks + 1)  # NumPy increments the counter before it draws
    counters[1] = epoch
    counters[2] = draws[:, None]
    bits = _philox(seed, np.arange(num_views, dtype=np.uint64)[:, None, None], counters)
    words = np.moveaxis(bits, 0, -1).astype("<u8", order="C").view("<u4").reshape(num_views, len(draws), NUM_UNIFORMS)
    return (words >> 8).astype(np.float32) * np.float32(2**-24)


def _philox(key0: int, key1: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """Random words, uint64 [4, ...] like `counters`, for the keys (key0, key1). key1 is broadcast over `...`."""
    even, odd = counters[0::2], counters[1::2]
    factors = _PHILOX_FACTORS.reshape(2, *[1] * (counters.ndim - 1))
    for number in range(_PHILOX_ROUNDS):
        high, low = _wide_product(even, factors)
        first, second = (np.uint64(number * step % 2**64) for step in _PHILOX_WEYL)
        even, odd = high[::-1] ^ odd, low[::-1]
        even[0] ^= np.uint64(key0) + np.array([first])
        even[1] ^= key1 + np.array([second])
    return np.stack([even[0], odd[0], even[1], odd[1]])


def _wide_product(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The high and the low 64-bit words of products of uint64, computed from halves of 32 bits."""
    half, mask = np.uint64(32), np.uint64(2**32 - 1)
    a_high, a_low, b_high, b_low = a >> half, a & mask, b >> half, b & mask
    cross = a_low * b_high
    middle = (a_low * b_low >> half) + (cross & mask) + a_high * b_low
    return a_high * b_high + (cross >> half) + (middle >> half), a * b


@dataclass(frozen=True)
class Normalise:
    """Channel means and standard deviations of the training split."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """Standardise images [N, C, H, W] in [0, 1]. The result has the channels-last layout."""
        num, channels, height, width = images.shape
        rows = images.permute(0, 2, 3, 1).reshape(
            num, height, width * channels
        )  # long rows broadcast faster than runs of 3
        mean, std = (torch.from_numpy(array).to(images).repeat(width) for array in self.arrays())
        return (rows - mean).div_(std).view(num, height, width, channels).permute(0, 3, 1, 2)

    def arrays(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Means and divisors [C]. A lower bound of the divisors keeps constant channels small."""
        return np.array(self.mean), np.maximum(self.std, 1e-3)


def to_float(images: np.ndarray) -> Tensor:
    """Convert uint8 [N, H, W, C] to float32 [N, C, H, W] in [0, 1]. The layout remains channels-last."""
    return torch.from_numpy(images).float().div_(255).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of training images. Cutout and policy are for the single view of a supervised loss."""

    num_views: int
    normalise: Normalise
    flip: bool
    cutout: float = 0.0
    views: Views = DEFAULT_VIEWS
    compiled: bool = False
    """Whether compiled kernels make the views if there is a compiler. They differ from torch's in the last bits."""
    policy: Policy | None = None

    def __post_init__(self) -> None:
        if self.compiled:
            load_kernels()  # compile them now and not in every loader process

    def __call__(self, images: np.ndarray, seed: int, epoch: int, draws: np.ndarray) -> tuple[Tensor, ...]:
        """Augment images uint8 [N, H, W, C] of the given draws. Return a normalised channels-last tensor per view."""
        uniforms = draw_uniforms(seed, epoch, draws, self.num_views)
        if self.num_views == 1:
            cropped = crop_and_flip(images, uniforms[0], self.flip)
            if self.policy is not None:
                cropped = self.policy(cropped, uniforms[0])
            return (cutout(self.normalise(to_float(cropped)), uniforms[0], self.cutout),)
        shape = images.shape[1:]
        drawn = [draw_view(uniforms[view], view, self.views, self.flip, *shape) for view in range(self.num_views)]
        kernels = load_kernels() if self.compiled else None
        if kernels:
            mean, std = self.normalise.arrays()
            return tuple(kernels.render(images, **vars(view), mean=mean, std=std) for view in drawn)
        pixels = to_float(images)
        return tuple(self.normalise(self_supervised_view(pixels, view)) for view in drawn)


# The supervised view


def crop_and_flip(images: np.ndarray, uniforms: Uniforms, flip: bool) -> np.ndarray:
    """Crop images uint8 [N, H, W, C] at random after padding an eighth of the side in black (DARTS: 4 of 32).

    `flip` mirrors half of them.
    """
    num, height, width, channels = images.shape
    pad = max(1, height // 8)
    padded = np.zeros((num, height + 2 * pad, width + 2 * pad, channels), dtype=np.uint8)
    padded[:, pad:-pad, pad:-pad] = images
    top, left = (_below(2 * pad + 1, uniforms[:, column]) for column in (0, 1))
    # A view of all possible crops. Indexing it copies whole rows of the chosen ones.
    image, row, column, byte = padded.strides
    places, crop = (2 * pad + 1, 2 * pad + 1), (height, width * channels)
    crops = np.lib.stride_tricks.as_strided(
        padded, (num, *places, *crop), (image, row, column, row, byte), writeable=False
    )
    cropped = crops[np.arange(num), top, left].reshape(images.shape)
    if flip:
        mirrored = np.flatnonzero(uniforms[:, 2] < 0.5)
        cropped[mirrored] = cropped[mirrored][:, :, ::-1]
    return cropped


def cutout(images: Tensor, uniforms: Uniforms, share: float) -> Tensor:
    """Set a square to zero, whose side is `share` of the image's and whose centre is random, after normalisation."""
    _, _, height, width = images.shape
    length = round(share * height)
    if length == 0:
        return images
    images = images.clone()
    pixels = images.permute(0, 2, 3, 1).numpy()
    top = _below(height, uniforms[:, 3]) - length // 2
    left = _below(width, uniforms[:, 4]) - length // 2
    for image, y, x in zip(pixels, top.tolist(), left.tolist(), strict=True):
        image[max(y, 0) : y + length, max(x, 0) : x + length] = 0
    return images


def _below(number: int, uniforms: Uniforms) -> NDArray[np.int64]:
    """Random integers from 0 to number - 1."""
    return (uniforms.astype(np.float64) * number).astype(np.int64)


# Self-supervised views


@dataclass(frozen=True)
class DrawnView:
    """The random parameters of one view of N images, computed in float64."""

    rows: NDArray[np.int64]
    """[N, H]: for each line of the view, the line of the image at or just before it."""
    row_weights: NDArray[np.float32]
    """[N, H]: the weight of the line after that one."""
    columns: NDArray[np.int64]
    """[N, W]: like `rows`; they run backwards in a mirrored image."""
    column_weights: NDArray[np.float32]
    matrix: NDArray[np.float32]
    """[N, C, C]: the linear map of the colours."""
    shift: NDArray[np.float32]
    """[N, C]: the factors by which the mean of each channel of the crop is added to every colour."""
    taps: NDArray[np.float32]
    """[N, radius + 1]: the kernel of the blur from its centre outwards; 1 followed by zeros means no blur."""
    solarized: NDArray[np.bool_]


def draw_view(
    uniforms: Uniforms, view: int, options: Views, flip: bool, height: int, width: int, channels: int
) -> DrawnView:
    """Draw the parameters of a view of Barlow Twins: resized crop, flip, colour jitter, gray, blur, solarize."""
    drawn = uniforms.astype(np.float64)
    below = lambda column, probability: uniforms[:, column] < np.float32(probability)
    jittered, grayed = below(5, options.jitter_probability), below(10, options.gray_probability)
    radius = math.ceil(3 * LARGEST_SIGMA * height / SIGMA_SIDE) if options.blur else 0
    return DrawnView(
        *_draw_crop(drawn, options.min_scale, below(4, 0.5) & flip, height, width),
        *_draw_colour(drawn, options, jittered, grayed, channels),
        _draw_blur(drawn, below(12, (1.0, 0.1)[view]) & options.blur, radius, height),
        below(13, options.solarize_probability) & (view == 1),
    )


def _draw_crop(
    drawn: NDArray[np.float64], min_scale: float, mirrored: NDArray[np.bool_], height: int, width: int
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    """Draw boxes with min_scale to 1 of the area and an aspect ratio of 3/4 to 4/3. Return their lines."""
    scale = min_scale + (1 - min_scale) * drawn[:, 0]
    ratio = np.exp(math.log(4 / 3) * (2 * drawn[:, 1] - 1))
    share_x, share_y = np.minimum(np.sqrt(scale * ratio), 1), np.minimum(np.sqrt(scale / ratio), 1)
    rows = _lines(height, share_y, drawn[:, 3], np.zeros_like(mirrored))
    return *rows, *_lines(width, share_x, drawn[:, 2], mirrored)


def _lines(
    side: int, share: NDArray[np.float64], place: NDArray[np.float64], mirrored: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For each of `side` lines of a box, the image line at or just before it, and the distance from that, [N, side].

    The length of a box is `share` of the side. `place` in [0, 1) moves it from one end to the other.
    """
    steps = (np.arange(side) + 0.5) / side
    steps = np.where(mirrored[:, None], steps[::-1], steps)
    positions = side * (place * (1 - share))[:, None] + side * share[:, None] * steps - 0.5
    positions = np.clip(positions, 0, side - 1)  # within half a pixel of the border, there is only the border line
    lines = positions.astype(np.int64)
    return lines, (positions - lines).astype(np.float32)


def _draw_colour(
    drawn: NDArray[np.float64], options: Views, jittered: NDArray[np.bool_], grayed: NDArray[np.bool_], channels: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draw brightness, contrast, saturation, hue and gray as one affine map of the channels for each image.

    torchvision clamps after each operation and rotates the hue in HSV. Here the values are clamped once at the end, and
    the hue is rotated about the gray axis in YIQ. The chain is therefore a matrix and a multiple of the mean luma.
    """
    luma, gray, cosine, sine = _HUE[channels]
    spread = np.array([options.brightness, options.contrast, options.saturation])
    brightness, contrast, saturation = np.where(jittered, 1 + spread[:, None] * (2 * drawn[:, 6:9].T - 1), 1.0)
    saturation[grayed] = 0
    angle = np.where(jittered, 2 * math.pi * options.hue * (2 * drawn[:, 9] - 1), 0.0)
    turned = np.cos(angle)[:, None, None] * cosine + np.sin(angle)[:, None, None] * sine
    matrix = (contrast * brightness)[:, None, None] * (gray + saturation[:, None, None] * turned)
    shift = ((1 - contrast) * brightness)[:, None] * luma
    return matrix.astype(np.float32), shift.astype(np.float32)


def _draw_blur(drawn: NDArray[np.float64], blurred: NDArray[np.bool_], radius: int, side: int) -> NDArray[np.float32]:
    """Draw Gaussian kernels with standard deviations of 0.1 to 2 pixels at side 224 (Barlow Twins), times `side`."""
    distance = np.arange(radius + 1)
    sigma = (SMALLEST_SIGMA + (LARGEST_SIGMA - SMALLEST_SIGMA) * drawn[:, 11:12]) * side / SIGMA_SIDE
    taps = np.exp(-(distance**2) / (2 * sigma**2))
    taps /= taps[:, :1] + 2 * taps[:, 1:].sum(1, keepdims=True)
    return np.where(blurred[:, None], taps, distance == 0).astype(np.float32)


def self_supervised_view(images: Tensor, drawn: DrawnView) -> Tensor:
    """Apply a drawn view to images [N, C, H, W] in [0, 1] with torch operations, like native/views.cpp."""
    images = _mix_colours(_resize(images, drawn), drawn)
    _change_some(images, drawn.taps[:, 0] < 1, lambda some, chosen: _blur(some, drawn.taps[chosen]))
    _change_some(images, drawn.solarized, lambda some, _: torch.minimum(some, 1 - some))  # 1 - x where x >= 1/2
    return images


def _change_some(
    images: Tensor, chosen: NDArray[np.bool_], change: Callable[[Tensor, NDArray[np.int64]], Tensor]
) -> None:
    """Replace the chosen images by `change(images [n, C, H, W], their positions [n])`."""
    places = np.flatnonzero(chosen)
    if places.size:
        index = torch.from_numpy(places)
        images.index_copy_(0, index, change(images.index_select(0, index), places))


def _resize(images: Tensor, drawn: DrawnView) -> Tensor:
    """Resize the boxes bilinearly to the full size: first the lines and then, transposed, the columns."""
    num, channels, height, width = images.shape
    lines = images.permute(0, 2, 3, 1).reshape(num, height, -1)
    lines = _interpolate(lines, drawn.rows, drawn.row_weights)
    lines = lines.view(num, height, width, channels).permute(0, 2, 3, 1).reshape(num, width, -1)
    lines = _interpolate(lines, drawn.columns, drawn.column_weights)
    return lines.view(num, width, channels, height).permute(0, 2, 3, 1).contiguous()


def _interpolate(lines: Tensor, before: NDArray[np.int64], weights: NDArray[np.float32]) -> Tensor:
    """Interpolate lines [N, L, D] between the lines `before` [N, L] and the next ones, weighted by `weights` [N, L]."""
    num, length, _ = lines.shape
    start = np.arange(0, num * length, length)[:, None]
    first, second = (
        lines.flatten(0, 1).index_select(0, torch.from_numpy((start + index).ravel())).view_as(lines)
        for index in (before, np.minimum(before + 1, length - 1))
    )
    return second.sub_(first).mul_(torch.from_numpy(weights)[:, :, None]).add_(first)


def _mix_colours(images: Tensor, drawn: DrawnView) -> Tensor:
    """Multiply each pixel by the matrix of its image, add the shift of its image, and clamp to [0, 1]."""
    planes = images.flatten(2)
    means = np.add.reduce(planes.numpy(), axis=2) / np.float32(planes.shape[2])  # NumPy sums each row independently
    shift = (drawn.shift * means).sum(1, keepdims=True)
    matrix = torch.from_numpy(drawn.matrix)[..., None]
    mixed = matrix[:, :, 0] * planes[:, :1]
    for source in range(1, planes.shape[1]):
        mixed += matrix[:, :, source] * planes[:, source : source + 1]
    return mixed.add_(torch.from_numpy(shift)[..., None]).clamp_(0, 1).view_as(images)


def _blur(images: Tensor, taps: NDArray[np.float32]) -> Tensor:
    """Convolve each image [C, H, W] with its symmetric kernel along both sides, with reflection at the border."""
    kernel, radius = torch.from_numpy(taps)[:, :, None, None, None], taps.shape[1] - 1
    for dim in (2, 3):
        padding = (0, 0, radius, radius) if dim == 2 else (radius, radius, 0, 0)
        padded = F.pad(images, padding, mode="reflect")
        lines = [padded.narrow(dim, start, images.shape[dim]) for start in range(2 * radius + 1)]
        images = kernel[:, 0] * lines[radius]
        for offset in range(1, radius + 1):
            images += kernel[:, offset] * (lines[radius - offset] + lines[radius + offset])
    return images
