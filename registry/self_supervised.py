"""Self-supervised losses beside Barlow Twins: two views of an image, no labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from registry import collective
from registry.core import LOSSES, Options
from registry.losses import Objective


class VICRegOptions(Options):
    """Options of `vicreg`."""

    invariance: float = Field(25.0, ge=0, description="weight of the distance between the two views")
    variance: float = Field(25.0, ge=0, description="weight of the hinge that keeps each dimension's deviation at 1")
    covariance: float = Field(1.0, ge=0, description="weight of the covariances between dimensions")
    projector_dim: int = Field(128, ge=2, description="width of the projector's three layers")
    scale: float = Field(1.0, gt=0, description="factor on the whole loss")


@LOSSES.register("vicreg", options=VICRegOptions)
class VICReg(Objective):
    """VICReg: equal views, dimensions that vary, and no covariance between them (Bardes et al., 2022, Eq. 1 to 6)."""

    num_views = 2
    head = "projector"
    options: VICRegOptions

    def head_options(self) -> Mapping[str, Any]:
        return {"width": self.options.projector_dim}

    def loss(self, outputs: Sequence[Tensor], labels: Tensor | None, progress: float = 1.0) -> Tensor:
        first, second = outputs
        if collective.global_count(first) < 2:
            raise ValueError("VICReg takes variances over the batch and needs at least 2 images in it")
        options = self.options
        variance = (variance_hinge(first) + variance_hinge(second)) / 2
        covariance = covariance_penalty(first) + covariance_penalty(second)
        return options.scale * (
            options.invariance * F.mse_loss(first, second)
            + options.variance * variance
            + options.covariance * covariance
        )


def variance_hinge(projections: Tensor, eps: float = 1e-4) -> Tensor:
    """How far the deviations of the dimensions of [N, D], over N - 1, fall short of 1: a mean over the dimensions."""
    if collective.size() > 1:
        centred, num = _centred(projections)
        variances = collective.total(centred.square().sum(0)) / (num - 1)
    else:
        variances = projections.var(dim=0)
    return F.relu(1 - (variances + eps).sqrt()).mean()


def covariance_penalty(projections: Tensor) -> Tensor:
    """The sum of the squared covariances, over N - 1, between different dimensions of [N, D], divided by D."""
    centred, num = _centred(projections)
    covariance = collective.total(centred.T @ centred) / (num - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / projections.shape[1]


def _centred(projections: Tensor) -> tuple[Tensor, int]:
    """[N, D] less the mean over the global batch, and the number of its images."""
    num = collective.global_count(projections)
    if collective.size() > 1:
        return projections - collective.total(projections.sum(0)) / num, num
    return projections - projections.mean(dim=0), num


class SimSiamOptions(Options):
    """Options of `simsiam`."""

    projector_dim: int = Field(128, ge=2, description="width of the projector's three layers")
    predictor_dim: int = Field(32, ge=1, description="width of the predictor's hidden layer")
    scale: float = Field(1.0, gt=0, description="factor on the whole loss")


@LOSSES.register("simsiam", options=SimSiamOptions)
class SimSiam(Objective):
    """SimSiam: each view's prediction should point where the other's projection does (Chen and He, 2021, Eq. 4).

    No gradient goes through the projections that are predicted: without that all outputs would collapse into one. Its
    head gives a pair (projection, prediction) for every view.
    """

    num_views = 2
    head = "predictor"
    reads = "pairs"
    options: SimSiamOptions

    def head_options(self) -> Mapping[str, Any]:
        return {"width": self.options.projector_dim, "hidden": self.options.predictor_dim}

    def loss(self, outputs: Sequence[tuple[Tensor, Tensor]], labels: Tensor | None, progress: float = 1.0) -> Tensor:
        (first, predicted_first), (second, predicted_second) = outputs
        apart = negative_cosine(predicted_first, second.detach()) + negative_cosine(predicted_second, first.detach())
        return self.options.scale * apart / 2


def negative_cosine(first: Tensor, second: Tensor) -> Tensor:
    """Minus the mean cosine between the rows of two batches [N, D]."""
    return -F.cosine_similarity(first, second, dim=1).mean()
