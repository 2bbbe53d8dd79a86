"""Training objectives. An objective defines a loss, how many views of an image it needs, and its default head.

It is built with its options, the number of classes and the class counts of the images that it trains on. A supervised
objective receives one view and the labels; a self-supervised one receives two views and no labels.

This module defines the base class and the two losses of the paper. The modules `reweighting` and `margins` define the
losses for long-tailed data, `self_supervised` the other self-supervised ones.
"""

from __future__ import annotations

import abc
import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from registry import collective
from registry.balance import class_priors
from registry.core import HEADS, LOSSES, Options
from registry.global_norm import Affine, normalise_globally


class Objective(abc.ABC):
    """Base class of training objectives."""

    num_views: ClassVar[int] = 1  # 1: supervised; 2: self-supervised
    head: ClassVar[str] = "linear"  # the name of the default head; "classifier" is an old name of "linear"

    def __init__(self, options: Options, num_classes: int, class_counts: Sequence[int]):
        self.options = options
        self.num_classes = num_classes
        self.class_counts = list(class_counts)

    @property
    def supervised(self) -> bool:
        """Whether the loss uses labels. If so, the outputs of its head are class scores."""
        return self.num_views == 1

    @property
    def reads(self) -> str:
        """What its head has to give (see `HeadFacts`)."""
        return "scores" if self.supervised else "projections"

    def refuses_head(self, name: str, options: Mapping[str, Any]) -> str | None:
        """Why it cannot be computed on this head, which gives what it `reads`; None if it can."""
        return None

    def refuses_mixing(self) -> str | None:
        """Why it cannot be trained on mixed images, whose loss is lam * loss(y_a) + (1 - lam) * loss(y_b); else None.

        Any loss of labelled images can, unless it relates the images of a batch to each other.
        """
        return None

    def head_options(self) -> Mapping[str, Any]:
        """Options for the default head, derived from the options of this objective."""
        return {}

    @property
    def default_head(self) -> str:
        """The default head's name in the registry of heads."""
        return "linear" if self.head == "classifier" else self.head

    def build_head(self, num_features: int) -> nn.Module:
        """Build the default head, a module that maps pooled features [N, num_features] to the input of `loss`."""
        plugin = HEADS.get(self.default_head)
        return plugin.build(
            plugin.parse_options(self.head_options()), num_features, self.num_classes, self.class_counts
        )

    def held_prior(self) -> NDArray[np.float64] | None:
        """The class prior [C] under which the softmax of trained outputs is the posterior; None if it is not known.

        It is that of a training which shows every image equally often. Cross-entropy is minimised by the posterior
        under the class shares of its images, so it holds those. A correction of a finished network starts from here.
        """
        return None

    @abc.abstractmethod
    def loss(self, outputs: Sequence[Any], labels: Tensor | None, progress: float = 1.0) -> Tensor:
        """Compute the loss, a scalar, from the head's outputs.

        Args:
            outputs: one [N, D] per view, in float32. If the head returns a tuple, there is one tuple per view.
            labels: [N] if the objective is supervised, else None.
            progress: the fraction of the training that is done, from 0 to 1. A loss that does not need it may omit it
                from its signature.
        """

    def __call__(self, outputs: Sequence[Any], labels: Tensor | None, progress: float) -> Tensor:
        """Compute `loss` in float32, whatever the precision of the outputs. Labels reach supervised objectives only."""
        labels = labels if self.supervised else None
        outputs = [_to_float32(output) for output in outputs]
        optional = {"progress": progress} if _takes_progress(type(self)) else {}
        with torch.autocast(_device_type(outputs[0]), enabled=False):  # sums and correlations are too coarse in bf16
            return self.loss(outputs, labels, **optional)


@functools.cache
def _takes_progress(objective: type[Objective]) -> bool:
    parameters = inspect.signature(objective.loss).parameters
    return "progress" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _to_float32(output: Any) -> Any:
    """Convert a head's output, or each part of a tuple, to float32. Tests use float64, which is kept."""
    if isinstance(output, tuple):
        return tuple(_to_float32(part) for part in output)
    return output if output.dtype == torch.float64 else output.float()


def _device_type(output: Any) -> str:
    return (output[0] if isinstance(output, tuple) else output).device.type


class Smoothed(Options):
    """Options of a cross-entropy whose targets can be smoothed."""

    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target that is spread over all classes")


@LOSSES.register("ce", options=Smoothed)
class CrossEntropy(Objective):
    """Cross-entropy of the class scores."""

    options: Smoothed

    def held_prior(self) -> NDArray[np.float64] | None:
        """The class shares. Smoothed targets are minimised by a mixture with them, which holds no prior."""
        return None if self.options.label_smoothing else class_priors(self.class_counts)

    def loss(self, outputs: Sequence[Tensor], labels: Tensor | None, progress: float = 1.0) -> Tensor:
        assert labels is not None, "a supervised objective needs labels"
        return F.cross_entropy(outputs[0], labels, label_smoothing=self.options.label_smoothing)


class BarlowOptions(Options):
    """Options of `barlow`."""

    lambda_: float = Field(0.0051, alias="lambda", ge=0, description="weight of the off-diagonal terms (Eq. 8)")
    projector_dim: int = Field(
        128, ge=2, description="width of the projector's three layers; 128 to 256 suits a batch of 64"
    )
    centred: bool = Field(
        True,
        description="standardise each dimension over the batch first, as Barlow Twins's code does; false: Eq. 9",
    )
    scale: float = Field(1.0, gt=0, description="factor that multiplies the loss")


@LOSSES.register("barlow", options=BarlowOptions)
class BarlowTwins(Objective):
    """Barlow Twins: the cross-correlation of two views' projections should be the identity (Eq. 8 and 9)."""

    num_views = 2
    head = "projector"
    options: BarlowOptions

    def head_options(self) -> Mapping[str, Any]:
        return {"width": self.options.projector_dim}

    def loss(self, outputs: Sequence[Tensor], labels: Tensor | None, progress: float = 1.0) -> Tensor:
        first, second = outputs
        correlation = cross_correlation(first, second, self.options.centred)
        diagonal = torch.diagonal(correlation)
        on_diagonal = (diagonal - 1).square().sum()
        off_diagonal = correlation.square().sum() - diagonal.square().sum()
        return self.options.scale * (on_diagonal + self.options.lambda_ * off_diagonal)


def cross_correlation(first: Tensor, second: Tensor, centred: bool, eps: float = 1e-5) -> Tensor:
    """Cross-correlation matrix [D, D] of two batches of projections [N, D].

    Args:
        centred: True standardises each dimension over the batch (with the biased variance) and divides by N, as Barlow
            Twins's code does. False computes the uncentred cosine over the batch, as the paper's Eq. 9 is written.
        eps: is added to the variances.

    Raises:
        ValueError: there are fewer than two samples, so that no correlation is defined.
    """
    num_samples = collective.global_count(first)
    if num_samples < 2:
        raise ValueError("Barlow Twins correlates over the batch and needs at least 2 images in it")
    if centred:
        first, second = standardise(first, second, eps)
        return collective.total(first.T @ second) / num_samples
    return collective.total(_unit_columns(first).T @ _unit_columns(second))


def standardise(first: Tensor, second: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Give every dimension of two [N, D] the mean 0 and the variance 1 over the global batch, as batch norms do."""
    if collective.size() > 1:
        (first, second), _ = normalise_globally([first, second], [Affine(None, None, eps)] * 2)
        return first, second
    return tuple(F.batch_norm(x, None, None, training=True, eps=eps) for x in (first, second))  # type: ignore[return-value]


def _unit_columns(projections: Tensor) -> Tensor:
    """Divide every dimension of [N, D] by its norm over the global batch."""
    if collective.size() > 1:
        return projections / collective.total(projections.square().sum(0)).sqrt().clamp(min=1e-12)
    return F.normalize(projections, dim=0)
