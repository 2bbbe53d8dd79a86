"""Random search: the baseline that a search has to beat at equal cost (Li and Talwalkar, 2019)."""

from __future__ import annotations

import numpy as np

from registry.core import STRATEGIES
from registry.strategies.candidates import CandidateOptions, CandidateStrategy, Genes


@STRATEGIES.register("random", options=CandidateOptions)
class RandomSearch(CandidateStrategy):
    """Candidates are drawn uniformly from the space and judged, with the weights of one supernet or their own."""

    def propose(self, numbers: np.random.Generator) -> Genes:
        """Any architecture; all are equally probable."""
        return self.random_genes(numbers)
