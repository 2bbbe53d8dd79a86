"""The stems of supernets and derived networks: what makes the first cell's two inputs from the images.

The stem `cifar` keeps the side of the images. The stem `imagenet` divides it by 4 for the older input and by 8 for the
newer one, so the cells work on maps of 28 pixels when the images have 224.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from registry.norm import BatchNorm

StemName = Literal["cifar", "imagenet"]

# From this side on, `auto` means `imagenet`. At 96 pixels its cells begin with maps of 12 pixels and end with 3, while
# those of `cifar` would take nine times the time and memory that they take at 32 pixels.
IMAGENET_SIDE = 96


class CifarStem(nn.Sequential):
    """DARTS's stem for CIFAR: a 3x3 convolution to three times the cells' width, and BN.

    Attributes:
        out_channels: channels of both inputs of the first cell.
        reduces: whether the newer input has half the older one's side.
    """

    reduces = False

    def __init__(self, in_channels: int, channels: int):
        self.out_channels = 3 * channels
        super().__init__(
            nn.Conv2d(in_channels, self.out_channels, 3, padding=1, bias=False), BatchNorm(self.out_channels)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [N, in, H, W] -> the first cell's older and newer input, which are the same map [N, 3C, H, W]."""
        x = _normalise(self[1], self[0](images))
        return x, x


class ImageNetStem(nn.Module):
    """DARTS's stem for ImageNet (quark0/darts, model.py: NetworkImageNet).

    Three 3x3 convolutions with stride 2, to C/2, C and C channels, each followed by BN, and ReLUs between them. The
    attributes are those of `CifarStem`.
    """

    reduces = True

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.out_channels = channels
        widths = (in_channels, max(1, channels // 2), channels, channels)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False) for before, width in pairwise(widths)
        )
        self.norms = nn.ModuleList(BatchNorm(width) for width in widths[1:])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [N, in, H, W] -> the first cell's inputs [N, C, H/4, W/4] and [N, C, H/8, W/8].

        An odd side is rounded up each time that it is halved.
        """
        maps: list[Tensor] = []
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            maps.append(_normalise(norm, convolution(F.relu(maps[-1]) if maps else images)))
        return maps[1], maps[2]


Stem = CifarStem | ImageNetStem
STEMS: dict[StemName, type[CifarStem] | type[ImageNetStem]] = {"cifar": CifarStem, "imagenet": ImageNetStem}


def choose_stem(setting: Literal["auto"] | StemName, image_size: int) -> tuple[StemName, str]:
    """The stem that the setting `stem` means for images of this side in pixels, and why."""
    if setting != "auto":
        return setting, "the setting 'stem' says so"
    name: StemName = "imagenet" if image_size >= IMAGENET_SIDE else "cifar"
    return name, f"the images have {image_size} pixels, and auto is imagenet from {IMAGENET_SIDE} on"


def _normalise(norm: nn.Module, x: Tensor) -> Tensor:
    if not (norm.training and x.is_cpu and x.is_contiguous(memory_format=torch.channels_last)):
        return norm(x)
    # torch sums channels-last maps pixel by pixel, which loses digits; the other layout keeps them.
    return norm(x.contiguous()).contiguous(memory_format=torch.channels_last)
