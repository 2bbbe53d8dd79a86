"""Relaxations: how continuous alphas weigh the candidate ops, and the regulariser that goes with it.

A relaxation is built with its options and answers for: the initial alphas, its alpha optimizer's defaults,
the mixing weights, a regulariser over the alphas of both cell types, and its default derivation rule.
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
    """Base of every relaxation. Alphas are [num_edges, num_ops]; so are the mixing weights."""

    lr: ClassVar[float] = 3e-4
    betas: ClassVar[tuple[float, float]] = (0.5, 0.999)
    weight_decay: ClassVar[float] = 1e-3
    default_rule: ClassVar[str] = "darts"

    def __init__(self, options: Options):
        self.options = options

    @abc.abstractmethod
    def initial_alphas(self, num_edges: int, num_ops: int, generator: torch.Generator) -> Tensor:
        """Alphas [num_edges, num_ops] at the start of a search."""

    @abc.abstractmethod
    def weights(self, alphas: Tensor, progress: float, generator: torch.Generator | None = None) -> Tensor:
        """Mixing weights [num_edges, num_ops]. `progress` runs from 0 to 1 over the search.

        A sampled relaxation draws from `generator`; without one, as when a genotype is derived, it adds no noise.
        """

    def regulariser(self, alphas: Mapping[str, Tensor], progress: float) -> Tensor:
        """A scalar added to the alpha step's loss. None here."""
        return next(iter(alphas.values())).new_zeros(())


class SoftmaxOptions(Options):
    """Options of `softmax`."""

    init_std: float = Field(1e-3, ge=0, description="standard deviation of the initial alphas")


@RELAXATIONS.register("softmax", options=SoftmaxOptions)
class Softmax(Relaxation):
    """DARTS: the ops of an edge compete in a softmax (paper, Eq. 1)."""

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
        description="share of the search over which the weight rises from 0 in a straight line",
    )
    init_std: float = Field(0.0, ge=0, description="standard deviation of the initial alphas (0: all sigmoids 0.5)")


@RELAXATIONS.register("sigmoid", options=SigmoidOptions)
class Sigmoid(Relaxation):
    """FairDARTS: every op has a sigmoid of its own and a zero-one loss decides it (paper, Eq. 5 to 7).

    Just beside 0.5 the L1 form pushes at full strength, so it can freeze the noise of the first steps into a
    choice; L2 starts softly, and `zero_one_warmup` delays either. At exactly 0.5 neither pushes.
    """

    lr = 3e-3
    betas = (0.9, 0.999)
    default_rule = "fairdarts"
    options: SigmoidOptions

    def initial_alphas(self, num_edges: int, num_ops: int, generator: torch.Generator) -> Tensor:
        return self.options.init_std * torch.randn(num_edges, num_ops, generator=generator)

    def weights(self, alphas: Tensor, progress: float, generator: torch.Generator | None = None) -> Tensor:
        return torch.sigmoid(alphas)

    def regulariser(self, alphas: Mapping[str, Tensor], progress: float) -> Tensor:
        """`weight * -mean(|sigma - 0.5|)`, or its square for L2, over the sigmoids of both cell types."""
        distance = torch.cat([torch.sigmoid(values).flatten() for values in alphas.values()]) - 0.5
        warmup = self.options.zero_one_warmup
        weight = self.options.zero_one_weight * (min(1.0, progress / warmup) if warmup else 1.0)
        if self.options.zero_one == "none":
            return distance.new_zeros(())
        return -weight * (distance.abs() if self.options.zero_one == "l1" else distance.square()).mean()
