"""Heads: what stands between an encoder's pooled features and a loss.

A head's factory takes `(options, num_features, num_classes, class_counts)` and gives a module that maps features
[N, num_features] to what the loss reads. A loss names its default head; the setting `head` overrides it.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from torch import nn

from registry.core import HEADS, Options
from registry.norm import BatchNorm


@HEADS.register("linear")
def linear(options: Options, num_features: int, num_classes: int, class_counts: Sequence[int]) -> nn.Module:
    """A linear classifier: logits [N, num_classes]."""
    return nn.Linear(num_features, num_classes)


class ProjectorOptions(Options):
    """Options of `projector`."""

    width: int = Field(128, ge=2, description="width of its three layers")


@HEADS.register("projector", options=ProjectorOptions)
def projector(options: ProjectorOptions, num_features: int, num_classes: int, class_counts: Sequence[int]) -> nn.Module:
    """Barlow Twins's projector: Linear-BN-ReLU twice, then linear, without biases: [N, width]."""
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
