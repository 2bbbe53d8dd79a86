"""ReLU, 1x1 convolutions and BN as one autograd function over the compiled kernels.

`Projection` computes `ReLUConvBN` and `FactorizedReduce`, which bring a map to a cell's width. The kernels apply the
ReLU as they read x, so the forward pass writes no map of x's width; it keeps x and the convolutions' result before BN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from registry.norm import BatchNorm
from registry.ops import FactorizedReduce, ReLUConvBN
from ssfnas_cli.native import cells
from ssfnas_cli.native.cells import ITEM, TERM, UPSTREAM, CellKernels, Shape, structures
from ssfnas_cli.nets.compiled.normalisation import can_run, finish_statistics, statistics_gradient


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
        module: computes the projection when the kernels cannot (under autocast, on another device).
        convolutions: one or two; the second reads the pixels one below and to the right of those that the first reads.
        norm: the BN of the convolutions' concatenated results.
        stride: of the convolutions.
    """

    def __init__(self, kernels: CellKernels, module: nn.Module, convolutions: Any, norm: Any, stride: int):
        self.kernels, self.module, self.stride = kernels, module, stride
        self.convolutions: list[nn.Conv2d] = list(convolutions)
        self.norm: BatchNorm = norm

    def __call__(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C, H/stride, W/stride], rounded up."""
        if not can_run(self.kernels, [self.norm], x):
            return self.module(x)
        x = x.contiguous(memory_format=torch.channels_last)
        weights = [convolution.weight for convolution in self.convolutions]
        return _ProjectionFunction.apply(self, x, self.norm.weight, self.norm.bias, *weights)


class _ProjectionFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, projection: Projection, x: Tensor, gamma: Tensor | None, beta: Tensor | None, *weights: Tensor
    ) -> Tensor:
        work = _Pass(projection, x, gamma, weights)
        work.convolve()
        ctx.projection = projection
        ctx.save_for_backward(x, gamma, work.y, work.mean, work.inverse, *weights)
        return work.normalise(beta)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, gamma, y, mean, inverse, *weights = ctx.saved_tensors
        work = _Pass(ctx.projection, x, gamma, weights)
        work.set_result(y, mean, inverse)
        g = gradients[0].contiguous(memory_format=torch.channels_last)
        sums, dots = work.sums(g)
        dx, d_weights = work.backward(g, sums, dots, want_weights=any(ctx.needs_input_grad[4:]))
        d_gamma, d_beta = (None, None) if gamma is None else ((dots * inverse).to(x.dtype), sums.to(x.dtype))
        return None, dx, d_gamma, d_beta, *d_weights


class _Pass:
    """One pass of a projection, forward or backward.

    Attributes:
        y: the convolutions' result, [N, H, W, C].
        mean: of y over the batch, [C], float64.
        inverse: 1 / deviation of y, [C], float64.
    """

    y: Tensor
    mean: Tensor
    inverse: Tensor

    def __init__(self, projection: Projection, x: Tensor, gamma: Tensor | None, weights: Sequence[Tensor]):
        self.norm, self.kernels = projection.norm, projection.kernels
        self.x, self.gamma, self.weights = x, gamma, weights
        num, in_channels, height, width = x.shape
        channels, stride, threads = sum(map(len, weights)), projection.stride, torch.get_num_threads()
        self.shape = Shape(num, height, width, channels, stride, threads)
        self.out_shape = Shape(num, -(-height // stride), -(-width // stride), channels, 1, threads)
        self.num_pixels = num * self.out_shape.height * self.out_shape.width
        self.job = cells.Projection(x.data_ptr(), in_channels, len(weights), len(weights[0]))
        for tap, weight in enumerate(weights):
            self.job.weights[tap] = weight.data_ptr()

    def set_result(self, y: Tensor, mean: Tensor, inverse: Tensor) -> None:
        """Set the convolutions' result and its statistics."""
        self.y, self.mean, self.inverse = y, mean, inverse
        self.centre = mean.to(self.x.dtype)

    def convolve(self) -> None:
        """Compute y and its statistics."""
        shape = self.out_shape
        y = self.kernels.new_map(shape.num, shape.channels, shape.height, shape.width)
        mean, variance = self.x.new_empty(2, 1, shape.channels, dtype=torch.float64).unbind()
        item = structures(ITEM, 1)
        item["y"] = y.data_ptr()
        if self.norm.training:
            item["mean"], item["variance"] = mean.data_ptr(), variance.data_ptr()
        self.kernels.project_forward(self.shape, self.job, item)
        inverse = finish_statistics([self.norm], mean, variance, self.num_pixels, self.x.dtype)
        self.set_result(y, mean[0], inverse[0])

    def _term(self) -> np.ndarray:
        term = structures(TERM, 1)
        term["y"], term["centre"] = self.y.data_ptr(), self.centre.data_ptr()
        return term

    def normalise(self, beta: Tensor | None) -> Tensor:
        """Apply the BN to y: gamma * (y - mean) / deviation + beta, [N, C, H, W]."""
        shape, dtype = self.out_shape, self.x.dtype
        sides = (shape.num, shape.channels, shape.height, shape.width)
        out = torch.empty(sides, dtype=dtype, memory_format=torch.channels_last)
        scale = (self.inverse if self.gamma is None else self.inverse * self.gamma).to(dtype)
        term = self._term()
        term["scale"], term["shift"] = scale.data_ptr(), 0 if beta is None else beta.data_ptr()
        self.kernels.add_terms(shape, term, [out], [False])
        return out

    def sums(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """The sums over the batch [C] of g and of g * (y - mean), g being the gradient with respect to the result."""
        sums, dots = torch.empty_like(self.mean), torch.empty_like(self.mean)
        term = self._term()
        term["sum"], term["dot"] = sums.data_ptr(), dots.data_ptr()
        self.kernels.term_sums(self.out_shape, term, [g])
        return sums, dots

    def backward(self, g: Tensor, sums: Tensor, dots: Tensor, want_weights: bool) -> tuple[Tensor, list[Tensor | None]]:
        """The gradients with respect to x and, if wanted, the weights."""
        factor = torch.ones_like(self.inverse) if self.gamma is None else self.gamma.double()
        slope, offset = statistics_gradient(self.inverse, factor * sums, factor * dots, self.num_pixels)
        slope, offset, scale = torch.stack([slope, offset, factor * self.inverse]).to(self.x.dtype).unbind()
        item, upstream = structures(ITEM, 1), structures(UPSTREAM, 1)
        item["y"], item["centre"], item["num_upstream"] = self.y.data_ptr(), self.centre.data_ptr(), 1
        item["slope"], item["offset"] = slope.data_ptr(), offset.data_ptr()
        upstream["g"], upstream["scale"] = g.data_ptr(), scale.data_ptr()
        dx = torch.empty_like(self.x)
        self.job.dx = dx.data_ptr()
        d_weights = [torch.empty_like(weight) if want_weights else None for weight in self.weights]
        for tap, d_weight in enumerate(d_weights):
            self.job.d_weights[tap] = None if d_weight is None else d_weight.data_ptr()
        self.kernels.project_backward(self.shape, self.job, item, upstream)
        return dx, d_weights
