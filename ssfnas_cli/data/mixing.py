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
        """Mixed views [N, C, H, W] and what was mixed in, of batch `number`; the channels-last layout is kept."""
        height, width = views[0].shape[2:]
        plan = self.plan(len(labels), (height, width), epoch, number)
        mixed = tuple(plan.mix(view, rows_of(view, plan.partners)) for view in views)
        return mixed, Mixed(labels[plan.partners], plan.share)

    def plan(self, num: int, sides: tuple[int, int], epoch: int, number: int) -> MixingPlan:
        """How batch `number` is mixed, of `num` images with `sides` (height and width).

        Every image gets another one of the batch, by a permutation that may leave some where they are.
        """
        draw = np.random.Generator(np.random.Philox(key=[self.seed, epoch], counter=[0, 0, number, 0]))
        partners = draw.permutation(num)
        cut = self.mixup is None or (self.cutmix is not None and bool(draw.random() < 0.5))
        alpha = self.cutmix if cut else self.mixup
        assert alpha is not None, "one of them is on"
        share = float(draw.beta(alpha, alpha))
        if not cut:
            return MixingPlan(partners, share, None)
        box, share = draw_box(draw, share, *sides)
        return MixingPlan(partners, share, box)


Box = tuple[slice, slice]


class MixingPlan(NamedTuple):
    """The image that each one gets [N], by its place in the batch, the `share` of the first, and CutMix's box."""

    partners: np.ndarray
    share: float
    box: Box | None

    def mix(self, view: Tensor, others: Tensor) -> Tensor:
        """Mix images [n, C, H, W] with their partners."""
        return _average(view, others, self.share) if self.box is None else _paste(view, others, self.box)


def rows_of(view: Tensor, places: np.ndarray) -> Tensor:
    """Some images of a channels-last [N, C, H, W], in the same layout."""
    return view.permute(0, 2, 3, 1)[torch.from_numpy(places)].permute(0, 3, 1, 2)


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


def _average(view: Tensor, others: Tensor, share: float) -> Tensor:
    pixels, other_pixels = view.permute(0, 2, 3, 1), others.permute(0, 2, 3, 1)  # the order in memory
    return (share * pixels + (1 - share) * other_pixels).permute(0, 3, 1, 2)


def _paste(view: Tensor, others: Tensor, box: Box) -> Tensor:
    pixels = view.permute(0, 2, 3, 1).clone()
    pixels[:, *box] = others.permute(0, 2, 3, 1)[:, *box]
    return pixels.permute(0, 3, 1, 2)
