"""The candidate operations of an edge (DARTS, section 3; quark0/darts, cnn/operations.py).

An op's factory takes `(channels, stride, affine, options)` and returns a module that maps [N, C, H, W] to
[N, C, H/stride, W/stride], rounded up. `affine` says whether batch normalisation has weights. It has none in the
supernet, where they could undo the mixing weights, and has them in a derived network.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from registry.core import OPS, OpFacts, Options
from registry.norm import BatchNorm, ToNormalise
from registry.separable import SeparableConvs
from registry.stages import Stages, run_alone


class Zero(nn.Module):
    """Returns zeros of the strided shape."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


class FactorizedReduce(nn.Module):
    """Halves a map by two 1x1 convolutions of stride 2, the second shifted by one pixel, and concatenates the results.

    An odd side is padded by one row or column of zeros, so that both results have the same size, rounded up. If the
    number of output channels is odd, the first convolution makes the smaller half.

    The strided pixels are selected first and then convolved with stride 1. The result is the same, but a strided 1x1
    convolution of 3 to 15 channels corrupts memory in torch 2.14 on a CPU (uxlfoundation/oneDNN#6035).
    """

    def __init__(self, in_channels: int, out_channels: int, affine: bool):
        super().__init__()
        half = out_channels // 2
        self.even = nn.Conv2d(in_channels, half, 1, bias=False)
        self.odd = nn.Conv2d(in_channels, out_channels - half, 1, bias=False)
        self.norm = BatchNorm(out_channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, ceil(H/2), ceil(W/2)]."""
        return run_alone(self.stages(x))

    def stages(self, x: Tensor) -> Stages:
        """See `registry.stages`."""
        x = F.relu(x)
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        halves = torch.cat([self.even(x[:, :, ::2, ::2]), self.odd(x[:, :, 1::2, 1::2])], dim=1)
        return (yield ToNormalise(self.norm, halves))


class ReLUConvBN(nn.Sequential):
    """ReLU, 1x1 convolution and BN, which give a cell's input the width of the cell."""

    def __init__(self, in_channels: int, out_channels: int, affine: bool):
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            BatchNorm(out_channels, affine=affine),
        )


@OPS.register("none", facts=OpFacts(is_none=True, parameter_free=True))
def none(channels: int, stride: int, affine: bool, options: Options) -> nn.Module:
    """No connection; the result is zeros."""
    return Zero(stride)


@OPS.register("max_pool_3x3", facts=OpFacts(parameter_free=True, supernet_bn=True))
def max_pool_3x3(channels: int, stride: int, affine: bool, options: Options) -> nn.Module:
    """3x3 max pooling."""
    return nn.MaxPool2d(3, stride, padding=1)


@OPS.register("avg_pool_3x3", facts=OpFacts(parameter_free=True, supernet_bn=True))
def avg_pool_3x3(channels: int, stride: int, affine: bool, options: Options) -> nn.Module:
    """3x3 average pooling, which does not count the padding."""
    return nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)


@OPS.register("skip_connect", facts=OpFacts(parameter_free=True, drop_path_exempt=True))
def skip_connect(channels: int, stride: int, affine: bool, options: Options) -> nn.Module:
    """Identity, or a factorized reduction if the stride is 2."""
    return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine)


@OPS.register("sep_conv_3x3")
def sep_conv_3x3(channels: int, stride: int, affine: bool, options: Options) -> nn.Module:
    """Separable 3x3 convolution, applied twice."""
    return SeparableConvs(channels, (3, 3), stride, 1, affine)


@OPS.register("sep_conv_5x5")
def sep_conv_5x5(channels: int, stride: int, affine: bool, options: Options) -> nn.Module:
    """Separable 5x5 convolution, applied twice."""
    return SeparableConvs(channels, (5, 5), stride, 1, affine)


@OPS.register("sep_conv_7x7")
def sep_conv_7x7(channels: int, stride: int, affine: bool, options: Options) -> nn.Module:
    """Separable 7x7 convolution, applied twice."""
    return SeparableConvs(channels, (7, 7), stride, 1, affine)


@OPS.register("dil_conv_3x3")
def dil_conv_3x3(channels: int, stride: int, affine: bool, options: Options) -> nn.Module:
    """Separable 3x3 convolution with dilation 2."""
    return SeparableConvs(channels, (3,), stride, 2, affine)


@OPS.register("dil_conv_5x5")
def dil_conv_5x5(channels: int, stride: int, affine: bool, options: Options) -> nn.Module:
    """Separable 5x5 convolution with dilation 2."""
    return SeparableConvs(channels, (5,), stride, 2, affine)


@OPS.register("conv_7x1_1x7")
def conv_7x1_1x7(channels: int, stride: int, affine: bool, options: Options) -> nn.Module:
    """A full 1x7 convolution followed by a full 7x1 convolution."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(channels, channels, (1, 7), stride=(1, stride), padding=(0, 3), bias=False),
        nn.Conv2d(channels, channels, (7, 1), stride=(stride, 1), padding=(3, 0), bias=False),
        BatchNorm(channels, affine=affine),
    )
