"""Images side by side in the lanes of a vector, for maps that have fewer channels than a vector has lanes.

With partial channels (nets/partial.py) a map may have 4 channels where a vector has 16 lanes. Several images then lie
side by side, as if their channels were those of one image. Depthwise convolutions and pools treat each channel alone. A
pointwise convolution becomes one of blocks, one for each image. Batch normalisation takes together what the kernels
measured of a channel in each of these images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class SideBySide:
    """How many images lie side by side; nothing changes if it is 1.

    Args:
        images: how many; the batch divides by it.
        channels: of each of them.

    A tensor with a row for each map is [..., C] for one image, and [..., images * C] as the kernels see it.
    """

    def __init__(self, images: int, channels: int):
        self.images, self.channels = images, channels

    @classmethod
    def fitting(cls, x: Tensor, lanes: int) -> SideBySide:
        """As many images of a batch x [N, C, H, W] as have room in a vector."""
        num, channels = x.shape[:2]
        most = max(1, lanes // channels)
        return cls(max(images for images in range(1, most + 1) if num % images == 0), channels)

    # Maps

    def lay(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N / images, images * C, H, W], in the layout of channels last."""
        if self.images == 1:
            return x.contiguous(memory_format=torch.channels_last)
        pixels = x.permute(0, 2, 3, 1).unflatten(0, (-1, self.images)).permute(0, 2, 3, 1, 4)
        return pixels.flatten(-2).contiguous().permute(0, 3, 1, 2)

    def take(self, x: Tensor) -> Tensor:
        """The reverse of `lay`."""
        pixels = x.permute(0, 2, 3, 1).unflatten(-1, (self.images, -1)).permute(0, 3, 1, 2, 4)
        return pixels.flatten(0, 1).contiguous().permute(0, 3, 1, 2)

    # Weights of convolutions: depthwise [C, 1, K, K] and pointwise ones [C, C, 1, 1] in turn

    def weights(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Weights as the kernels need them: [images * C, 1, K, K] and [images * C, images * C, 1, 1]."""
        if self.images == 1:
            return list(weights)
        depthwise = _by_shape(weights[::2], lambda several: several.repeat(1, self.images, 1, 1, 1))
        return [
            weight for pair in zip(depthwise, _by_shape(weights[1::2], self._blocks), strict=True) for weight in pair
        ]

    def weight_gradients(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """The gradients with respect to weights, from those with respect to what the kernels were given."""
        if self.images == 1:
            return list(gradients)
        depthwise = _by_shape(gradients[::2], lambda several: several.unflatten(1, (self.images, -1)).sum(1))
        pointwise = _by_shape(gradients[1::2], lambda several: self._diagonal(several).sum(-1)[..., None, None])
        return [gradient for pair in zip(depthwise, pointwise, strict=True) for gradient in pair]

    def _blocks(self, several: Tensor) -> Tensor:
        """Pointwise weights [n, C, C, 1, 1], once for each image: no image's channels reach another's."""
        blocks = several.new_zeros(len(several), self.images * self.channels, self.images * self.channels, 1, 1)
        self._diagonal(blocks).copy_(several[..., 0, 0, None].expand(-1, -1, -1, self.images))
        return blocks

    def _diagonal(self, blocks: Tensor) -> Tensor:
        """The blocks on the diagonal of [n, images * C, images * C, 1, 1], as a view [n, C, C, images]."""
        shape = (self.images, self.channels)
        return blocks[..., 0, 0].unflatten(2, shape).unflatten(1, shape).diagonal(dim1=1, dim2=3)


def _by_shape(tensors: Sequence[Tensor], change: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Change tensors, those of one shape together as [n, ...]: there are many small ones."""
    places: dict[torch.Size, list[int]] = {}
    for place, tensor in enumerate(tensors):
        places.setdefault(tensor.shape, []).append(place)
    changed = list(tensors)
    for of_one in places.values():
        for place, tensor in zip(of_one, change(torch.stack([tensors[place] for place in of_one])), strict=True):
            changed[place] = tensor
    return changed
