"""ReLU, 1x1 convolutions and BN as one autograd function over the compiled kernels.

`Projection` computes `ReLUConvBN` and `FactorizedReduce`, which bring a map to a cell's width. The kernels apply the
ReLU as they read x, so the forward pass writes no map of x's width; it keeps x and the convolutions' result before BN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from registry.norm import BatchNorm
from registry.ops import FactorizedReduce, ReLUConvBN
from ssfnas_cli.native import cells
from ssfnas_cli.native.cells import CellKernels, ProjectionCall, Shape, address
from ssfnas_cli.nets.compiled.normalisation import can_run, eps_of, norms_for_kernels, run, sum_over_ranks


def with_kernels(module: nn.Module, kernels: CellKernels | None) -> Callable[[Tensor], Tensor]:
    """What computes the module: a `Projection` if there are kernels and they support it, else the module itself."""
    if kernels is not None and type(module) is ReLUConvBN:
        return Projection(kernels, module, [module[1]], module[2], stride=1)
    if kernels is not None and type(module) is FactorizedReduce:
        return Projection(kernels, module, [module.even, module.odd], module.norm, stride=2)
    return module


class Projection:
    """A projection, computed by the compiled kernels whenever they can.

    Args:
        module: computes the projection when the kernels cannot (on another device).
        convolutions: one or two; the second reads the pixels one below and to the right of those that the first reads.
        norm: the BN of the convolutions' concatenated results.
        stride: of the convolutions.
    """

    def __init__(self, kernels: CellKernels, module: nn.Module, convolutions: Any, norm: Any, stride: int):
        self.kernels, self.module, self.stride = kernels, module, stride
        self.convolutions: list[nn.Conv2d] = list(convolutions)
        self.norm: BatchNorm = norm
        self.eps = eps_of([norm])

    def __call__(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C, H/stride, W/stride], rounded up."""
        return project([(self, x)])[0] if self.can_run(x) else self.module(x)

    def can_run(self, x: Tensor) -> bool:
        """Whether the kernels can compute on x [N, C_in, H, W] now."""
        return can_run(self.kernels, [self.norm], x)

    def inputs(self, x: Tensor) -> list[Tensor]:
        """What a pass reads: x as a map, the BN's weight and bias (or None), the convolutions' weights."""
        weights = [convolution.weight for convolution in self.convolutions]
        return [self.kernels.as_map(x), self.norm.weight, self.norm.bias, *weights]


def project(several: Sequence[tuple[Projection, Tensor]]) -> Sequence[Tensor]:
    """Compute projections to maps of one size in one pass, which asks other ranks once for all of them.

    Args:
        several: each projection with its x, on which its kernels can run; all have the same kernels.
    """
    inputs = [projection.inputs(x) for projection, x in several]
    return _Projections.apply(
        [projection for projection, _ in several], *(tensor for each in inputs for tensor in each)
    )


class _Given(NamedTuple):
    """What is read of one projection."""

    projection: Projection
    x: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    weights: Sequence[Tensor]


def _parts(projections: Sequence[Projection], tensors: Sequence[Any]) -> Iterator[_Given]:
    """The tensors of each projection: as many as `Projection.inputs` gives."""
    begin = 0
    for projection in projections:
        end = begin + 3 + len(projection.convolutions)
        x, gamma, beta, *weights = tensors[begin:end]
        yield _Given(projection, x, gamma, beta, weights)
        begin = end


class _Projections(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projections: Sequence[Projection], *tensors: Tensor | None) -> Any:
        shapes, calls, outs = [], [], []
        kept: list[Tensor] = []
        for given in _parts(projections, tensors):
            shape, out_shape = _shapes(given)
            y = cells.new_maps(given.x.dtype, 1, *out_shape)
            statistics = torch.empty(2, out_shape[1], dtype=torch.float64)
            out = torch.empty(out_shape, dtype=given.x.dtype, memory_format=torch.channels_last)
            call = _call(given, y, statistics)
            call.norms = norms_for_kernels([given.projection.norm], given.projection.eps)
            call.beta, call.out = address(given.beta), out.data_ptr()
            shapes.append(shape)
            calls.append(call)
            outs.append(out)
            kept += [y, statistics]
        passes = projections[0].kernels.on(outs[0])
        run(passes.projections_forward, len(calls), cells.array(shapes), cells.array(calls))
        ctx.projections = projections
        ctx.save_for_backward(*tensors, *kept)
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        projections, num = ctx.projections, 2 * len(ctx.projections)
        tensors, kept = ctx.saved_tensors[:-num], ctx.saved_tensors[-num:]
        want_weights = any(ctx.needs_input_grad[4:])
        gs = [g.contiguous(memory_format=torch.channels_last) for g in gradients]
        shapes, calls, results = [], [], []
        for given, g, y, statistics in zip(_parts(projections, tensors), gs, kept[::2], kept[1::2], strict=True):
            call = _call(given, y, statistics)
            dx, products = torch.empty_like(given.x), torch.empty_like(statistics)
            d_weights = [torch.empty_like(weight) if want_weights else None for weight in given.weights]
            for tap, d_weight in enumerate(d_weights):
                call.job.d_weights[tap] = address(d_weight)
            call.job.dx, call.g = dx.data_ptr(), g.data_ptr()
            call.norms.sum = sum_over_ranks()
            call.d_beta, call.d_gamma = products[0].data_ptr(), products[1].data_ptr()
            shapes.append(_shapes(given)[0])
            calls.append(call)
            results.append((dx, given.gamma, products, d_weights))
        passes = projections[0].kernels.on(gs[0])
        run(passes.projections_backward, len(calls), cells.array(shapes), cells.array(calls))
        found: list[Tensor | None] = []
        for dx, gamma, products, d_weights in results:
            d_beta, d_gamma = (None, None) if gamma is None else products.to(gamma.dtype).unbind()
            found += [dx, d_gamma, d_beta, *d_weights]
        return None, *found


def _shapes(given: _Given) -> tuple[Shape, tuple[int, int, int, int]]:
    """The shape of x for the kernels, but with the output's channels, and the shape of the output."""
    num, _, height, width = given.x.shape
    channels, stride = sum(map(len, given.weights)), given.projection.stride
    out = num, channels, -(-height // stride), -(-width // stride)
    return Shape(num, height, width, channels, stride, torch.get_num_threads()), out


def _call(given: _Given, y: Tensor, statistics: Tensor) -> ProjectionCall:
    """The structure of a projection's part of a pass.

    Args:
        given: what is read.
        y: the convolutions' result before BN, [N, H, W, C].
        statistics: its mean and 1 / deviation, [2, C] in float64.
    """
    x, weights = given.x, given.weights
    job = cells.Projection(x.data_ptr(), x.shape[1], len(weights), len(weights[0]))
    for tap, weight in enumerate(weights):
        job.weights[tap] = weight.data_ptr()
    mean, inverse = statistics[0].data_ptr(), statistics[1].data_ptr()
    return ProjectionCall(job=job, gamma=address(given.gamma), y=y.data_ptr(), mean=mean, inverse=inverse)
