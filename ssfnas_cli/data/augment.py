"""Augmentation of batches [N, C, H, W] in [0, 1], random by (seed, epoch, sample, view) and nothing else.

Every image draws its own row of uniform numbers, so what happens to it does not depend on the batch, the loader
processes or where a run was interrupted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssfnas_cli.settings import Views

NUM_UNIFORMS = 16
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as PIL and torchvision


def sample_uniforms(seed: int, epoch: int, samples: np.ndarray, view: int) -> Tensor:
    """Uniform numbers [N, NUM_UNIFORMS] in [0, 1), one row per sample, from a counter-based generator."""
    rows = np.empty((len(samples), NUM_UNIFORMS), dtype=np.float32)
    for row, sample in enumerate(samples):
        bits = np.random.Philox(key=[seed, view], counter=[0, epoch, int(sample), 0])
        np.random.Generator(bits).random(out=rows[row], dtype=np.float32)
    return torch.from_numpy(rows)


@dataclass(frozen=True)
class Normalise:
    """Channel means and standard deviations of the training split."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """[N, C, H, W] in [0, 1] -> standardised."""
        shape = (1, -1, 1, 1)
        mean = images.new_tensor(self.mean).view(shape)
        std = images.new_tensor([max(value, 1e-3) for value in self.std]).view(shape)
        return (images - mean) / std


def to_float(images: np.ndarray) -> Tensor:
    """uint8 [N, H, W, C] -> float32 [N, C, H, W] in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float().div_(255)


def crop_and_flip(images: Tensor, uniforms: Tensor, flip: bool) -> Tensor:
    """Pad an eighth of the side with black (4 of 32, as DARTS), crop back at random, mirror half of the images."""
    num, _, height, width = images.shape
    pad = max(1, height // 8)
    padded = F.pad(images, (pad, pad, pad, pad))
    top = (uniforms[:, 0] * (2 * pad + 1)).long()
    left = (uniforms[:, 1] * (2 * pad + 1)).long()
    rows = top[:, None] + torch.arange(height)
    columns = left[:, None] + torch.arange(width)
    if flip:
        mirrored = uniforms[:, 2] < 0.5
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    # Advanced indices on dims 0, 2, 3 come first in the result: [N, H, W, C].
    return padded[torch.arange(num)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cutout(images: Tensor, uniforms: Tensor, share: float) -> Tensor:
    """Zero a square of `share` of the side, its centre anywhere, clipped at the border (after normalisation)."""
    _, _, height, width = images.shape
    length = round(share * height)
    if length == 0:
        return images
    top = (uniforms[:, 3] * height).long() - length // 2
    left = (uniforms[:, 4] * width).long() - length // 2
    rows, columns = torch.arange(height), torch.arange(width)
    in_rows = (rows >= top[:, None]) & (rows < top[:, None] + length)
    in_columns = (columns >= left[:, None]) & (columns < left[:, None] + length)
    return images.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0.0)


def self_supervised_view(images: Tensor, uniforms: Tensor, view: int, options: Views, flip: bool) -> Tensor:
    """One view of Barlow Twins: resized crop, flip, colour jitter, gray, blur, solarize; still in [0, 1]."""
    images = _resized_crop(images, uniforms, options.min_scale, flip)
    images = _colour(images, uniforms, options)
    if options.blur:
        images = _blur(images, uniforms, probability=(1.0, 0.1)[view])
    if view == 1:
        solarized = (uniforms[:, 13] < options.solarize_probability)[:, None, None, None] & (images >= 0.5)
        images = torch.where(solarized, 1 - images, images)
    return images


def _resized_crop(images: Tensor, uniforms: Tensor, min_scale: float, flip: bool) -> Tensor:
    """A box of min_scale to 1 of the area and 3/4 to 4/3 of the aspect, bilinearly back to the full size."""
    scale = min_scale + (1 - min_scale) * uniforms[:, 0]
    log_ratio = math.log(4 / 3) * (2 * uniforms[:, 1] - 1)
    width = (scale * log_ratio.exp()).sqrt().clamp(max=1)
    height = (scale / log_ratio.exp()).sqrt().clamp(max=1)
    centre_x = (2 * uniforms[:, 2] - 1) * (1 - width)
    centre_y = (2 * uniforms[:, 3] - 1) * (1 - height)
    sign = torch.where(uniforms[:, 4] < 0.5, -1.0, 1.0) if flip else torch.ones_like(width)
    zero = torch.zeros_like(width)
    theta = torch.stack([torch.stack([sign * width, zero, centre_x], 1), torch.stack([zero, height, centre_y], 1)], 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _colour(images: Tensor, uniforms: Tensor, options: Views) -> Tensor:
    """Brightness, contrast, saturation, hue and gray as one affine map of the channels per image.

    torchvision clamps after each and turns the hue in HSV; here the clamp comes once, at the end, and the hue
    turns about the gray axis in YIQ, which makes the whole chain a single 3x4 matrix.
    """
    jittered = uniforms[:, 5] < options.jitter_probability
    spread = torch.tensor([options.brightness, options.contrast, options.saturation])
    factors = torch.where(jittered[:, None], 1 + spread * (2 * uniforms[:, 6:9] - 1), 1.0)
    brightness, contrast, saturation = factors[:, :, None, None].unbind(1)
    num, channels = images.shape[:2]
    if channels == 1:
        images = images * brightness[:, None]
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        return (mean + contrast[:, None] * (images - mean)).clamp(0, 1)
    angle = torch.where(jittered, 2 * math.pi * options.hue * (2 * uniforms[:, 9] - 1), 0.0)
    grayed = uniforms[:, 10] < options.gray_probability
    saturation = torch.where(grayed[:, None, None], 0.0, saturation)
    luma = images.new_tensor(_LUMA)
    to_gray = luma.expand(3, 3)
    colour = to_gray + saturation * (_hue_rotation(angle) - to_gray)
    mean = (images * luma.view(1, 3, 1, 1)).sum(1).mean(dim=(1, 2))
    shift = (1 - contrast) * brightness * mean[:, None, None]
    mixed = torch.baddbmm(shift, contrast * brightness * colour, images.reshape(num, 3, -1))
    return mixed.view_as(images).clamp(0, 1)


def _hue_rotation(angle: Tensor) -> Tensor:
    """Matrices [N, 3, 3] that turn RGB by `angle` about the gray axis in YIQ, keeping the luma."""
    to_yiq = torch.tensor([_LUMA, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)])
    turn = torch.zeros(len(angle), 3, 3)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = angle.cos()
    turn[:, 1, 2], turn[:, 2, 1] = -angle.sin(), angle.sin()
    return torch.linalg.inv(to_yiq) @ turn @ to_yiq


def _blur(images: Tensor, uniforms: Tensor, probability: float) -> Tensor:
    """Gaussian blur with a deviation of 0.1 to 2 pixels of a 224-pixel image's kernel, scaled to this side."""
    num, channels, height, width = images.shape
    radius = max(1, height // 20)
    sigma = (0.1 + 1.9 * uniforms[:, 11]) * radius / 3
    offsets = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-(offsets**2) / (2 * sigma[:, None] ** 2))
    kernel = kernel / kernel.sum(1, keepdim=True)
    kernel = torch.where((uniforms[:, 12] < probability)[:, None], kernel, (offsets == 0).float())
    kernel = kernel.repeat_interleave(channels, 0)
    flat = F.pad(images.reshape(1, num * channels, height, width), (radius,) * 4, mode="reflect")
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=num * channels)
    return F.conv2d(flat, kernel[:, None, None, :], groups=num * channels).view_as(images)
