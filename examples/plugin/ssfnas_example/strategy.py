"""`hill_climbing`: the best architecture so far is changed at one place, again and again.

    ssfnas search --strategy hill_climbing --set strategy.candidates=60 --set strategy.starts=10

The base class trains the supernet by single paths, judges the candidates after the epochs, keeps them in the
checkpoints and records the best. A strategy of that kind only says which candidate is next.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from registry import STRATEGIES
from registry.strategies.candidates import CandidateOptions, CandidateStrategy, Genes, random_genes
from registry.strategies.evolution import mutate


class HillClimbingOptions(CandidateOptions):
    """Options of `hill_climbing`, beside those of every strategy that judges candidates."""

    starts: int = Field(10, ge=1, description="how many random candidates come first")


@STRATEGIES.register("hill_climbing", options=HillClimbingOptions)
class HillClimbing(CandidateStrategy):
    """Every candidate after the first ones is the best so far with one edge changed."""

    options: HillClimbingOptions

    def propose(self, numbers: np.random.Generator) -> Genes:
        """The next candidate, which follows from the numbers and the candidates so far: so a search can be resumed."""
        if len(self.fitness) < self.options.starts:
            return random_genes(numbers, self.columns)
        return mutate(self.best(), numbers, self.columns)
