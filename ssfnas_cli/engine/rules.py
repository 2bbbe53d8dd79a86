"""From alphas to a genotype: one function with four parameters, and the papers' rules as settings of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from registry.space import count_nodes, edges_into_nodes
from ssfnas_cli.artifacts.genotype import Cell, Edge, Genotype
from ssfnas_cli.errors import InputError, UsageError

FAIRDARTS_THRESHOLD = 0.85


@dataclass(frozen=True)
class Rule:
    """A derivation.

    Attributes:
        edges_per_node: how many incoming edges each node keeps, the best first; None keeps all.
        ops_per_edge: how many ops each kept edge keeps, the best first.
        thresholded: whether an op must reach the threshold.
        none_may_win: whether `none` competes; where it wins it takes an op's place and is then left out.
        drop_path: the form of drop path of the papers' cells.
    """

    edges_per_node: int | None
    ops_per_edge: int
    thresholded: bool
    none_may_win: bool
    drop_path: str


RULES = {
    "darts": Rule(2, 1, False, False, "op"),  # DARTS: model_search.py
    "argmax": Rule(None, 1, False, True, "op"),  # paper, Eq. 4
    "fairdarts": Rule(2, 1, True, False, "node"),  # FairDARTS: threshold_sparse
    "fairdarts-edge": Rule(None, 2, True, False, "node"),  # FairDARTS: threshold_edge
}


class Derived(NamedTuple):
    """A genotype, the threshold it was derived with (None: none), and what to tell the user."""

    genotype: Genotype
    threshold: float | None
    notes: list[str]


def derive(
    weights: Mapping[str, np.ndarray], ops: Sequence[str], rule_name: str, threshold: float | str = "auto"
) -> Derived:
    """Derive both cells from mixing weights.

    Args:
        weights: cell type -> float64 [num_edges, num_ops], edges ordered as in `edge_list`.
        ops: names of the columns.
        rule_name: one of RULES.
        threshold: a number, or `auto`: 0.85, lowered where a node would be left without input.

    Raises:
        UsageError: no such rule, or a threshold for a rule that has none.
        InputError: a cell would be empty; names a threshold at which it would not.
    """
    if rule_name not in RULES:
        raise UsageError(f"--rule: unknown rule '{rule_name}'. Available: {', '.join(RULES)}")
    rule = RULES[rule_name]
    weights = {kind: np.asarray(values, dtype=np.float64) for kind, values in weights.items()}
    if not all(np.isfinite(values).all() for values in weights.values()):
        raise InputError("the alphas are not finite: nothing can be derived from a search that diverged")
    if not rule.thresholded:
        if threshold != "auto":
            raise UsageError(f"--threshold: rule '{rule_name}' uses none")
        return Derived(_build(weights, ops, rule, -np.inf), None, [])
    if threshold != "auto":
        value = float(threshold)
        return Derived(_build(weights, ops, rule, value), value, [])
    weakest = min(best_per_node(values, ops).min() for values in weights.values())
    value = min(FAIRDARTS_THRESHOLD, float(weakest))
    notes = []
    if value < FAIRDARTS_THRESHOLD:
        notes.append(
            f"threshold lowered from {FAIRDARTS_THRESHOLD} to {value:.6g}, the best weight of the weakest node, "
            "so that every node keeps an input: the search has not decided there yet; more epochs or a higher alpha_lr "
            "let the weights reach the threshold"
        )
    return Derived(_build(weights, ops, rule, value), value, notes)


def best_per_node(weights: np.ndarray, ops: Sequence[str]) -> np.ndarray:
    """The best weight of an op other than `none` among each node's incoming edges [num_nodes]."""
    best = weights[:, [k for k, op in enumerate(ops) if op != "none"]].max(axis=1)
    return np.array([best[edges].max() for edges in edges_into_nodes(count_nodes(len(weights)))])


def derive_cell(weights: np.ndarray, ops: Sequence[str], rule: Rule, threshold: float) -> tuple[Edge, ...]:
    """The edges of one cell. Ties go to the earlier edge and the earlier op; equality reaches the threshold."""
    candidates = [k for k, op in enumerate(ops) if rule.none_may_win or op != "none"]
    edges: list[Edge] = []
    for node, rows in enumerate(edges_into_nodes(count_nodes(len(weights))), start=2):
        best = {row: max(weights[row, k] for k in candidates) for row in rows}
        ranked = sorted(rows, key=lambda row: -best[row])  # stable: the earlier edge first
        kept = sorted(ranked[: rule.edges_per_node])
        for row in kept:
            columns = sorted(candidates, key=lambda k: -weights[row, k])[: rule.ops_per_edge]
            edges += [
                Edge(op=ops[k], source=row - rows[0], target=node)
                for k in columns
                if ops[k] != "none" and weights[row, k] >= threshold
            ]
    return tuple(edges)


def _build(weights: Mapping[str, np.ndarray], ops: Sequence[str], rule: Rule, threshold: float) -> Genotype:
    cells = {}
    for kind, values in weights.items():
        cell = _cell(derive_cell(values, ops, rule, threshold), count_nodes(len(values)))
        if cell is None:
            raise InputError(_empty_cell_message(kind, weights, ops, rule, threshold))
        cells[kind] = cell
    return Genotype(normal=cells["normal"], reduce=cells["reduce"], drop_path=rule.drop_path)


def _cell(edges: tuple[Edge, ...], num_nodes: int) -> Cell | None:
    """A cell whose concat holds the nodes that exist, or None where none does."""
    if not any(edge.source < 2 for edge in edges):
        return None
    whole = Cell(edges=edges, concat=tuple(range(2, 2 + num_nodes)))
    return Cell(edges=edges, concat=tuple(whole.live().concat))


def _empty_cell_message(
    kind: str, weights: Mapping[str, np.ndarray], ops: Sequence[str], rule: Rule, threshold: float
) -> str:
    """What to do about an empty cell: the highest threshold, in six digits, that leaves neither cell empty."""
    if rule.none_may_win:
        return f"the {kind} cell would be empty: 'none' wins every edge from its inputs; use another --rule"
    value = min(_highest_threshold(values, ops, rule) for values in weights.values())
    return f"--threshold {threshold:g}: leaves the {kind} cell empty; {np.floor(value * 1e6) / 1e6:.12g} would not"


def _highest_threshold(weights: np.ndarray, ops: Sequence[str], rule: Rule) -> float:
    for value in sorted({float(w) for w in weights.flat}, reverse=True):
        if any(edge.source < 2 for edge in derive_cell(weights, ops, rule, value)):
            return value
    raise AssertionError("the lowest weight keeps every edge")
