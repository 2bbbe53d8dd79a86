"""Relaxations, which turn continuous alphas into mixing weights of the candidate ops.

A relaxation is built with its options. It defines the initial alphas, the mixing weights, a regulariser over the alphas
of both cell types, the default settings of the alphas' optimizer and the default derivation rule.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from registry.core import RELAXATIONS, Options


class Relaxation(abc.ABC):
    """Base class of relaxations. Alphas and mixing weights have the shape [num_edges, num_ops]."""

    lr: ClassVar[float] = 3e-4
    betas: ClassVar[tuple[float, float]] = (0.5, 0.999)
    weight_decay: ClassVar[float] = 1e-3
    default_rule: ClassVar[str] = "darts"
    gives_zeros: ClassVar[bool] = True  # whether a weight may be exactly 0; if so, a GPU has to be asked which one is

    def __init__(self, options: Options):
        self.options = options

    @abc.abstractmethod
    def initial_alphas(self, num_edges: int, num_ops: int, generator: torch.Generator) -> Tensor:
        """Alphas [num_edges, num_ops] at the start of a search."""

    @abc.abstractmethod
    def weights(self, alphas: Tensor, progress: float, generator: torch.Generator | None = None) -> Tensor:
        """Mixing weights [num_edges, num_ops]. `progress` runs from 0 to 1 over the search.

        A relaxation that samples draws from `generator`. If that is None, as in a derivation, it adds no noise.
        """

    def evaluated(self, alphas: Tensor, progress: float) -> Tensor:
        """The mixing weights [num_edges, num_ops] to evaluate the supernet with; by default those without noise."""
        return self.weights(alphas, progress)

    def probabilities(self, alphas: Tensor, progress: float) -> Tensor:
        """How probable each op is on its edge, [num_edges, num_ops]; rows sum to 1. An expected cost is a mean by them.

        By default they are the weights without noise, normalised on each edge: a softmax's are its weights.
        """
        weights = self.weights(alphas, progress)
        return weights / weights.sum(dim=-1, keepdim=True)

    def regulariser(self, alphas: Mapping[str, Tensor], progress: float) -> Tensor:
        """A scalar that is added to the loss of the alpha step; 0 by default."""
        return next(iter(alphas.values())).new_zeros(())


class SoftmaxOptions(Options):
    """Options of `softmax`."""

    init_std: float = Field(1e-3, ge=0, description="standard deviation of the initial alphas")


@RELAXATIONS.register("softmax", options=SoftmaxOptions)
class Softmax(Relaxation):
    """DARTS: the mixing weights of an edge are a softmax of its alphas, so its ops compete (paper, Eq. 1)."""

    gives_zeros = False
    options: SoftmaxOptions

    def initial_alphas(self, num_edges: int, num_ops: int, generator: torch.Generator) -> Tensor:
        return self.options.init_std * torch.randn(num_edges, num_ops, generator=generator)

    def weights(self, alphas: Tensor, progress: float, generator: torch.Generator | None = None) -> Tensor:
        return torch.softmax(alphas, dim=-1)


class SigmoidOptions(Options):
    """Options of `sigmoid`."""

    zero_one: Literal["l1", "l2", "none"] = Field(
        "l1",
        description="form of the zero-one loss: l1 is the paper's Eq. 6, l2 the default of FairDARTS's code",
    )
    zero_one_weight: float = Field(
        10.0,
        ge=0,
        description="lambda_0-1 of Eq. 7; it multiplies the mean over all sigmoids of both cell types",
    )
    zero_one_warmup: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the search over which the weight rises linearly from 0",
    )
    init_std: float = Field(0.0, ge=0, description="standard deviation of the initial alphas (0: all sigmoids 0.5)")


@RELAXATIONS.register("sigmoid", options=SigmoidOptions)
class Sigmoid(Relaxation):
    """FairDARTS: each op has its own sigmoid, and a zero-one loss drives it to 0 or 1 (paper, Eq. 5 to 7).

    Close to 0.5 the gradient of the L1 form has its full size, so the noise of the first steps can decide an op. The
    gradient of the L2 form is small there, and `zero_one_warmup` delays both. At exactly 0.5 both gradients are 0.
    """

    lr = 3e-3
    betas = (0.9, 0.999)
    default_rule = "fairdarts"
    gives_zeros = False
    options: SigmoidOptions

    def initial_alphas(self, num_edges: int, num_ops: int, generator: torch.Generator) -> Tensor:
        return self.options.init_std * torch.randn(num_edges, num_ops, generator=generator)

    def weights(self, alphas: Tensor, progress: float, generator: torch.Generator | None = None) -> Tensor:
        return torch.sigmoid(alphas)

    def regulariser(self, alphas: Mapping[str, Tensor], progress: float) -> Tensor:
        """`-weight * mean(|sigma - 0.5|)`, or `(sigma - 0.5)^2` for L2, over the sigmoids of both cell types."""
        distance = torch.cat([torch.sigmoid(values).flatten() for values in alphas.values()]) - 0.5
        warmup = self.options.zero_one_warmup
        weight = self.options.zero_one_weight * (min(1.0, progress / warmup) if warmup else 1.0)
        if self.options.zero_one == "none":
            return distance.new_zeros(())
        return -weight * (distance.abs() if self.options.zero_one == "l1" else distance.square()).mean()
