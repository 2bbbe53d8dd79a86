"""Depthwise convolution with gradients of our own for CPUs, where some of the library's are many times too slow.

Those are the gradients of dilated kernels, worst of all with stride 2, and the weight gradient of kernels above 3x3;
together they took a third of a search step without compiled kernels (benchmarks/search_step.py, cases `-torch`). Here
they are made of what is fast, forward convolutions and the weight gradient of 3x3 kernels:

- A data gradient is a forward convolution of the output's gradient with the mirrored kernel; at stride 2 zeros are put
  between the gradient's pixels first.
- With dilation 2 every tap meets pixels of one parity only: on the grids of one parity the kernel is a plain one.
- A kxk kernel is covered by 3x3 ones.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DepthwiseConv(nn.Conv2d):
    """A depthwise kxk convolution (k odd) without bias that keeps the side (divided by the stride, rounded up)."""

    def __init__(self, channels: int, kernel: int, stride: int, dilation: int):
        padding = dilation * (kernel - 1) // 2
        super().__init__(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cpu and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu"):
            return _DepthwiseFunction.apply(x, self.weight, self.stride[0], self.dilation[0])
        return super().forward(x)


class _DepthwiseFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.dilation = stride, dilation
        return F.conv2d(x, weight, None, stride, _padding(weight, dilation), dilation, len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (g,), (x, weight) = gradients, ctx.saved_tensors
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = data_gradient(g, x, weight, ctx.stride, ctx.dilation)
        if ctx.needs_input_grad[1]:
            dw = weight_gradient(g, x, weight, ctx.stride, ctx.dilation)
        return dx, dw, None, None


def data_gradient(g: Tensor, x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    """Gradient by x [N, C, H, W], from that by the result, g [N, C, H/stride, W/stride], rounded up."""
    if stride > 1 and dilation == 1:
        return _library(g, x, weight, stride, dilation, [True, False, False])[0]
    if stride > 1:
        apart = torch.zeros_like(x)
        apart[:, :, ::stride, ::stride] = g
        g = apart
    return F.conv2d(g, weight.flip(2, 3), None, 1, _padding(weight, dilation), dilation, len(weight))


def weight_gradient(g: Tensor, x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    """Gradient by the weight [C, 1, k, k]; g and x as in `data_gradient`."""
    kernel = weight.shape[2]
    if dilation > 2 or stride > 2 or (dilation == 1 and (kernel == 3 or stride == 2)):
        return _library(g, x, weight, stride, dilation, [False, True, False])[1]
    padding = _padding(weight, dilation)
    if dilation == 1:
        return _of_plain_kernel(g, F.pad(x, (padding,) * 4), kernel)
    if stride == 2:  # every tap of every output: the even pixels
        return _of_plain_kernel(g, F.pad(x, (padding,) * 4)[:, :, ::2, ::2], kernel)
    down, right = (side % 2 for side in x.shape[2:])
    g = F.pad(g, (0, right, 0, down))
    x = F.pad(x, (padding, padding + right, padding, padding + down))
    return _of_plain_kernel(_by_parity(g), _by_parity(x), kernel)


def _by_parity(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [4N, C, H/2, W/2]: the grids of even and odd rows and columns; sides are even."""
    num, channels, height, width = x.shape
    grids = x.permute(0, 2, 3, 1).reshape(num, height // 2, 2, width // 2, 2, channels).permute(2, 4, 0, 1, 3, 5)
    return grids.reshape(4 * num, height // 2, width // 2, channels).permute(0, 3, 1, 2)


def _of_plain_kernel(g: Tensor, x: Tensor, kernel: int) -> Tensor:
    """The weight gradient at stride and dilation 1, x with its border: from 3x3 kernels that cover the kxk one."""
    dw = g.new_empty(g.shape[1], 1, kernel, kernel)
    part = g.new_empty(g.shape[1], 1, 3, 3)
    height, width = g.shape[2] + 2, g.shape[3] + 2
    for a in range(0, kernel - 2, 2):
        for b in range(0, kernel - 2, 2):
            under = x[:, :, a : a + height, b : b + width].contiguous(memory_format=torch.channels_last)
            dw[:, :, a : a + 3, b : b + 3] = _library(g, under, part, 1, 1, [False, True, False], padding=0)[1]
    return dw


def _library(
    g: Tensor, x: Tensor, weight: Tensor, stride: int, dilation: int, wanted: list[bool], padding: int | None = None
) -> Any:
    pad = _padding(weight, dilation) if padding is None else padding
    plain = ([stride] * 2, [pad] * 2, [dilation] * 2, False, [0, 0], len(weight))
    return torch.ops.aten.convolution_backward(g, x, weight, None, *plain, wanted)


def _padding(weight: Tensor, dilation: int) -> int:
    return dilation * (weight.shape[2] - 1) // 2
