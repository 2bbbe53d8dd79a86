"""Mixed images: mixup averages two images of a batch, CutMix puts a box of one into the other.

Which images, with which shares and which box follows from (seed, epoch, batch) alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Mixed(NamedTuple):
    """The other images in a batch of mixed ones: their `labels` [N], and the `share` of the first ones (lambda)."""

    labels: Tensor
    share: float


@dataclass(frozen=True)
class Mixing:
    """Mixes the images of a batch with each other.

    Attributes:
        mixup: alpha of mixup, whose lambda is drawn from Beta(alpha, alpha) (Zhang et al., 2018); None: off.
        cutmix: alpha of CutMix, for the share of the image outside the box (Yun et al., 2019); None: off. With both,
            every batch has one of them, each as likely as the other.
        seed: of a stream of its own.
    """

    mixup: float | None
    cutmix: float | None
    seed: int

    def __call__(
        self, views: tuple[Tensor, ...], labels: Tensor, epoch: int, number: int
    ) -> tuple[tuple[Tensor, ...], Mixed]:
        """Mixed views [N, C, H, W] and what was mixed in, of batch `number`; the channels-last layout is kept.

        Every image gets another one of the batch, by a permutation that may leave some where they are.
        """
        draw = np.random.Generator(np.random.Philox(key=[self.seed, epoch], counter=[0, 0, number, 0]))
        partners = torch.from_numpy(draw.permutation(len(labels)))
        cut = self.mixup is None or (self.cutmix is not None and bool(draw.random() < 0.5))
        alpha = self.cutmix if cut else self.mixup
        assert alpha is not None, "one of them is on"
        share = float(draw.beta(alpha, alpha))
        if cut:
            box, share = draw_box(draw, share, *views[0].shape[2:])
            views = tuple(_paste(view, partners, box) for view in views)
        else:
            views = tuple(_average(view, partners, share) for view in views)
        return views, Mixed(labels[partners], share)


Box = tuple[slice, slice]


def draw_box(draw: np.random.Generator, share: float, height: int, width: int) -> tuple[Box, float]:
    """A box whose centre is anywhere and whose area is 1 - `share` of the image, less what lies outside.

    Returns:
        Its rows and columns, and the share of the image that is outside it, exactly.
    """
    sides = [int(side * np.sqrt(1 - share)) for side in (height, width)]
    spans = []
    for length, side in zip(sides, (height, width), strict=True):
        start = int(draw.integers(side)) - length // 2
        spans.append(slice(max(start, 0), min(start + length, side)))
    area = (spans[0].stop - spans[0].start) * (spans[1].stop - spans[1].start)
    return (spans[0], spans[1]), 1 - area / (height * width)


def _average(view: Tensor, partners: Tensor, share: float) -> Tensor:
    pixels = view.permute(0, 2, 3, 1)  # the order in memory
    return (share * pixels + (1 - share) * pixels[partners]).permute(0, 3, 1, 2)


def _paste(view: Tensor, partners: Tensor, box: Box) -> Tensor:
    pixels = view.permute(0, 2, 3, 1).clone()
    pixels[:, *box] = pixels[partners][:, *box]
    return pixels.permute(0, 3, 1, 2)
