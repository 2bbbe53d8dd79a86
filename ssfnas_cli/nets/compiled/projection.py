"""ReLU, 1x1 convolutions and BN as one autograd function over the compiled kernels.

`Projection` computes `ReLUConvBN` and `FactorizedReduce`, which bring a map to a cell's width. The kernels apply the
ReLU as they read x, so the forward pass writes no map of x's width; it keeps x and the convolutions' result before BN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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
        if not can_run(self.kernels, [self.norm], x):
            return self.module(x)
        x = self.kernels.as_map(x)
        weights = [convolution.weight for convolution in self.convolutions]
        return _ProjectionFunction.apply(self, x, self.norm.weight, self.norm.bias, *weights)


class _ProjectionFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, projection: Projection, x: Tensor, gamma: Tensor | None, beta: Tensor | None, *weights: Tensor
    ) -> Tensor:
        shape, out_shape = _shapes(projection, x, weights)
        y = cells.new_maps(x.dtype, 1, *out_shape)
        statistics = torch.empty(2, out_shape[1], dtype=torch.float64)
        out = torch.empty(out_shape, dtype=x.dtype, memory_format=torch.channels_last)
        call = _call(x, gamma, y, statistics, weights)
        call.norms = norms_for_kernels([projection.norm], projection.eps)
        call.beta, call.out = address(beta), out.data_ptr()
        run(projection.kernels.on(x).projection_forward, shape, call)
        ctx.projection = projection
        ctx.save_for_backward(x, gamma, y, statistics, *weights)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, gamma, y, statistics, *weights = ctx.saved_tensors
        g = gradients[0].contiguous(memory_format=torch.channels_last)
        call = _call(x, gamma, y, statistics, weights)
        dx, products = torch.empty_like(x), torch.empty_like(statistics)
        d_weights = [torch.empty_like(weight) if any(ctx.needs_input_grad[4:]) else None for weight in weights]
        for tap, d_weight in enumerate(d_weights):
            call.job.d_weights[tap] = address(d_weight)
        call.job.dx, call.g = dx.data_ptr(), g.data_ptr()
        call.norms.sum = sum_over_ranks()
        call.d_beta, call.d_gamma = products[0].data_ptr(), products[1].data_ptr()
        run(ctx.projection.kernels.on(x).projection_backward, _shapes(ctx.projection, x, weights)[0], call)
        d_beta, d_gamma = (None, None) if gamma is None else products.to(gamma.dtype).unbind()
        return None, dx, d_gamma, d_beta, *d_weights


def _shapes(projection: Projection, x: Tensor, weights: Sequence[Tensor]) -> tuple[Shape, tuple[int, int, int, int]]:
    """The shape of x for the kernels, but with the output's channels, and the shape of the output."""
    num, _, height, width = x.shape
    channels, stride = sum(map(len, weights)), projection.stride
    out = num, channels, -(-height // stride), -(-width // stride)
    return Shape(num, height, width, channels, stride, torch.get_num_threads()), out


def _call(x: Tensor, gamma: Tensor | None, y: Tensor, statistics: Tensor, weights: Sequence[Tensor]) -> ProjectionCall:
    """The structure of a pass.

    Args:
        y: the convolutions' result before BN, [N, H, W, C].
        statistics: its mean and 1 / deviation, [2, C] in float64.
    """
    job = cells.Projection(x.data_ptr(), x.shape[1], len(weights), len(weights[0]))
    for tap, weight in enumerate(weights):
        job.weights[tap] = weight.data_ptr()
    mean, inverse = statistics[0].data_ptr(), statistics[1].data_ptr()
    return ProjectionCall(job=job, gamma=address(gamma), y=y.data_ptr(), mean=mean, inverse=inverse)
