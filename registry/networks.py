"""Hand-designed networks, to compare with a derived network that is trained with the same budget.

A network's factory takes `(options, in_channels, image_size)` and returns an `Encoder`, which maps images [N, C, H, W]
to `Encoded`. The image size is the side of the images in pixels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from registry.core import NETWORKS, Options
from registry.norm import BatchNorm


class Encoded(NamedTuple):
    """Pooled features [N, F], and the map [N, C, H, W] that an auxiliary head takes, or None if there is none."""

    features: Tensor
    aux_map: Tensor | None


class Encoder(nn.Module):
    """Base class of encoders, with what the training calls.

    Attributes:
        num_features: number of pooled features.
        aux_channels: channels of `aux_map`; 0 if the encoder has none.
    """

    num_features: int
    aux_channels: int = 0

    def set_progress(self, progress: float) -> None:
        """Receive the fraction of the training that is done, from 0 to 1, at the start of each epoch.

        An encoder without a schedule ignores it.
        """

    def compile_with(self, kernels: Any) -> None:
        """Let compiled kernels compute the ops that they support; None means torch. By default torch computes all."""

    def count_compiled(self) -> tuple[int, int]:
        """How many ops the compiled kernels compute, and how many ops there are; (0, 0) if they support none."""
        return 0, 0


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BN. The shortcut subsamples the map and pads the channels with zeros (option A)."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm1 = BatchNorm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = BatchNorm(channels)
        self.stride, self.added = stride, channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C, ceil(H/stride), ceil(W/stride)]."""
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.added:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))) + shortcut)


class CifarResNet(Encoder):
    """ResNet with 6n+2 layers for CIFAR (He et al., 2016, section 4.2): widths 16, 32 and 64, shortcuts of option A."""

    def __init__(self, in_channels: int, blocks_per_stage: int):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, 16, 3, padding=1, bias=False), BatchNorm(16), nn.ReLU())
        blocks: list[nn.Module] = []
        width = 16
        for stage, channels in enumerate((16, 32, 64)):
            for number in range(blocks_per_stage):
                blocks.append(ResidualBlock(width, channels, stride=2 if stage and not number else 1))
                width = channels
        self.blocks = nn.Sequential(*blocks)
        self.num_features = width
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Encoded:
        """[N, C, H, W] -> pooled features [N, 64]."""
        return Encoded(self.blocks(self.stem(images)).mean(dim=(2, 3)), None)


@NETWORKS.register("resnet20")
def resnet20(options: Options, in_channels: int, image_size: int) -> Encoder:
    """ResNet-20 for small images (He et al., 2016, section 4.2): 269,722 weights."""
    return CifarResNet(in_channels, blocks_per_stage=3)


@NETWORKS.register("resnet32")
def resnet32(options: Options, in_channels: int, image_size: int) -> Encoder:
    """ResNet-32 for small images, the standard network of the long-tailed CIFAR literature, with 464,154 weights."""
    return CifarResNet(in_channels, blocks_per_stage=5)


@NETWORKS.register("resnet56")
def resnet56(options: Options, in_channels: int, image_size: int) -> Encoder:
    """ResNet-56 for small images (He et al., 2016, section 4.2): 853,018 weights."""
    return CifarResNet(in_channels, blocks_per_stage=9)
