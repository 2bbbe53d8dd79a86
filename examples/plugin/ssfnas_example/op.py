"""`blur_conv_3x3`: a convolution that is blurred before it is sampled.

    ssfnas search --set ops=none,skip_connect,sep_conv_3x3,blur_conv_3x3 --set op_options.blur_conv_3x3.sigma=0.8

Zhang, 2019, "Making convolutional networks shift-invariant again": a strided convolution aliases, so convolve at
full size, then blur, then keep every second pixel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from registry import OPS, Options
from registry.norm import BatchNorm


class BlurConvOptions(Options):
    """Options of `blur_conv_3x3`."""

    sigma: float = Field(1.0, gt=0, le=10, description="standard deviation of the Gaussian, in pixels")


class Blur(nn.Module):
    """A fixed 3x3 Gaussian, channel by channel: [N, C, H, W] -> [N, C, ceil(H/stride), ceil(W/stride)]."""

    kernel: Tensor

    def __init__(self, channels: int, stride: int, sigma: float):
        super().__init__()
        self.stride = stride
        line = torch.exp(-torch.tensor([-1.0, 0.0, 1.0]).square() / (2 * sigma**2))
        kernel = torch.outer(line, line)
        # not persistent: it follows from the options, so checkpoints need not hold it
        self.register_buffer("kernel", (kernel / kernel.sum()).repeat(channels, 1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1), mode="replicate")  # zeros would darken the border
        return F.conv2d(x, self.kernel, stride=self.stride, groups=x.shape[1])


# An op's factory may be a function or a class. What it states of itself beyond the module goes into
# `facts=OpFacts(...)`; an op with weights and its own BN, like this one, has nothing to state.
@OPS.register("blur_conv_3x3", options=BlurConvOptions)
def blur_conv_3x3(channels: int, stride: int, affine: bool, options: BlurConvOptions) -> nn.Module:
    """Separable 3x3 convolution, blurred before it is sampled."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        Blur(channels, stride, options.sigma),
        BatchNorm(channels, affine=affine),
    )
