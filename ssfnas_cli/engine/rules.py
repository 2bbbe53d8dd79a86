"""Derivation rules: one function derives a genotype from mixing weights, and the papers' rules are its parameters.

Where edges have weights of their own, the edges into a node are ranked by the product of both (PC-DARTS: parse in
model_search.py). A threshold is compared with the op's own weight: the weights of the inputs of a node add up to 1, so
a product says nothing about how decided an op is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from registry import OPS
from registry.space import EDGE_WEIGHTS, count_nodes, edge_list, edges_into_nodes
from ssfnas_cli.artifacts.genotype import Cell, Edge, Genotype
from ssfnas_cli.errors import InputError, UsageError

FAIRDARTS_THRESHOLD = 0.85


@dataclass(frozen=True)
class Rule:
    """The parameters of a derivation rule.

    Attributes:
        edges_per_node: number of incoming edges with the largest weights that each node keeps; None keeps all.
        ops_per_edge: number of ops with the largest weights that each kept edge keeps.
        thresholded: whether a kept op must reach the threshold.
        none_competes: whether `none` competes with the other ops. If it wins, it takes the place of an op and is then
            removed.
        drop_path: the granularity of drop path that the paper uses.
    """

    edges_per_node: int | None
    ops_per_edge: int
    thresholded: bool
    none_competes: bool
    drop_path: str


RULES = {
    "darts": Rule(2, 1, False, False, "op"),  # DARTS: model_search.py
    "argmax": Rule(None, 1, False, True, "op"),  # paper, Eq. 4
    "fairdarts": Rule(2, 1, True, False, "node"),  # FairDARTS: threshold_sparse
    "fairdarts-edge": Rule(None, 2, True, False, "node"),  # FairDARTS: threshold_edge
}


class Derivation(NamedTuple):
    """A genotype, the threshold that was used (None if the rule has none), and notes for the user."""

    genotype: Genotype
    threshold: float | None
    notes: list[str]


def derive(
    weights: Mapping[str, np.ndarray],
    ops: Sequence[str],
    rule_name: str,
    threshold: float | str = "auto",
    max_skips: int | None = None,
) -> Derivation:
    """Derive both cells from mixing weights.

    Args:
        weights: float64 [num_edges, num_ops] for each cell type, with the edges in the order of `edge_list`; and if
            edges have weights of their own [num_edges], by the names of EDGE_WEIGHTS.
        ops: the names of the columns.
        rule_name: one of RULES.
        threshold: a number, or `auto`, which means 0.85, or less if a node would otherwise have no input.
        max_skips: how many skip connections the normal cell may have; None: any number.

    Raises:
        UsageError: the rule does not exist, or it has no threshold but one was given.
        InputError: a cell would be empty. The message names a threshold at which it would not be. Or the normal cell
            needs more skip connections.
    """
    derived = _derive(weights, ops, rule_name, threshold)
    if max_skips is None:
        return derived
    return _with_fewer_skips(derived, weights, max_skips, lambda less: _derive(less, ops, rule_name, threshold), ops)


def _with_fewer_skips(
    derived: Derivation,
    weights: Mapping[str, np.ndarray],
    max_skips: int,
    derive_again: Callable[[Mapping[str, np.ndarray]], Derivation],
    ops: Sequence[str],
) -> Derivation:
    """Take the weight of the weakest skip connection of the normal cell away, as long as it has more than max_skips.

    Then the rule decides anew, so that another op or edge may take its place (P-DARTS: train_search.py, "restrict
    skipconnect"). Of equal weights the later edge's goes first.
    """
    rows = {edge: row for row, edge in enumerate(edge_list(count_nodes(len(weights["normal"]))))}
    values = np.array(weights["normal"], dtype=np.float64)
    found = [(rows[edge.source, edge.target], ops.index(edge.op)) for edge in _skips(derived)]
    while len(found) > max_skips:
        values[min(found, key=lambda place: (values[place], -place[0]))] = 0
        derived = derive_again({**weights, "normal": values})
        found = [(rows[edge.source, edge.target], ops.index(edge.op)) for edge in _skips(derived)]
        for edge in derived.genotype.normal.edges:
            if values[rows[edge.source, edge.target], ops.index(edge.op)] == 0:
                raise InputError(
                    f"--max-skips {max_skips}: no other op has a weight on the edge {edge.source} -> {edge.target} of "
                    "the normal cell, which the rule keeps: allow more, or take another --rule or --epoch"
                )
    return derived


def _skips(derived: Derivation) -> list[Edge]:
    """The skip connections of the normal cell."""
    return [edge for edge in derived.genotype.normal.edges if OPS.get(edge.op).facts.drop_path_exempt]


def _derive(
    weights: Mapping[str, np.ndarray], ops: Sequence[str], rule_name: str, threshold: float | str
) -> Derivation:
    """As `derive`, with any number of skip connections."""
    if rule_name not in RULES:
        raise UsageError(f"--rule: unknown rule '{rule_name}'. Available: {', '.join(RULES)}, perturbation")
    rule = RULES[rule_name]
    if not all(np.isfinite(values).all() for values in weights.values()):
        raise InputError("the alphas are not finite: nothing can be derived from a search that diverged")
    cells = _weighted_cells(weights)
    if not rule.thresholded:
        if threshold != "auto":
            raise UsageError(f"--threshold: rule '{rule_name}' uses none")
        return Derivation(_build_genotype(cells, ops, rule, -np.inf), None, [])
    if threshold != "auto":
        value = float(threshold)
        return Derivation(_build_genotype(cells, ops, rule, value), value, [])
    weakest = min(best_per_node(cell, ops, rule).min() for cell in cells.values())
    value = min(FAIRDARTS_THRESHOLD, float(weakest))
    notes = []
    if value < FAIRDARTS_THRESHOLD:
        notes.append(
            f"threshold lowered from {FAIRDARTS_THRESHOLD} to {value:.6g}, the best weight of the weakest node, "
            "so that every node keeps an input: the search has not decided there yet; more epochs or a higher alpha_lr "
            "let the weights reach the threshold"
        )
    return Derivation(_build_genotype(cells, ops, rule, value), value, notes)


class WeightedCell(NamedTuple):
    """The weights of the ops [num_edges, num_ops] and of the edges [num_edges] of one cell type."""

    ops: np.ndarray
    edges: np.ndarray


def _weighted_cells(weights: Mapping[str, np.ndarray]) -> dict[str, WeightedCell]:
    """By cell type, in float64; edges without weights of their own have 1."""
    cells = {}
    for kind in [kind for kind in EDGE_WEIGHTS if kind in weights]:
        values = np.asarray(weights[kind], dtype=np.float64)
        edges = weights.get(EDGE_WEIGHTS[kind], np.ones(len(values)))
        cells[kind] = WeightedCell(values, np.asarray(edges, dtype=np.float64))
    return cells


def best_per_node(cell: WeightedCell, ops: Sequence[str], rule: Rule) -> np.ndarray:
    """The largest weight among the ops other than `none` on the edges that a rule keeps for each node, [num_nodes]."""
    best = cell.ops[:, [k for k, op in enumerate(ops) if op != "none"]].max(axis=1)
    return np.array([best[rows].max() for rows in _kept_edges(cell, ops, rule)])


def _kept_edges(cell: WeightedCell, ops: Sequence[str], rule: Rule) -> list[list[int]]:
    """The rows of the edges that each node keeps, ascending. Ties go to the earlier edge."""
    candidates = [k for k, op in enumerate(ops) if rule.none_competes or op != "none"]
    best = (cell.ops[:, candidates] * cell.edges[:, None]).max(axis=1)
    return [
        sorted(sorted(rows, key=lambda row: -best[row])[: rule.edges_per_node])  # sorting is stable
        for rows in edges_into_nodes(count_nodes(len(best)))
    ]


def derive_cell(cell: WeightedCell, ops: Sequence[str], rule: Rule, threshold: float) -> tuple[Edge, ...]:
    """The edges of one cell. Ties go to the earlier edge and the earlier op. A weight may equal the threshold."""
    candidates = [k for k, op in enumerate(ops) if rule.none_competes or op != "none"]
    all_edges = edge_list(count_nodes(len(cell.edges)))
    edges: list[Edge] = []
    for row in [row for rows in _kept_edges(cell, ops, rule) for row in rows]:
        columns = sorted(candidates, key=lambda k: -cell.ops[row, k])[: rule.ops_per_edge]
        edges += [
            Edge(op=ops[k], source=all_edges[row][0], target=all_edges[row][1])
            for k in columns
            if ops[k] != "none" and cell.ops[row, k] >= threshold
        ]
    return tuple(edges)


def _build_genotype(weighted: Mapping[str, WeightedCell], ops: Sequence[str], rule: Rule, threshold: float) -> Genotype:
    cells = {}
    for kind, weights in weighted.items():
        cell = _build_cell(derive_cell(weights, ops, rule, threshold), count_nodes(len(weights.edges)))
        if cell is None:
            raise InputError(_empty_cell_message(kind, weighted, ops, rule, threshold))
        cells[kind] = cell
    return Genotype(normal=cells["normal"], reduce=cells["reduce"], drop_path=rule.drop_path)


def _build_cell(edges: tuple[Edge, ...], num_nodes: int) -> Cell | None:
    """A cell that concatenates the nodes that have an input, or None if no node has one."""
    if not any(edge.source < 2 for edge in edges):
        return None
    whole = Cell(edges=edges, concat=tuple(range(2, 2 + num_nodes)))
    return Cell(edges=edges, concat=tuple(whole.pruned().concat))


def _empty_cell_message(
    kind: str, weighted: Mapping[str, WeightedCell], ops: Sequence[str], rule: Rule, threshold: float
) -> str:
    """The error message for an empty cell. It names the highest threshold, to six digits, that leaves no cell empty."""
    if rule.none_competes:
        return f"the {kind} cell would be empty: 'none' wins every edge from its inputs; use another --rule"
    value = min(_highest_threshold(cell, ops, rule) for cell in weighted.values())
    return f"--threshold {threshold:g}: leaves the {kind} cell empty; {np.floor(value * 1e6) / 1e6:.12g} would not"


def _highest_threshold(cell: WeightedCell, ops: Sequence[str], rule: Rule) -> float:
    for value in sorted({float(w) for w in cell.ops.flat}, reverse=True):
        if any(edge.source < 2 for edge in derive_cell(cell, ops, rule, value)):
            return value
    raise AssertionError("the lowest weight keeps every edge")
