"""Measures the health of a search at the end of an epoch; `results.health` says what the figures mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from registry import OPS
from registry.space import CELL_TYPES, edge_list
from registry.strategies.base import Strategy
from ssfnas_cli.artifacts.genotype import Genotype
from ssfnas_cli.engine.rules import derive
from ssfnas_cli.errors import InputError
from ssfnas_cli.results.health import Family, genotype_figures, weight_figures


def epoch_health(strategy: Strategy, ops: Sequence[str]) -> dict[str, float | int]:
    """The figures of the newest epoch in a strategy's record. Those of a genotype are left out if there is none.

    Those of the mixing weights are left out if the strategy judges candidates: its weights are 0 or 1 from the first.
    If the search minds a cost, the genotype's is among them.
    """
    record, newest = strategy.record(), _newest_epoch(strategy)
    figures: dict[str, float | int] = {}
    if not strategy.num_candidates:
        figures |= weight_figures(strategy.started_with(record, newest), strategy.weights_at(record, newest))
    genotype = newest_genotype(strategy, ops)
    if genotype is None:
        return figures
    if strategy.context.cost is not None:
        figures["genotype_cost"] = strategy.context.cost.of(genotype_weights(genotype, ops))
    before = derived(strategy.weights_at(record, newest - 1), ops, strategy.default_rule)
    families = {op: op_family(op) for op in ops}
    return figures | genotype_figures(None if before is None else _live_edges(before), _live_edges(genotype), families)


def newest_genotype(strategy: Strategy, ops: Sequence[str]) -> Genotype | None:
    """The genotype of the newest epoch in a strategy's record by its default rule; None if that makes none."""
    return derived(strategy.weights_at(strategy.record(), _newest_epoch(strategy)), ops, strategy.default_rule)


def _newest_epoch(strategy: Strategy) -> int:
    return len(next(iter(strategy.record().values()))) - 1


def derived(weights: Mapping[str, NDArray], ops: Sequence[str], rule: str) -> Genotype | None:
    """The genotype that a rule makes of mixing weights; None if it makes none, or if all of them are zero."""
    if not any(weights[kind].any() for kind in CELL_TYPES):
        return None
    try:
        return derive(weights, ops, rule).genotype
    except InputError:
        return None


def op_family(op: str) -> Family:
    """What an op is to a search that may collapse."""
    facts = OPS.get(op).facts
    if facts.is_none:
        return "none"
    if not facts.parameter_free:
        return "learned"
    return "skip" if facts.drop_path_exempt else "pool"


def _live_edges(genotype: Genotype) -> dict[str, list[tuple[str, int, int]]]:
    return {
        kind: [(edge.op, edge.source, edge.target) for edge in cell.pruned().edges]
        for kind, cell in genotype.cells().items()
    }


def pruned_mixing(genotype: Genotype, ops: Sequence[str], device: torch.device) -> dict[str, Tensor]:
    """`genotype_weights` as tensors on a device."""
    return {kind: torch.from_numpy(weights).to(device) for kind, weights in genotype_weights(genotype, ops).items()}


def genotype_weights(genotype: Genotype, ops: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """Mixing weights [num_edges, num_ops] that are 1 for the genotype's ops, as in its network, and 0 for others."""
    rows = {edge: row for row, edge in enumerate(edge_list())}
    mixing = {}
    for kind, edges in _live_edges(genotype).items():
        weights = np.zeros((len(rows), len(ops)), np.float32)
        for op, source, target in edges:
            weights[rows[source, target], list(ops).index(op)] = 1
        mixing[kind] = weights
    return mixing
