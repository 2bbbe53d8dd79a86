"""Separable convolutions with gradients of our own for CPUs, on which torch's are many times slower than necessary.

torch is slow at the gradients of dilated depthwise kernels, above all with stride 2, at the weight gradients of kernels
larger than 3x3, and at whatever writes maps that do not stay in the caches (benchmarks/search_step.py, cases `-torch`).
Therefore:

- A data gradient is a forward convolution of the output's gradient with the mirrored kernel. At stride 2, zeros are
  first put between the gradient's pixels.
- With dilation 2, every tap reads pixels of one parity only. On the grid of one parity the kernel has no dilation.
- A kxk kernel's weight gradient is assembled from those of 3x3 kernels, at which torch is fast.
- The depthwise result is not kept for the pointwise weights' gradient but computed again. Nothing is kept if no
  weight's gradient is wanted, as in an alpha step.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from registry.norm import BatchNorm, ToNormalise
from registry.stages import Stages, run_alone


class SeparableConvs(nn.Sequential):
    """ReLU, depthwise kxk convolution, pointwise convolution and BN, repeated for every kernel side k.

    It maps [N, C, H, W] to [N, C, H/stride, W/stride], rounded up (DARTS, section 3.1).

    Args:
        channels: C.
        kernels: the sides k, odd numbers.
        stride: of the first depthwise convolution; the others have stride 1.
        dilation: of all depthwise convolutions.
        affine: whether the BNs have weights.
    """

    def __init__(self, channels: int, kernels: tuple[int, ...], stride: int, dilation: int, affine: bool):
        parts: list[nn.Module] = []
        for number, kernel in enumerate(kernels):
            parts.append(nn.ReLU())
            parts.append(depthwise_conv(channels, kernel, 1 if number else stride, dilation))
            parts.append(nn.Conv2d(channels, channels, 1, bias=False))
            parts.append(BatchNorm(channels, affine=affine))
        super().__init__(*parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.after_relu(F.relu(x))

    def after_relu(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """The result for an x that has been through the first ReLU, times the number `weight` if it is given."""
        return run_alone(self.stages_after_relu(x, weight))

    def stages(self, x: Tensor) -> Stages:
        """See `registry.stages`."""
        return self.stages_after_relu(F.relu(x))

    def stages_after_relu(self, x: Tensor, weight: Tensor | None = None) -> Stages:
        """The stages of `after_relu`."""
        parts: Any = list(self)
        for begin in range(0, len(parts), 4):
            _, depthwise, pointwise, norm = parts[begin : begin + 4]
            x = separable(F.relu_(x) if begin else x, depthwise, pointwise)
            x = yield ToNormalise(norm, x, None if begin + 4 < len(parts) else weight)
        return x


def depthwise_conv(channels: int, kernel: int, stride: int, dilation: int) -> nn.Conv2d:
    """A depthwise kxk convolution without bias, padded so that a side is divided by the stride and rounded up."""
    padding = dilation * (kernel - 1) // 2
    return nn.Conv2d(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False)


def separable(x: Tensor, depthwise: nn.Conv2d, pointwise: nn.Conv2d) -> Tensor:
    """Compute pointwise(depthwise(x)), with our gradients on a CPU."""
    if x.is_cpu and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu"):
        return _SeparableFunction.apply(
            x, depthwise.weight, pointwise.weight, depthwise.stride[0], depthwise.dilation[0]
        )
    return pointwise(depthwise(x))


class _SeparableFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, depthwise: Tensor, pointwise: Tensor, stride: int, dilation: int) -> Tensor:
        want_weights = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        ctx.save_for_backward(x if want_weights else None, depthwise, pointwise)
        ctx.sides, ctx.stride, ctx.dilation = x.shape[2:], stride, dilation
        return F.conv2d(_convolve(x, depthwise, stride, dilation), pointwise)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (g,), (x, depthwise, pointwise) = gradients, ctx.saved_tensors
        dx = d_depthwise = d_pointwise = None
        middle = F.conv2d(g, pointwise.transpose(0, 1))
        if ctx.needs_input_grad[0]:
            dx = data_gradient(middle, ctx.sides, depthwise, ctx.stride, ctx.dilation)
        if x is not None:
            d_depthwise = weight_gradient(middle, x, depthwise, ctx.stride, ctx.dilation)
            again = _convolve(x, depthwise, ctx.stride, ctx.dilation)
            d_pointwise = _torch_weight_gradient(g, again, pointwise)
        return dx, d_depthwise, d_pointwise, None, None


def _convolve(x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    return F.conv2d(x, weight, None, stride, _padding(weight, dilation), dilation, len(weight))


def data_gradient(g: Tensor, sides: torch.Size, weight: Tensor, stride: int, dilation: int) -> Tensor:
    """A depthwise convolution's gradient with respect to its input x.

    Args:
        g: the gradient with respect to its result, [N, C, H/stride, W/stride].
        sides: H and W.
        weight: [C, 1, k, k].
        stride: 1 or 2.
        dilation: of the kernel.

    Returns:
        [N, C, H, W].
    """
    if stride > 1:
        apart = g.new_zeros(g.shape[0], *sides, g.shape[1]).permute(0, 3, 1, 2)
        apart[:, :, ::stride, ::stride] = g
        g = apart
    return _convolve(g, weight.flip(2, 3), 1, dilation)


def weight_gradient(g: Tensor, x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    """A depthwise convolution's gradient with respect to its weight, [C, 1, k, k]; see `data_gradient`."""
    kernel, padding = weight.shape[2], _padding(weight, dilation)
    if dilation > 2 or stride > 2 or (dilation == 1 and (kernel == 3 or stride == 2)):
        return _torch_weight_gradient(g, x, weight, stride, padding, dilation, groups=len(weight))
    if dilation == 1:
        return _from_3x3_kernels(g, F.pad(x, (padding,) * 4), kernel)
    if stride == 2:  # with dilation 2, all taps of all outputs read even pixels
        return _from_3x3_kernels(g, F.pad(x, (padding,) * 4)[:, :, ::2, ::2], kernel)
    down, right = (side % 2 for side in x.shape[2:])
    g = F.pad(g, (0, right, 0, down))
    x = F.pad(x, (padding, padding + right, padding, padding + down))
    return _from_3x3_kernels(_by_parity(g), _by_parity(x), kernel)


def _by_parity(x: Tensor) -> Tensor:
    """Split maps [N, C, H, W] with even sides into the four grids of one parity, [4N, C, H/2, W/2]."""
    num, channels, height, width = x.shape
    grids = x.permute(0, 2, 3, 1).reshape(num, height // 2, 2, width // 2, 2, channels).permute(2, 4, 0, 1, 3, 5)
    return grids.reshape(4 * num, height // 2, width // 2, channels).permute(0, 3, 1, 2)


def _from_3x3_kernels(g: Tensor, x: Tensor, kernel: int) -> Tensor:
    """The weight gradient at stride and dilation 1, from 3x3 kernels that cover the kxk one; x includes its border."""
    dw = g.new_empty(g.shape[1], 1, kernel, kernel)
    part = g.new_empty(g.shape[1], 1, 3, 3)
    height, width = g.shape[2] + 2, g.shape[3] + 2
    for a in range(0, kernel - 2, 2):
        for b in range(0, kernel - 2, 2):
            under = x[:, :, a : a + height, b : b + width].contiguous(memory_format=torch.channels_last)
            dw[:, :, a : a + 3, b : b + 3] = _torch_weight_gradient(g, under, part, groups=len(part))
    return dw


def _torch_weight_gradient(
    g: Tensor, x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1
) -> Tensor:
    """The weight gradient as torch computes it."""
    plain = ([stride] * 2, [padding] * 2, [dilation] * 2, False, [0, 0], groups)
    return torch.ops.aten.convolution_backward(g, x, weight, None, *plain, [False, True, False])[1]


def _padding(weight: Tensor, dilation: int) -> int:
    return dilation * (weight.shape[2] - 1) // 2
