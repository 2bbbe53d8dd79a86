"""`gumbel_softmax`: at every step an edge samples which of its ops to trust, less and less softly.

    ssfnas search --relax gumbel_softmax --set relax.tau_end=0.2

Xie et al., 2019 (SNAS) and Dong and Yang, 2019 (GDAS): softmax((alpha + g) / tau), with Gumbel noise g and a
temperature tau that falls as the search goes on.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from registry import RELAXATIONS, Options
from registry.relaxations import Relaxation


class GumbelSoftmaxOptions(Options):
    """Options of `gumbel_softmax`."""

    tau_start: float = Field(5.0, gt=0, description="temperature at the start: high means soft")
    tau_end: float = Field(0.5, gt=0, description="temperature at the end; between, it falls geometrically")
    init_std: float = Field(1e-3, ge=0, description="standard deviation of the initial alphas")


@RELAXATIONS.register("gumbel_softmax", options=GumbelSoftmaxOptions)
class GumbelSoftmax(Relaxation):
    """The ops of an edge compete in a softmax with Gumbel noise and a falling temperature."""

    # The alpha optimizer's defaults (--set alpha_lr and so on win over them) and the rule `derive` uses by default.
    lr = 3e-4
    betas = (0.5, 0.999)
    weight_decay = 1e-3
    default_rule = "darts"

    options: GumbelSoftmaxOptions

    def initial_alphas(self, num_edges: int, num_ops: int, generator: torch.Generator) -> Tensor:
        return self.options.init_std * torch.randn(num_edges, num_ops, generator=generator)

    def weights(self, alphas: Tensor, progress: float, generator: torch.Generator | None = None) -> Tensor:
        """One draw with a generator, as in a search; without one, as `derive` asks, no noise."""
        start, end = self.options.tau_start, self.options.tau_end
        tau = start * (end / start) ** progress
        return torch.softmax((alphas + self._noise(alphas, generator)) / tau, dim=-1)

    def _noise(self, alphas: Tensor, generator: torch.Generator | None) -> Tensor:
        """Gumbel noise from the generator alone: a resumed search draws what the undisturbed one would have."""
        if generator is None:
            return torch.zeros_like(alphas)
        uniform = torch.rand(alphas.shape, generator=generator).clamp(1e-6, 1 - 1e-6)
        return -torch.log(-torch.log(uniform)).to(alphas)
