"""The parts that the supernet and every derived network share: a stem, a stack of cells, global average pooling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from registry.norm import BatchNorm
from registry.ops import FactorizedReduce, ReLUConvBN
from ssfnas_cli.native.cells import CellKernels
from ssfnas_cli.nets.compiled.projection import with_kernels

STEM_MULTIPLIER = 3


class CellSpec(NamedTuple):
    """A cell's place in the stack: its inputs' widths, its own, and whether it or the cell before is a reduction."""

    prev_prev_channels: int
    prev_channels: int
    channels: int
    reduction: bool
    reduction_prev: bool


def reduction_layers(layers: int) -> tuple[int, int]:
    """The positions of the two reduction cells, at a third and two thirds of the depth."""
    return layers // 3, 2 * layers // 3


class Stem(nn.Sequential):
    """3x3 convolution to three times the cells' width, and BN: [N, in, H, W] -> [N, 3*channels, H, W]."""

    def __init__(self, in_channels: int, channels: int):
        width = STEM_MULTIPLIER * channels
        super().__init__(nn.Conv2d(in_channels, width, 3, padding=1, bias=False), BatchNorm(width))

    def forward(self, images: Tensor) -> Tensor:
        x = self[0](images)
        if not (x.is_cpu and x.is_contiguous(memory_format=torch.channels_last)):
            return self[1](x)
        # torch sums channels-last maps pixel by pixel, which loses digits; the other layout keeps them.
        return self[1](x.contiguous()).contiguous(memory_format=torch.channels_last)


def build_cells(layers: int, channels: int, make_cell: Callable[[CellSpec], AnyCell]) -> list[AnyCell]:
    """Build the stack of cells; the width doubles at each reduction."""
    cells: list[AnyCell] = []
    prev_prev = prev = STEM_MULTIPLIER * channels
    reduction_prev = False
    for layer in range(layers):
        reduction = layer in reduction_layers(layers)
        channels = channels * 2 if reduction else channels
        cell = make_cell(CellSpec(prev_prev, prev, channels, reduction, reduction_prev))
        cells.append(cell)
        prev_prev, prev, reduction_prev = prev, cell.out_channels, reduction
    return cells


class AnyCell(nn.Module):
    """The attributes that the stack reads of a cell: its output's width and whether it is a reduction cell."""

    out_channels: int
    reduction: bool


class CellInputs(nn.Module):
    """Bring the outputs of the two cells before to this cell's width, and the older one to this cell's size."""

    def __init__(self, spec: CellSpec, affine: bool):
        super().__init__()
        older = FactorizedReduce if spec.reduction_prev else ReLUConvBN
        self.preprocess0 = older(spec.prev_prev_channels, spec.channels, affine)
        self.preprocess1 = ReLUConvBN(spec.prev_channels, spec.channels, affine)
        self.compile_with(None)

    def compile_with(self, kernels: CellKernels | None) -> None:
        """Have the compiled kernels compute the projections; None: torch computes them."""
        self.run = [with_kernels(module, kernels) for module in (self.preprocess0, self.preprocess1)]

    def forward(self, older: Tensor, newer: Tensor) -> tuple[Tensor, Tensor]:
        return self.run[0](older), self.run[1](newer)


def concatenate(nodes: Sequence[Tensor]) -> Tensor:
    """A cell's output from its nodes' maps [N, C, H, W]."""
    return torch.cat([_DenseGradient.apply(node) for node in nodes], dim=1)


class _DenseGradient(torch.autograd.Function):
    """The identity. Its gradient, a slice of the concatenation's, is copied: batch normalisation is slow on slices."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0].contiguous(memory_format=torch.channels_last)


def pool(features: Tensor) -> Tensor:
    """Global average: [N, C, H, W] -> [N, C]."""
    return features.mean(dim=(2, 3))
