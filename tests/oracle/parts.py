"""The ops of DARTS and FairDARTS, and what both of their networks are stacked from, for `direct.py`.

Written directly from the papers, as everything there: every op computes for itself, and all is torch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OpBuilder = Callable[[int, int, bool], nn.Module]  # (channels, stride, affine)


# Ops (DARTS, section 3 and appendix; FairDARTS, section 4)


class Zeros(nn.Module):
    """`none`: zeros of the strided shape."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


class FactorizedReduce(nn.Module):
    """ReLU; two 1x1 stride-2 convolutions, the second from the pixel (1, 1) on; BN. Odd sides get a zero row, column.

    [N, C_in, H, W] -> [N, C_out, ceil(H/2), ceil(W/2)].
    """

    def __init__(self, in_channels: int, out_channels: int, affine: bool):
        super().__init__()
        self.even = nn.Conv2d(in_channels, out_channels // 2, 1, 2, bias=False)
        self.odd = nn.Conv2d(in_channels, out_channels - out_channels // 2, 1, 2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        if x.shape[2] % 2 or x.shape[3] % 2:
            x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        return self.norm(torch.cat([self.even(x), self.odd(x[:, :, 1:, 1:])], dim=1))


def relu_conv_bn(in_channels: int, out_channels: int, affine: bool) -> nn.Module:
    """ReLU, 1x1 convolution, BN."""
    norm = nn.BatchNorm2d(out_channels, affine=affine)
    return nn.Sequential(nn.ReLU(), nn.Conv2d(in_channels, out_channels, 1, bias=False), norm)


def _separable(channels: int, kernel: int, stride: int, dilation: int, affine: bool) -> list[nn.Module]:
    padding = dilation * (kernel - 1) // 2
    depthwise = nn.Conv2d(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False)
    pointwise = nn.Conv2d(channels, channels, 1, bias=False)
    return [nn.ReLU(), depthwise, pointwise, nn.BatchNorm2d(channels, affine=affine)]


def _sep_conv(kernel: int) -> OpBuilder:
    """The separable convolution applied twice, the stride in the first."""
    return lambda channels, stride, affine: nn.Sequential(
        *_separable(channels, kernel, stride, 1, affine), *_separable(channels, kernel, 1, 1, affine)
    )


def _dil_conv(kernel: int) -> OpBuilder:
    return lambda channels, stride, affine: nn.Sequential(*_separable(channels, kernel, stride, 2, affine))


def _conv_7x1_1x7(channels: int, stride: int, affine: bool) -> nn.Module:
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(channels, channels, (1, 7), (1, stride), (0, 3), bias=False),
        nn.Conv2d(channels, channels, (7, 1), (stride, 1), (3, 0), bias=False),
        nn.BatchNorm2d(channels, affine=affine),
    )


OPS: dict[str, OpBuilder] = {
    "none": lambda channels, stride, affine: Zeros(stride),
    "max_pool_3x3": lambda channels, stride, affine: nn.MaxPool2d(3, stride, 1),
    "avg_pool_3x3": lambda channels, stride, affine: nn.AvgPool2d(3, stride, 1, count_include_pad=False),
    "skip_connect": lambda channels, stride, affine: (
        nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine)
    ),
    "sep_conv_3x3": _sep_conv(3),
    "sep_conv_5x5": _sep_conv(5),
    "sep_conv_7x7": _sep_conv(7),
    "dil_conv_3x3": _dil_conv(3),
    "dil_conv_5x5": _dil_conv(5),
    "conv_7x1_1x7": _conv_7x1_1x7,
}


def candidate(name: str, channels: int, stride: int, more_ops: Mapping[str, OpBuilder] | None = None) -> nn.Module:
    """An op as the supernet has it: its BN without weights, a BN behind a pool.

    Args:
        more_ops: builders of ops that this file does not know, complete with the BN they want.
    """
    op = {**OPS, **(more_ops or {})}[name](channels, stride, False)
    pooled = name in ("max_pool_3x3", "avg_pool_3x3")
    return nn.Sequential(op, nn.BatchNorm2d(channels, affine=False)) if pooled else op


# What both networks are stacked from


class Cell(nn.Module):
    """Base of both cells: the 1x1 convolutions that bring two earlier cells to this one's width and size."""

    width: int  # channels of the output

    def __init__(self, older: int, newer: int, channels: int, reduction: bool, after_reduction: bool, affine: bool):
        super().__init__()
        self.reduction = reduction
        self.preprocess0 = (FactorizedReduce if after_reduction else relu_conv_bn)(older, channels, affine)
        self.preprocess1 = relu_conv_bn(newer, channels, affine)


def stem(in_channels: int, channels: int) -> nn.Module:
    """3x3 convolution to 3C, BN with weights."""
    norm = nn.BatchNorm2d(3 * channels)
    return nn.Sequential(nn.Conv2d(in_channels, 3 * channels, 3, padding=1, bias=False), norm)


class ImageNetStem(nn.Module):
    """Three 3x3 stride-2 convolutions with BN, ReLUs between them; the results of the last two go to the first cell."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.stem0 = nn.Sequential(
            *(nn.Conv2d(in_channels, channels // 2, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(channels // 2)),
            nn.ReLU(),
            *(nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(channels)),
        )
        self.stem1 = nn.Sequential(
            *(nn.ReLU(), nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(channels)),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        older = self.stem0(images)
        return older, self.stem1(older)


def make_stem(large: bool, in_channels: int, channels: int) -> nn.Module:
    """The stem for large images, or that for small ones."""
    return ImageNetStem(in_channels, channels) if large else stem(in_channels, channels)


def run_stem(module: nn.Module, images: Tensor) -> list[Tensor]:
    """The older and the newer input of the first cell."""
    maps = module(images)
    return list(maps) if isinstance(module, ImageNetStem) else [maps, maps]


def stack(
    channels: int, layers: int, make_cell: Callable[[int, int, int, bool, bool], Cell], large: bool = False
) -> nn.ModuleList:
    """Cells one on the other: width doubled and size halved at a third and two thirds of the depth.

    `large`: on the stem for large images, which counts as a reduction.
    """
    width = channels if large else 3 * channels
    cells, older, newer, after_reduction = nn.ModuleList(), width, width, large
    for layer in range(layers):
        reduction = layer in (layers // 3, 2 * layers // 3)
        channels = 2 * channels if reduction else channels
        cell = make_cell(older, newer, channels, reduction, after_reduction)
        cells.append(cell)
        older, newer, after_reduction = newer, cell.width, reduction
    return cells
