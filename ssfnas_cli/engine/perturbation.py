"""The decisions of a derivation by perturbation (Wang et al., Rethinking Architecture Selection, ICLR 2021: DARTS-PT).

What an op is worth to a supernet is what the supernet loses without it, not how large its alpha is. The edges of each
cell type are decided one by one, in random order: each op is left out in turn, and the one that is missed most stays
alone, with weight 1. Then the nodes are decided in random order: each edge into a node is left out in turn, and the two
that are missed most stay. `none` is no candidate: it adds nothing, so nothing is missed without it.

All of it follows from what was measured, in the order in which it was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from registry import OPS, gpu
from registry.space import CELL_TYPES, EDGE_WEIGHTS, edge_list, edges_into_nodes
from ssfnas_cli.artifacts.genotype import Cell, Edge
from ssfnas_cli.settings.perturbation import Criterion

INPUTS_OF_A_NODE = 2


class Part(NamedTuple):
    """What can be left out of a cell type: an op (its row and column of the mixing weights), or a whole edge."""

    row: int
    column: int | None = None


class Decision(NamedTuple):
    """A choice between parts of a cell type, of which `keep` stay: one op of an edge, or two inputs of a node."""

    kind: str
    parts: tuple[Part, ...]
    keep: int


class Measured(NamedTuple):
    """What the supernet is on the alpha half without a part: percent, percent, and the mean cross-entropy."""

    accuracy: float
    balanced_accuracy: float
    loss: float


def schedule(ops: Sequence[str], seed: int) -> list[list[Decision]]:
    """The rounds of a derivation, each with a decision for each cell type: all edges, then all nodes with a choice.

    Args:
        ops: names of the candidate ops, in the order of the mixing weights' columns.
        seed: decides the order.
    """
    columns = [column for column, op in enumerate(ops) if not OPS.get(op).facts.is_none]
    nodes = [rows for rows in edges_into_nodes() if len(rows) > INPUTS_OF_A_NODE]
    by_kind = []
    for number, kind in enumerate(CELL_TYPES):
        numbers = np.random.default_rng([seed, number])
        of_edges = [
            Decision(kind, tuple(Part(int(row), column) for column in columns), 1)
            for row in numbers.permutation(len(edge_list()))
        ]
        of_nodes = [
            Decision(kind, tuple(Part(row) for row in nodes[node]), INPUTS_OF_A_NODE)
            for node in numbers.permutation(len(nodes))
        ]
        by_kind.append(of_edges + of_nodes)
    return [list(decisions) for decisions in zip(*by_kind, strict=True)]


def most_missed(measured: Sequence[Measured], keep: int, criterion: Criterion) -> list[int]:
    """The numbers of the parts that are missed most, ascending. Equal ones are told apart by the loss, then the order.

    Args:
        measured: what the supernet is without each part.
        keep: how many.
        criterion: what counts: the lowest accuracy, the lowest balanced accuracy, or the highest loss.
    """
    worth = lambda one: -one.loss if criterion == "loss" else getattr(one, criterion)
    ranked = sorted(range(len(measured)), key=lambda number: (worth(measured[number]), -measured[number].loss))
    return sorted(ranked[:keep])


class Perturbation:
    """The decisions so far, which follow from `measured`, and the next thing to measure.

    Attributes:
        rounds: all decisions, in order.
        measured: what was measured so far, one for each part of the decisions.
    """

    def __init__(self, ops: Sequence[str], seed: int, criterion: Criterion):
        self.ops, self.criterion = list(ops), criterion
        self.rounds = schedule(ops, seed)
        self.measured: list[Measured] = []

    @property
    def num_measurements(self) -> int:
        """How many there are in all."""
        return sum(len(decision.parts) for decision in self._decisions())

    def _decisions(self) -> list[Decision]:
        return [decision for one in self.rounds for decision in one]

    def decided(self) -> list[tuple[Decision, list[Measured], list[Part]]]:
        """The decisions whose parts have all been measured, with what was measured and the parts that stay."""
        found, start = [], 0
        for decision in self._decisions():
            theirs = self.measured[start : start + len(decision.parts)]
            if len(theirs) < len(decision.parts):
                break
            start += len(theirs)
            kept = most_missed(theirs, decision.keep, self.criterion)
            found.append((decision, theirs, [decision.parts[number] for number in kept]))
        return found

    @property
    def every_op_is_decided(self) -> bool:
        """Whether each edge has its op, so that alphas have no effect any more."""
        return sum(decision.keep == 1 for decision, _, _ in self.decided()) == len(CELL_TYPES) * len(edge_list())

    def next_part(self) -> tuple[str, Part]:
        """The cell type and the part that is to be left out next."""
        parts = [(decision.kind, part) for decision in self._decisions() for part in decision.parts]
        return parts[len(self.measured)]

    def apply(self, mixing: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Mixing weights with what is decided: 1 for the op of an edge, 0 for the others and for edges that were cut.

        The weights of edges that are not decided stay as they are, with their gradients, and so do whole edges' own.
        """
        fixed = {name: torch.full(values.shape, torch.nan) for name, values in mixing.items()}
        for decision, _, kept in self.decided():
            rows, edges = fixed[decision.kind], fixed.get(EDGE_WEIGHTS[decision.kind])
            for part in decision.parts:
                if part.column is not None or part not in kept:
                    rows[part.row] = 0.0
                if part.column is None and part not in kept and edges is not None:
                    edges[part.row] = 0.0
            for part in kept:
                if part.column is not None:
                    rows[part.row, part.column] = 1.0
        return {name: _overlaid(values, fixed[name]) for name, values in mixing.items()}

    def cells(self) -> dict[str, Cell]:
        """The cells, when everything is decided."""
        found = self.decided()
        assert len(found) == len(self._decisions()), "something is undecided"
        cut = {(decision.kind, part) for decision, _, kept in found for part in decision.parts if part not in kept}
        edges: dict[str, list[Edge]] = {kind: [] for kind in CELL_TYPES}
        for decision, _, kept in found:
            for part in kept:
                if part.column is not None and (decision.kind, Part(part.row)) not in cut:
                    source, target = edge_list()[part.row]
                    edges[decision.kind].append(Edge(op=self.ops[part.column], source=source, target=target))
        targets = sorted({target for _, target in edge_list()})
        order = lambda edge: (edge.target, edge.source)
        return {kind: Cell(edges=tuple(sorted(edges[kind], key=order)), concat=tuple(targets)) for kind in CELL_TYPES}

    def record(self) -> list[dict[str, Any]]:
        """The decisions so far in words, with what was measured."""
        return [
            {
                "cell": decision.kind,
                "decides": "op" if decision.keep == 1 else "inputs",
                "without": [
                    {**self._described(part), **one._asdict()}
                    for part, one in zip(decision.parts, measured, strict=True)
                ],
                "kept": [self._described(part) for part in kept],
            }
            for decision, measured, kept in self.decided()
        ]

    def _described(self, part: Part) -> dict[str, Any]:
        source, target = edge_list()[part.row]
        op = {} if part.column is None else {"op": self.ops[part.column]}
        return {"from": source, "to": target, **op}

    def tensor(self) -> Tensor:
        """What was measured, float64 [measurements so far, 3]."""
        return torch.tensor(self.measured, dtype=torch.float64).reshape(-1, len(Measured._fields))

    def load(self, measured: Tensor) -> None:
        """Restore what `tensor` returned."""
        self.measured = [Measured(*row) for row in measured.tolist()]


def without(mixing: Mapping[str, Tensor], kind: str, part: Part) -> dict[str, Tensor]:
    """Mixing weights of which one part is zero. The others do not grow in its place (as in DARTS-PT's code)."""
    changed = {name: values.clone() for name, values in mixing.items()}
    if part.column is None:
        for name in {kind, EDGE_WEIGHTS[kind]} & changed.keys():
            changed[name][part.row] = 0.0
    else:
        changed[kind][part.row, part.column] = 0.0
    return changed


def cross_entropy(scores: NDArray, labels: NDArray) -> float:
    """The mean cross-entropy of class scores [N, C], computed in float64."""
    logits = torch.from_numpy(np.asarray(scores, np.float64))
    return float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)))


def _overlaid(values: Tensor, fixed: Tensor) -> Tensor:
    """The values, replaced where `fixed`, which is on the CPU, is a number."""
    here, zeros = gpu.placed_like(fixed, values), gpu.known_zeros(values)
    overlaid = torch.where(here.isnan(), values, here)
    return overlaid if zeros is None else gpu.with_zeros(overlaid, torch.where(fixed.isnan(), zeros, fixed == 0))
