"""What strategies share that judge candidates with the weights of one supernet (single path one-shot).

The supernet is trained by single paths: for every step an architecture is drawn uniformly from the space of DARTS, and
only its ops are computed. When the epochs are over, the weights stay as they are, and candidates are judged one by one
by their accuracy on the alpha half, with BN statistics estimated for each of them (Guo et al., Single Path One-Shot
Neural Architecture Search with Uniform Sampling, 2019).

With `judge=train` there is no supernet: each candidate is trained by itself, from scratch, and then judged. That is
what the supernet stands in for, and costs accordingly more.

An architecture is an array of genes, int16 [cell types, edges]: the column of the op of each edge, or -1. Everything
random follows from the seed and the number of the candidate or the step, so the state is the list of candidates.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from registry.core import OPS, Options, PluginError
from registry.cost import costs_of, front
from registry.gpu import placed, with_zeros
from registry.space import CELL_TYPES, NUM_NODES, edge_list, random_cell
from registry.strategies.base import SearchContext, SearchStep, Strategy

Genes = NDArray[np.int16]

MAX_DRAWS = 20_000  # proposals that may cost too much, one after the other


class CandidateOptions(Options):
    """Options of every strategy that judges candidates."""

    candidates: int = Field(100, ge=1, le=1_000_000, description="architectures to judge after the last epoch")
    judge: Literal["supernet", "train"] = Field(
        "supernet",
        description="whose weights they are judged with: a supernet's, or their own: each is trained from scratch for "
        "`epochs` epochs, and no supernet is",
    )
    fitness: Literal["accuracy", "balanced_accuracy"] = Field(
        "accuracy", description="what they are judged by, on the alpha half; balanced: the mean over classes"
    )


class CandidateStrategy(Strategy):
    """Base class: the training by single paths, the list of candidates, and the record of the best.

    Attributes:
        num_nodes: the intermediate nodes of a cell.
        genes: of the candidates judged so far, int16 [candidates, cell types, edges].
        fitness: of each of them, in percent, float64 [candidates].
    """

    options: CandidateOptions
    num_nodes: ClassVar[int] = NUM_NODES
    minds_cost = True

    def __init__(self, options: Options, context: SearchContext):
        super().__init__(options, context)
        self.num_candidates = self.options.candidates
        self.trains_candidates = self.options.judge == "train"
        self.columns = [column for column, op in enumerate(context.ops) if not OPS.get(op).facts.is_none]
        num_edges = len(edge_list(self.num_nodes))
        self.genes: Genes = np.empty((0, len(CELL_TYPES), num_edges), np.int16)
        self.fitness = np.empty(0)
        self._proposed: Genes | None = None  # the next candidate, once it is known
        nothing = torch.zeros(1, num_edges, len(context.ops))
        self.history = {kind: nothing.clone() for kind in CELL_TYPES}

    @abc.abstractmethod
    def propose(self, numbers: np.random.Generator) -> Genes:
        """The genes of the next candidate."""

    def mixing(self, progress: float, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """A path drawn uniformly, or the candidate that is trained.

        Without a generator it is the best candidate, or the first one if none was judged.
        """
        if generator is None:
            return self._mixing_of(self.best() if len(self.fitness) else self._next())
        if self.trains_candidates:
            return self.candidate()
        seed = int(torch.randint(2**62, (), generator=generator))
        return self._mixing_of(self.random_genes(np.random.default_rng(seed)))

    def update(self, step: SearchStep) -> dict[str, float]:
        """Nothing is learned while the weights are trained."""
        return {}

    def candidate(self) -> dict[str, Tensor]:
        """The mixing weights of the next candidate."""
        return self._mixing_of(self._next())

    def judge(self, accuracies: Mapping[str, float]) -> dict[str, float]:
        """Add the candidate to the list."""
        value = accuracies[self.options.fitness]
        self.genes = np.concatenate([self.genes, self._next()[None]])
        self.fitness = np.append(self.fitness, value)
        self._proposed = None
        return {"candidate_fitness": value}

    def _next(self) -> Genes:
        """The next candidate. One that costs more than the target is drawn again."""
        if self._proposed is None:
            self._proposed = self._affordable(np.random.default_rng([self.context.seed, len(self.fitness)]))
        return self._proposed

    def _affordable(self, numbers: np.random.Generator) -> Genes:
        """A proposal that costs no more than the target, if there is one."""
        cost = self.context.cost
        for _ in range(MAX_DRAWS):
            genes = self.propose(numbers)
            if cost is None or cost.target is None or self.costs_of(genes) <= cost.target:
                return genes
        raise PluginError(
            f"none of {MAX_DRAWS:,} architectures, drawn at random, costs as little as cost_target says: raise it"
        )

    def costs_of(self, genes: Genes) -> NDArray[np.float64]:
        """What the derived networks of architectures [..., cell types, edges] cost, [...]."""
        assert self.context.cost is not None
        return costs_of(genes, self.context.cost.ops, self.context.cost.fixed)

    @property
    def best_number(self) -> int:
        """The number of the candidate of the highest fitness; the earliest of equals."""
        return int(self.fitness.argmax())

    def best(self) -> Genes:
        """The genes of that candidate."""
        return self.genes[self.best_number]

    def random_genes(self, numbers: np.random.Generator) -> Genes:
        """An architecture drawn uniformly from the space."""
        return random_genes(numbers, self.columns, self.num_nodes)

    def _mixing_of(self, genes: Genes) -> dict[str, Tensor]:
        mixing = mixing_of(genes, len(self.context.ops))
        return {kind: _known(torch.from_numpy(weights), self.context.device) for kind, weights in mixing.items()}

    def end_epoch(self) -> dict[str, float]:
        """Add the best candidate to the record; zeros if none was judged."""
        chosen = bool(len(self.fitness))
        for kind, weights in self._mixing_of(self.best()).items() if chosen else ():
            self.history[kind] = torch.cat([self.history[kind], weights.cpu()[None]])
        if not chosen:
            self.history = {kind: torch.cat([rows, torch.zeros_like(rows[:1])]) for kind, rows in self.history.items()}
        return {"best_fitness": float(self.fitness.max())} if chosen else {}

    def judged(self) -> dict[str, Tensor]:
        """`genes` and `fitness` of every candidate, and with a cost its `cost` and whether it is on the `front`."""
        published = {"genes": torch.from_numpy(self.genes), "fitness": torch.from_numpy(self.fitness)}
        if self.context.cost is None or not len(self.fitness):
            return published if len(self.fitness) else {}
        costs = self.costs_of(self.genes)
        on_front = np.zeros(len(costs), np.uint8)
        on_front[front(self.fitness, costs)] = 1
        return published | {"cost": torch.from_numpy(costs), "front": torch.from_numpy(on_front)}

    def record(self) -> dict[str, Tensor]:
        """Weights of 1 for the ops of the best candidate so far; only zeros before the first round."""
        return self.history

    def weights_at(self, record: Mapping[str, Tensor], epoch: int) -> dict[str, NDArray]:
        """The recorded weights, which are 0 or 1."""
        return {kind: record[kind][epoch].double().numpy() for kind in CELL_TYPES}

    def tensors(self) -> dict[str, Tensor]:
        """The candidates, their fitness and the record."""
        named = {"candidates.genes": torch.from_numpy(self.genes), "candidates.fitness": torch.from_numpy(self.fitness)}
        return named | {f"history.{kind}": rows for kind, rows in self.history.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self.genes = tensors["candidates.genes"].numpy().copy()
        self.fitness = tensors["candidates.fitness"].numpy().copy()
        self._proposed = None
        self.history = {kind: tensors[f"history.{kind}"].clone() for kind in CELL_TYPES}


def _known(weights: Tensor, device: torch.device) -> Tensor:
    return with_zeros(placed(weights, device), weights == 0)


# Genes


def random_genes(numbers: np.random.Generator, columns: Sequence[int], num_nodes: int = NUM_NODES) -> Genes:
    """Genes drawn uniformly from the space; `columns` are those of the ops that may stand on an edge."""
    rows = {edge: row for row, edge in enumerate(edge_list(num_nodes))}
    genes = np.full((len(CELL_TYPES), len(rows)), -1, np.int16)
    for cell in genes:
        for source, target, op in random_cell(numbers, len(columns), num_nodes):
            cell[rows[source, target]] = columns[op]
    return genes


def mixing_of(genes: Genes, num_ops: int) -> dict[str, NDArray[np.float32]]:
    """Mixing weights [num_edges, num_ops] that are 1 for the ops of an architecture and 0 for others."""
    return {
        kind: np.eye(num_ops + 1, dtype=np.float32)[cell][:, :-1] for kind, cell in zip(CELL_TYPES, genes, strict=True)
    }
