"""What a search knows of costs: those of the candidate ops in the network that is derived in the end.

The expected cost is a mean over architectures that are drawn by probabilities: each node keeps as many of its inputs as
the derivation rule does, all sets of them being equally probable, and each kept edge draws its op, independently. An
op's place in a network does not change its cost, so the mean is a sum of probabilities times costs (ProxylessNAS: Cai
et al., Direct Neural Architecture Search on Target Task and Hardware, 2019).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from registry.gpu import columns, placed_like
from registry.space import count_nodes, edges_into_nodes

TINY = 1e-30  # below any probability that matters


@dataclass(frozen=True)
class SearchCost:
    """The costs of a space, and what a search is to do about them.

    Attributes:
        ops: by cell type float64 [num_edges, num_ops]: what an op on an edge costs in all cells of that type together.
        fixed: what every network costs beside its ops: stem, projections of the cells' inputs, classifier.
        choices: the columns of the ops of which a derivation chooses one for each edge. `none` is one of them only if
            it competes; otherwise it would seem to make a network smaller and not do so.
        kept: how many inputs of each node a derivation keeps; None means all of them.
        target: the cost to reach, or None.
        weight: the factor of the loss.
        derived: the cost of the network that is derived from mixing weights float64 [num_edges, num_ops], or None if
            none is; without it the target is one of the expected cost.
    """

    ops: Mapping[str, NDArray[np.float64]]
    fixed: float
    choices: Sequence[int]
    kept: int | None
    target: float | None = None
    weight: float = 1.0
    derived: Callable[[Mapping[str, NDArray[np.float64]]], float | None] | None = None

    def expected(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """The mean cost, a scalar; `probabilities` are [num_edges, num_ops] by cell type, each row summing to 1."""
        total = next(iter(probabilities.values())).new_full((), self.fixed)
        for kind, given in probabilities.items():
            chosen = columns(given, list(self.choices))
            chosen = chosen / chosen.sum(dim=-1, keepdim=True).clamp_min(TINY)
            costs = self._shares(kind)[:, None] * self.ops[kind][:, list(self.choices)]
            total = total + (chosen * placed_like(costs, chosen)).sum()
        return total

    def penalty(self, expected: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """What is added to the loss of the alphas: weight * |log(cost / target)|.

        The cost is that of the network which would be derived now. It has no gradient, so that of the expected cost
        takes its place (as in a straight-through estimator): while no edge is decided, the op of the largest
        probability says little about the mean, and a search whose mean has the target derives another network.

        The gradient pulls towards the target from both sides, and is as large far from it as near it (as that of the
        absolute reward of TuNAS: Bender et al., 2020), so that a search that can reach the target does. Without a
        target the penalty is weight * log(expected / mean), which pulls towards cheaper networks all the time.

        Args:
            expected: a scalar of `expected`.
            weights: the mixing weights without noise, and those of edges if they have some.
        """
        if self.target is None:
            return self.weight * torch.log(expected / self.mean)
        if self.derived is not None:
            found = self.derived({kind: values.detach().double().cpu().numpy() for kind, values in weights.items()})
            expected = expected if found is None else expected + (found - expected).detach()
        return self.weight * torch.log(expected / self.target).abs()

    def of(self, mixing: Mapping[str, NDArray]) -> float:
        """The cost of an architecture, all nodes of which have an input; its ops have the weight 1, others 0."""
        return self.fixed + sum(float((self.ops[kind] * weights).sum()) for kind, weights in mixing.items())

    @functools.cached_property
    def mean(self) -> float:
        """The mean over all architectures."""
        uniform = {kind: torch.full(costs.shape, 1.0, dtype=torch.float64) for kind, costs in self.ops.items()}
        return float(self.expected(uniform))

    @property
    def smallest(self) -> float:
        """The cost of the cheapest architecture."""
        return self.fixed + sum(self._extreme(costs, 1) for costs in self.ops.values())

    @property
    def largest(self) -> float:
        """The cost of the most expensive architecture."""
        return self.fixed + sum(self._extreme(costs, -1) for costs in self.ops.values())

    def _extreme(self, costs: NDArray[np.float64], sign: int) -> float:
        """The smallest cost of a cell type's ops, or with -1 the largest."""
        best = np.sort(sign * costs[:, list(self.choices)], axis=1)[:, 0]
        nodes = edges_into_nodes(count_nodes(len(costs)))
        return sign * float(sum(np.sort(best[rows])[: self.kept].sum() for rows in nodes))

    def _shares(self, kind: str) -> NDArray[np.float64]:
        """The probability that a derived cell has an edge, [num_edges]."""
        shares = np.ones(len(self.ops[kind]))
        for rows in edges_into_nodes(count_nodes(len(shares))):
            shares[rows] = min(1.0, (self.kept or len(rows)) / len(rows))
        return shares


def costs_of(genes: NDArray, ops: Mapping[str, NDArray[np.float64]], fixed: float) -> NDArray[np.float64]:
    """The costs of architectures.

    Args:
        genes: [..., cell types, edges]: the column of the op of each edge, or -1.
        ops, fixed: as in `SearchCost`.

    Returns:
        [...].
    """
    total = np.full(genes.shape[:-2], fixed)
    for place, costs in enumerate(ops.values()):
        with_nothing = np.pad(costs, ((0, 0), (0, 1)))  # the last column is that of an edge without an op
        total = total + with_nothing[np.arange(genes.shape[-1]), genes[..., place, :]].sum(-1)
    return total


def front(fitness: Sequence[float] | NDArray, costs: Sequence[float] | NDArray) -> list[int]:
    """The places of the candidates that none beats in both fitness and cost, from the cheapest to the fittest.

    Of equal ones the earliest is in it.
    """
    order = sorted(range(len(fitness)), key=lambda place: (costs[place], -fitness[place], place))
    found: list[int] = []
    for place in order:
        if not found or fitness[place] > fitness[found[-1]]:
            found.append(place)
    return found
