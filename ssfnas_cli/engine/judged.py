"""Which of the architectures that a search has judged one by one a genotype is made of."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from registry.cost import costs_of
from ssfnas_cli.artifacts.run import CANDIDATES, RunFolder
from ssfnas_cli.artifacts.tensors import load_tensors
from ssfnas_cli.console import log
from ssfnas_cli.engine.fit import FittingSpace
from ssfnas_cli.errors import InputError, UsageError


class Judged(NamedTuple):
    """The architectures that a search has judged so far: int16 [candidates, cell types, edges], and their fitness."""

    genes: NDArray[np.int16]
    fitness: NDArray[np.float64]

    @classmethod
    def of(cls, run: RunFolder, num: int) -> Judged:
        """The first of a run, at most so many.

        Raises:
            InputError: they are not recorded.
        """
        path = run.path / CANDIDATES
        if not path.exists():
            raise InputError(
                f"{run.path}: has no {CANDIDATES}: it has judged none, or an earlier ssfnas made it: leave "
                "--candidate, --max-params and --max-macs out"
            )
        tensors = load_tensors(path)
        if not {"genes", "fitness"} <= tensors.keys() or tensors["genes"].ndim != 3:
            raise InputError(f"{path}: does not hold the candidates of a search")
        return cls(tensors["genes"].numpy()[:num], tensors["fitness"].numpy()[:num])

    def choose(self, number: int | None, space: FittingSpace | None) -> int:
        """The number of a candidate: the one that is asked for, or the fittest that fits; the earliest of equals.

        Raises:
            UsageError: there is no such number.
            InputError: the one that is asked for does not fit, or none does.
        """
        if number is not None and not 0 <= number < len(self.fitness):
            raise UsageError(f"--candidate {number}: the candidates are 0 to {len(self.fitness) - 1}")
        places = range(len(self.fitness)) if number is None else [number]
        if space is not None:
            sizes = np.stack([costs_of(self.genes, *costs) for costs in space.costs().values()], axis=1)
            fitting = [place for place in places if space.fits(sizes[place])]
            if not fitting:
                least = f"{space.in_words(sizes[list(places)].min(axis=0))} {space.where()}"
                if number is not None:
                    raise InputError(f"{space.flags()}: candidate {number} has {least}")
                raise InputError(
                    f"{space.flags()}: none of the candidates that were judged is so small: the least is {least}"
                )
            places = fitting
        best = max(places, key=lambda place: self.fitness[place])
        log.info("candidate %d of %d: fitness %.2f", best, len(self.fitness), self.fitness[best])
        return best
