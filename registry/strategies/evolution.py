"""Regularised evolution (Real et al., Regularized Evolution for Image Classifier Architecture Search, 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from registry.core import STRATEGIES
from registry.cost import front
from registry.space import count_nodes, edges_into_nodes
from registry.strategies.candidates import CandidateOptions, CandidateStrategy, Genes


class EvolutionOptions(CandidateOptions):
    """Options of `evolution`."""

    population: int = Field(25, ge=2, le=100_000, description="how many of the newest candidates can be parents")
    sample: int = Field(5, ge=1, le=100_000, description="how many of them are drawn; the fittest is the parent")
    crossover: float = Field(
        0.0,
        ge=0,
        le=1,
        description="probability that a child takes each node from one of two parents before it is changed",
    )

    parents: Literal["auto", "fittest", "front"] = Field(
        "auto",
        description="who of the sample is the parent: the fittest, or with a cost any that none of the sample beats in "
        "both fitness and cost; auto: the latter if there is a cost without a target",
    )

    @field_validator("sample")
    @classmethod
    def _fits_the_population(cls, sample: int, info: ValidationInfo) -> int:
        population = info.data.get("population", sample)
        if sample > population:
            raise ValueError(f"is larger than the population of {population}")
        return sample


@STRATEGIES.register("evolution", options=EvolutionOptions)
class Evolution(CandidateStrategy):
    """Regularised evolution: children of the fittest of a sample replace the oldest.

    The first candidates, as many as the population has, are drawn uniformly. Every later one is a child: some of the
    newest candidates are drawn, and the fittest of them is changed at one place. The oldest leaves the population,
    however fit it is; the best of all candidates is the result. With a cost as the second objective, any candidate of
    the sample's front of fitness and cost can be the parent.
    """

    options: EvolutionOptions

    def propose(self, numbers: np.random.Generator) -> Genes:
        """A random candidate, or a child."""
        if len(self.fitness) < self.options.population:
            return self.random_genes(numbers)
        if numbers.random() < self.options.crossover:
            return mutate(cross(self._parent(numbers), self._parent(numbers), numbers), numbers, self.columns)
        return mutate(self._parent(numbers), numbers, self.columns)

    def _parent(self, numbers: np.random.Generator) -> Genes:
        """The fittest of a sample of the population, or one of its front of fitness and cost, drawn uniformly."""
        oldest = len(self.fitness) - self.options.population
        drawn = oldest + numbers.choice(self.options.population, self.options.sample, replace=False)
        if not self._minds_the_front():
            return self.genes[max(sorted(drawn), key=lambda number: self.fitness[number])]
        sample = self.genes[sorted(drawn)]
        unbeaten = front(self.fitness[sorted(drawn)], self.costs_of(sample))
        return sample[unbeaten[numbers.integers(len(unbeaten))]]

    def _minds_the_front(self) -> bool:
        cost, parents = self.context.cost, self.options.parents
        return cost is not None and (parents == "front" or (parents == "auto" and cost.target is None))


def mutate(genes: Genes, numbers: np.random.Generator, columns: Sequence[int]) -> Genes:
    """Change one edge of one cell: its op or, with the same probability, the node that it comes from.

    The node that the first intermediate node could come from instead is its other input already, so only its ops
    change. The result always differs from `genes`, unless nothing else is possible.
    """
    child = genes.copy()
    cell = child[numbers.integers(len(child))]
    nodes = edges_into_nodes(count_nodes(len(cell)))
    movable = nodes[1:]
    if movable and (len(columns) == 1 or numbers.random() < 0.5):
        rows = movable[numbers.integers(len(movable))]
        here = [row for row in rows if cell[row] >= 0]
        free = [row for row in rows if cell[row] < 0]
        old, new = here[numbers.integers(len(here))], free[numbers.integers(len(free))]
        cell[new], cell[old] = cell[old], -1
    elif len(columns) > 1:
        rows = [row for row in range(len(cell)) if cell[row] >= 0]
        row = rows[numbers.integers(len(rows))]
        others = [column for column in columns if column != cell[row]]
        cell[row] = others[numbers.integers(len(others))]
    return child


def cross(one: Genes, other: Genes, numbers: np.random.Generator) -> Genes:
    """A child each of whose nodes, in both cells, has the inputs and ops that it has in one of the parents."""
    child = one.copy()
    for cell, theirs in zip(child, other, strict=True):
        for rows in edges_into_nodes(count_nodes(len(cell))):
            if numbers.random() < 0.5:
                cell[rows] = theirs[rows]
    return child
