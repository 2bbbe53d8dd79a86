"""Heads: the modules between an encoder's pooled features and a loss.

A head's factory takes `(options, num_features, num_classes, class_counts)` and returns a module that maps features
[N, num_features] to the loss's input. A loss names its default head, which the setting `head` overrides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from registry.core import HEADS, HeadFacts, Options, PluginError
from registry.norm import BatchNorm


@HEADS.register("linear")
def linear(options: Options, num_features: int, num_classes: int, class_counts: Sequence[int]) -> nn.Module:
    """A linear classifier, which returns logits [N, num_classes]."""
    return nn.Linear(num_features, num_classes)


class ScaledOptions(Options):
    """Options of the heads that give scaled cosines."""

    scale: float = Field(30.0, gt=0, description="s, which multiplies the cosines")


class CosineHead(nn.Module):
    """s * cos of the angles between features [N, F] and a learned vector for each class: [N, num_classes]."""

    def __init__(self, num_features: int, num_classes: int, scale: float):
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(num_classes, num_features))
        nn.init.normal_(self.weight)  # only the directions count

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * F.linear(F.normalize(features, dim=1), F.normalize(self.weight, dim=1))


@HEADS.register("cosine", options=ScaledOptions)
def cosine(options: ScaledOptions, num_features: int, num_classes: int, class_counts: Sequence[int]) -> nn.Module:
    """A classifier by angles: s * cos [N, num_classes], without bias. What `ldam` wants."""
    return CosineHead(num_features, num_classes, options.scale)


class SimplexHead(nn.Module):
    """s * cos of the angles between features [N, F] and the fixed vectors `weight` [num_classes, F] of unit length."""

    weight: Tensor

    def __init__(self, weight: Tensor, scale: float):
        super().__init__()
        self.scale = scale
        self.register_buffer("weight", weight)

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * F.linear(F.normalize(features, dim=1), self.weight)


@HEADS.register("etf", options=ScaledOptions)
def etf(options: ScaledOptions, num_features: int, num_classes: int, class_counts: Sequence[int]) -> nn.Module:
    """A fixed simplex classifier: any two class vectors at cosine -1/(C-1), and none of them is learned.

    Raises:
        PluginError: the features are too few for that many classes, or there is one class only.
    """
    if not 2 <= num_classes <= num_features:
        raise PluginError(
            f"head 'etf': needs at least 2 classes, and no more of them than features: {num_classes} classes, "
            f"{num_features} features: take a wider network, or another head"
        )
    return SimplexHead(simplex(num_features, num_classes), options.scale)


def simplex(num_features: int, num_classes: int) -> Tensor:
    """Vectors [C, F] at equal angles: sqrt(C/(C-1)) (I - 11^T/C) U^T, U a random [F, C] with orthonormal columns."""
    basis, _ = torch.linalg.qr(torch.randn(num_features, num_classes, dtype=torch.float64))
    centred = torch.eye(num_classes, dtype=torch.float64) - 1 / num_classes
    return (math.sqrt(num_classes / (num_classes - 1)) * centred @ basis.T).to(torch.get_default_dtype())


class ProjectorOptions(Options):
    """Options of `projector`."""

    width: int = Field(128, ge=2, description="width of its three layers")


def _hidden_layers(num_features: int, width: int) -> list[nn.Module]:
    """The two hidden layers of a projector."""
    return [
        nn.Linear(num_features, width, bias=False),
        BatchNorm(width),
        nn.ReLU(),
        nn.Linear(width, width, bias=False),
        BatchNorm(width),
        nn.ReLU(),
    ]


@HEADS.register("projector", options=ProjectorOptions, facts=HeadFacts(gives="projections"))
def projector(options: ProjectorOptions, num_features: int, num_classes: int, class_counts: Sequence[int]) -> nn.Module:
    """Barlow Twins's projector: Linear-BN-ReLU twice, then linear, without biases: [N, width]."""
    width = options.width
    return nn.Sequential(*_hidden_layers(num_features, width), nn.Linear(width, width, bias=False))


class PredictorOptions(Options):
    """Options of `predictor`."""

    width: int = Field(128, ge=2, description="width of the projector's three layers")
    hidden: int = Field(32, ge=1, description="width of the predictor's hidden layer; SimSiam: a quarter of the other")


class Predictor(nn.Module):
    """SimSiam's projector and predictor: features [N, F] -> (projections [N, width], predictions [N, width])."""

    def __init__(self, num_features: int, width: int, hidden: int):
        super().__init__()
        self.projector = nn.Sequential(
            *_hidden_layers(num_features, width), nn.Linear(width, width, bias=False), BatchNorm(width, affine=False)
        )
        self.predictor = nn.Sequential(
            nn.Linear(width, hidden, bias=False), BatchNorm(hidden), nn.ReLU(), nn.Linear(hidden, width)
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        projections = self.projector(features)
        return projections, self.predictor(projections)


@HEADS.register("predictor", options=PredictorOptions, facts=HeadFacts(gives="pairs"))
def predictor(options: PredictorOptions, num_features: int, num_classes: int, class_counts: Sequence[int]) -> nn.Module:
    """SimSiam's head: a projector that ends in BN, and a predictor with a narrow hidden layer."""
    return Predictor(num_features, options.width, options.hidden)
