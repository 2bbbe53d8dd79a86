"""`effective_number`: cross-entropy that weighs an image by how many others its class has.

    ssfnas search --loss effective_number --set loss.beta=0.999
    ssfnas retrain genotype.json --loss effective_number

Cui et al., 2019, "Class-balanced loss based on effective number of samples": n images of a class are worth
(1 - beta^n) / (1 - beta), so each of them weighs the inverse of that.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from registry import LOSSES, Options
from registry.losses import Objective


class EffectiveNumberOptions(Options):
    """Options of `effective_number`."""

    beta: float = Field(0.9999, ge=0, lt=1, description="0: plain cross-entropy; towards 1: the inverse class size")


@LOSSES.register("effective_number", options=EffectiveNumberOptions)
class EffectiveNumber(Objective):
    """Cross-entropy, each class weighed by the inverse of its effective number of images."""

    # num_views = 1 (labels) and head = "classifier" are an Objective's defaults. With num_views = 2 and a
    # "projector" the loss is self-supervised: two outputs, no labels, and `retrain --pretrain` takes it.

    options: EffectiveNumberOptions

    def __init__(self, options: EffectiveNumberOptions, num_classes: int, class_counts: Sequence[int]):
        """`class_counts` are those of the split this objective trains on: in a search, of one half."""
        super().__init__(options, num_classes, class_counts)
        weights = [(1 - options.beta) / (1 - options.beta ** max(1, count)) for count in class_counts]
        self.class_weights = [weight * num_classes / sum(weights) for weight in weights]  # they add up to num_classes

    def loss(self, outputs: Sequence[Tensor], labels: Tensor | None) -> Tensor:
        assert labels is not None, "a supervised objective needs labels"
        weights = outputs[0].new_tensor(self.class_weights)[labels]
        return (weights * F.cross_entropy(outputs[0], labels, reduction="none")).mean()
