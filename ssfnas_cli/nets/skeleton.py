"""The parts that the supernet and every derived network share: a stack of cells and global average pooling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from registry.ops import FactorizedReduce, ReLUConvBN
from registry.stages import run_together, stages_of, waits_for_ranks
from ssfnas_cli.native.cells import CellKernels
from ssfnas_cli.nets.compiled.projection import Projection, project, with_kernels
from ssfnas_cli.nets.stems import Stem


class CellSpec(NamedTuple):
    """A cell's place in the stack: its inputs' widths, its own, and whether it or what comes before it is a reduction.

    If it comes after a reduction, be that a cell or the stem, its older input has twice the side of the newer one.
    """

    prev_prev_channels: int
    prev_channels: int
    channels: int
    reduction: bool
    reduction_prev: bool


def reduction_layers(layers: int) -> tuple[int, int]:
    """The positions of the two reduction cells, at a third and two thirds of the depth."""
    return layers // 3, 2 * layers // 3


def build_cells(stem: Stem, layers: int, channels: int, make_cell: Callable[[CellSpec], AnyCell]) -> list[AnyCell]:
    """Build the stack of cells on a stem; the width doubles at each reduction."""
    cells: list[AnyCell] = []
    prev_prev = prev = stem.out_channels
    reduction_prev = stem.reduces
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
        if len(given := self._for_kernels(older, newer)) == 2:
            second, first = project(given)
            return first, second
        if waits_for_ranks(self):
            both = (self.preprocess0, older), (self.preprocess1, newer)
            first, second = run_together([stages_of(module, x) for module, x in both])
            return first, second
        return self.run[0](older), self.run[1](newer)

    def _for_kernels(self, older: Tensor, newer: Tensor) -> list[tuple[Projection, Tensor]]:
        """The projections that the kernels can compute, with their maps.

        The newer map comes first: if both are the same, its gradients are added up in the order of two passes.
        """
        both = zip(self.run[::-1], (newer, older), strict=True)
        return [(run, x) for run, x in both if isinstance(run, Projection) and run.can_run(x)]


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
    """Global average: [N, C, H, W] -> [N, C], of maps of bf16 in float32."""
    return features.mean(dim=(2, 3), dtype=torch.float32 if features.dtype == torch.bfloat16 else None)
