"""Losses that weigh images: by the size of their class, by how hard they are, or by both.

A weighted loss is the sum of w_y * loss over the batch, divided by the number of images N, with class weights that add
up to the number of classes C. Torch's own weighted mean divides by the weights in the batch instead; such means do not
average over ranks. With equal counts every class weight is 1.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from registry import collective
from registry.balance import Deferred, Weighting, class_weights, is_deferred
from registry.core import LOSSES
from registry.gpu import placed_like
from registry.losses import Objective, Smoothed


class Weighted(Deferred):
    """Options of a loss that can have class weights beside what it does itself."""

    weights: Weighting = Field("none", description="class weights: none, inverse_frequency or class_balanced")
    beta: float = Field(0.9999, ge=0, lt=1, description="of class_balanced: 0 weighs alike, near 1 by inverse size")


class Reweighted(Objective):
    """Base of the losses with class weights, which may be deferred. Subclasses give the loss of every image."""

    weighting: Weighting | None = None  # a loss whose weights are what it is; None: its options say

    @abc.abstractmethod
    def image_losses(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The loss of every image [N] from class scores [N, C] and labels [N]."""

    def loss(self, outputs: Sequence[Tensor], labels: Tensor | None, progress: float = 1.0) -> Tensor:
        assert labels is not None, "a supervised objective needs labels"
        losses = self.image_losses(outputs[0], labels)
        options = self.options
        assert isinstance(options, Deferred), "re-weighting losses can be deferred"
        if is_deferred(options, progress):
            return losses.mean()
        weighting: Any = self.weighting or getattr(options, "weights", "none")
        weights = class_weights(weighting, self.class_counts, getattr(options, "beta", 0.0))
        return (placed_like(weights, losses)[labels] * losses).mean()


class SmoothedDeferred(Deferred, Smoothed):
    """Options of a re-weighted cross-entropy. The class weight multiplies the whole loss of an image, smoothed or not.

    So the smoothing stays even where the classes have become alike: the best scores are those of w_c * p(c) / sum,
    smoothed.
    """


class _WeightedCrossEntropy(Reweighted):
    options: SmoothedDeferred

    def image_losses(self, scores: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(scores, labels, reduction="none", label_smoothing=self.options.label_smoothing)


@LOSSES.register("inverse_frequency", options=SmoothedDeferred)
class InverseFrequency(_WeightedCrossEntropy):
    """Cross-entropy, each class weighed by the inverse of its number of images."""

    weighting = "inverse_frequency"


class ClassBalancedOptions(SmoothedDeferred):
    """Options of `class_balanced`."""

    beta: float = Field(0.9999, ge=0, lt=1, description="0: plain cross-entropy; towards 1: inverse_frequency")


@LOSSES.register("class_balanced", options=ClassBalancedOptions)
class ClassBalanced(_WeightedCrossEntropy):
    """Cross-entropy, each class weighed by the inverse of its effective number of images (Cui et al., 2019)."""

    weighting = "class_balanced"


class FocalOptions(Weighted):
    """Options of `focal`."""

    gamma: float = Field(2.0, ge=0, description="how much less easy images count; 0: cross-entropy")

    LACKS: ClassVar = {"label_smoothing": "its factor is of the label's probability, which smoothing keeps away from 1"}


@LOSSES.register("focal", options=FocalOptions)
class Focal(Reweighted):
    """Focal loss: (1 - p)^gamma times cross-entropy, p the label's probability (Lin et al., 2017).

    p is that of the softmax, before any class weight.
    """

    options: FocalOptions

    def image_losses(self, scores: Tensor, labels: Tensor) -> Tensor:
        cross_entropy = F.cross_entropy(scores, labels, reduction="none")
        wrong = -torch.expm1(-cross_entropy)  # 1 - p, exact also where p is close to 1
        smallest = torch.finfo(wrong.dtype).tiny  # the power of 0 has no finite gradient if gamma < 1
        return wrong.clamp(min=smallest).pow(self.options.gamma) * cross_entropy


class GHMOptions(Deferred):
    """Options of `ghm`."""

    bins: int = Field(30, ge=1, le=10_000, description="equal bins of the gradient's norm between 0 and 1")

    LACKS: ClassVar = {"label_smoothing": "its bins are of the distance from a target of 0 or 1"}


@LOSSES.register("ghm", options=GHMOptions)
class GradientHarmonising(Objective):
    """GHM-C: a sigmoid cross-entropy per class, each term weighed by the inverse density of its gradient.

    With g = |sigmoid(z) - target| of every score, a term's weight is N / GD(g). N is the number of terms and GD(g) the
    number of terms in the bin of g, divided by the bin's width (Li, Liu and Wang, 2019, Eq. 7 to 10). The density is
    that of the global batch alone. The loss is the mean over all terms. While it is deferred all weights are 1.
    """

    options: GHMOptions

    def loss(self, outputs: Sequence[Tensor], labels: Tensor | None, progress: float = 1.0) -> Tensor:
        assert labels is not None, "a supervised objective needs labels"
        scores = outputs[0]
        targets = F.one_hot(labels, scores.shape[1]).to(scores.dtype)
        weights = None if is_deferred(self.options, progress) else self._weights(scores.detach(), targets)
        return F.binary_cross_entropy_with_logits(scores, targets, weights)

    def _weights(self, scores: Tensor, targets: Tensor) -> Tensor:
        num_bins = self.options.bins
        norms = (scores.sigmoid() - targets).abs()
        bins = (norms * num_bins).long().clamp(max=num_bins - 1)  # a norm of 1 belongs to the last bin
        counts = bins.new_zeros(num_bins).scatter_add_(0, bins.flatten(), torch.ones_like(bins.flatten()))
        collective.sum_in_place([counts])
        num_terms = collective.global_count(norms) * norms.shape[1]
        return num_terms / (counts * num_bins)[bins].to(norms.dtype)
