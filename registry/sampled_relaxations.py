"""Relaxations that sample: at every step the mixing weights are drawn from distributions that the alphas describe.

`gumbel` draws one op for each edge, so a step computes and stores one path. `dirichlet` draws a point of the simplex.
Draws come from the step's generator alone, so a search that is resumed draws what an undisturbed one does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch.distributions import Dirichlet as DirichletDistribution
from torch.distributions import kl_divergence

from registry.core import RELAXATIONS, Options
from registry.gpu import placed
from registry.relaxations import Relaxation


class GumbelOptions(Options):
    """Options of `gumbel`."""

    estimator: Literal["gdas", "dsnas"] = Field(
        "gdas",
        description="gradient of the drawn op's weight: that of its tempered softmax (gdas), or of its log-probability",
    )
    temperature_start: float = Field(10.0, gt=0, description="gdas: temperature at the start; it falls linearly")
    temperature_end: float = Field(0.1, gt=0, description="gdas: temperature at the end")
    init_std: float = Field(1e-3, ge=0, description="standard deviation of the initial alphas")


@RELAXATIONS.register("gumbel", options=GumbelOptions)
class Gumbel(Relaxation):
    """GDAS and DSNAS: each edge draws one op from the softmax of its alphas, and only that op is computed.

    An op is the largest of alpha + g with Gumbel noise g, so it is drawn with the probability p = softmax(alpha). Its
    mixing weight is 1 and the others are 0; they get no gradient. The drawn op's weight has the gradient of

    - `gdas`: softmax((alpha + g) / temperature) (Dong and Yang, Searching for A Robust Neural Architecture in Four GPU
      Hours, 2019). It is biased, and less so at low temperatures.
    - `dsnas`: log p, so that the gradient is that of the log-probability of the drawn ops times their share of the loss
      (Hu et al., DSNAS, 2020): the limit of SNAS at temperature 0.
    """

    options: GumbelOptions

    def initial_alphas(self, num_edges: int, num_ops: int, generator: torch.Generator) -> Tensor:
        return self.options.init_std * torch.randn(num_edges, num_ops, generator=generator)

    def temperature(self, progress: float) -> float:
        """The temperature of `gdas`, which changes linearly over the search."""
        start, end = self.options.temperature_start, self.options.temperature_end
        return start + (end - start) * progress

    def weights(self, alphas: Tensor, progress: float, generator: torch.Generator | None = None) -> Tensor:
        """One-hot rows drawn with the generator; without one the ops' probabilities, by which a derivation ranks."""
        if generator is None:
            return torch.softmax(alphas, dim=-1)
        noise = -torch.empty(alphas.shape, dtype=torch.float64).exponential_(generator=generator).log()
        noisy = alphas.double() + placed(noise, alphas.device)
        if self.options.estimator == "gdas":
            slope = torch.softmax(noisy / self.temperature(progress), dim=-1)
        else:
            slope = torch.log_softmax(alphas.double(), dim=-1)
        drawn = F.one_hot(noisy.argmax(dim=-1), alphas.shape[-1])
        return (drawn * (1 + (slope - slope.detach()))).to(alphas.dtype)  # exactly 0 or 1

    def evaluated(self, alphas: Tensor, progress: float) -> Tensor:
        """The most probable op of each edge alone: the supernet has been trained by single paths."""
        return F.one_hot(alphas.argmax(dim=-1), alphas.shape[-1]).to(alphas.dtype)


class DirichletOptions(Options):
    """Options of `dirichlet`."""

    kl_weight: float = Field(
        0.0,
        ge=0,
        description="factor on the divergence from the uniform Dirichlet, added up over the edges of both cell types; "
        "DrNAS's code has 1e-3 with alpha_weight_decay=0, or no such term and a weight decay of 1e-3",
    )
    init_std: float = Field(1e-3, ge=0, description="standard deviation of the initial alphas")


@RELAXATIONS.register("dirichlet", options=DirichletOptions)
class Dirichlet(Relaxation):
    """DrNAS: the mixing weights of an edge are drawn from a Dirichlet distribution with concentrations elu(alpha) + 1.

    Its gradient is the pathwise one (Chen et al., DrNAS: Dirichlet Neural Architecture Search, 2021).
    """

    lr = 6e-4  # of its code
    gives_zeros = False
    options: DirichletOptions

    def initial_alphas(self, num_edges: int, num_ops: int, generator: torch.Generator) -> Tensor:
        return self.options.init_std * torch.randn(num_edges, num_ops, generator=generator)

    def weights(self, alphas: Tensor, progress: float, generator: torch.Generator | None = None) -> Tensor:
        """A draw; without a generator the distribution's mean."""
        concentrations = _concentrations(alphas)
        if generator is None:
            return (concentrations / concentrations.sum(dim=-1, keepdim=True)).to(alphas.dtype)
        seed = int(torch.randint(2**63 - 1, (), generator=generator))
        on_gpu = alphas.device.type == "cuda"
        with torch.random.fork_rng(devices=[alphas.device] if on_gpu else []):
            # The distribution draws from the global generator of its device alone.
            (torch.cuda.default_generators[alphas.device.index] if on_gpu else torch.default_generator).manual_seed(
                seed
            )
            drawn = _distribution(concentrations).rsample()
        return drawn.to(alphas)

    def regulariser(self, alphas: Mapping[str, Tensor], progress: float) -> Tensor:
        """`kl_weight` times the divergence of all edges' distributions from the uniform one."""
        if not self.options.kl_weight:
            return super().regulariser(alphas, progress)
        concentrations = torch.cat([_concentrations(values) for values in alphas.values()])
        uniform = _distribution(torch.ones_like(concentrations))
        divergence = kl_divergence(_distribution(concentrations), uniform).sum()
        return self.options.kl_weight * divergence.to(next(iter(alphas.values())).dtype)


def _distribution(concentrations: Tensor) -> DirichletDistribution:
    return DirichletDistribution(concentrations, validate_args=False)  # which would wait for a GPU


def _concentrations(alphas: Tensor) -> Tensor:
    """elu(alpha) + 1 in float64, with all its digits where an alpha is far below 0."""
    values = alphas.double()
    return torch.where(values > 0, values + 1, values.clamp(max=0.0).exp())
