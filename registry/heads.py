"""Heads: the modules between an encoder's pooled features and a loss.

A head's factory takes `(options, num_features, num_classes, class_counts)` and returns a module that maps features
[N, num_features] to the loss's input. A loss names its default head, which the setting `head` overrides.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from torch import nn

from registry.core import HEADS, Options
from registry.norm import BatchNorm


@HEADS.register("linear")
def linear(options: Options, num_features: int, num_classes: int, class_counts: Sequence[int]) -> nn.Module:
    """A linear classifier, which returns logits [N, num_classes]."""
    return nn.Linear(num_features, num_classes)


class ProjectorOptions(Options):
    """Options of `projector`."""

    width: int = Field(128, ge=2, description="width of its three layers")


@HEADS.register("projector", options=ProjectorOptions)
def projector(options: ProjectorOptions, num_features: int, num_classes: int, class_counts: Sequence[int]) -> nn.Module:
    """The projector of Barlow Twins: Linear-BN-ReLU twice and a linear layer, without biases. It returns [N, width]."""
    width = options.width
    return nn.Sequential(
        nn.Linear(num_features, width, bias=False),
        BatchNorm(width),
        nn.ReLU(),
        nn.Linear(width, width, bias=False),
        BatchNorm(width),
        nn.ReLU(),
        nn.Linear(width, width, bias=False),
    )
