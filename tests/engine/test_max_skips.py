"""`derive --max-skips`: at most so many skip connections in the normal cell."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rules_support import EDGES, NAMES, OPS, REAL, matrix

from ssfnas_cli.engine.rules import derive
from ssfnas_cli.errors import InputError


def published_pdarts(weights, max_skips):
    """P-DARTS (train_search.py): zero the weakest skip, choose one op an edge and two edges a node again, and so on."""
    probabilities = weights.copy()
    probabilities[:, OPS.index("none")] = 0
    while True:
        best = probabilities.max(axis=1)
        kept, start = [], 0
        for inputs in (2, 3, 4, 5):
            ranked = sorted(range(start, start + inputs), key=lambda row: best[row])
            kept += sorted(ranked[-2:])
            start += inputs
        chosen = [(row, int(probabilities[row].argmax())) for row in kept]
        skips = [row for row, column in chosen if OPS[column] == "skip"]
        if len(skips) <= max_skips:
            return [(OPS[column], *EDGES[row]) for row, column in chosen]
        weakest = min(skips, key=lambda row: probabilities[row, OPS.index("skip")])
        probabilities[weakest, OPS.index("skip")] = 0


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(1, 57)), st.integers(0, 8), st.sampled_from([1.0, 5.0]))
def test_at_most_so_many_skips_is_the_published_procedure(ranks, max_skips, more):
    """Weights that all differ, and in half of the cases most skips are large."""
    weights = np.array(ranks, dtype=float).reshape(14, 4) / 57
    weights[:, OPS.index("skip")] *= more
    cells = derive({"normal": weights, "reduce": weights}, REAL, "darts", max_skips=max_skips).genotype
    short = {name: op for op, name in NAMES.items()}
    found = [(short[edge.op], edge.source, edge.target) for edge in cells.normal.edges]
    assert found == published_pdarts(weights, max_skips)
    assert cells.reduce == derive({"normal": weights, "reduce": weights}, REAL, "darts").genotype.reduce


@pytest.mark.parametrize("rule", ["argmax", "fairdarts", "fairdarts-edge"])
def test_every_rule_takes_such_a_limit(rule):
    weights = matrix(0.3, **{f"e{s}_{t}_skip": 0.9 - 0.01 * (s + t) for s, t in EDGES})
    weights[:, OPS.index("none")] = 0.1
    normal = derive({"normal": weights, "reduce": weights}, REAL, rule, max_skips=2).genotype.normal
    skips = [(edge.source, edge.target) for edge in normal.edges if edge.op == "skip_connect"]
    assert skips == [(0, 2), (1, 2)], "the strongest two stay"
    assert len(normal.edges) > 2


def test_equal_skips_go_from_the_last_edge_on():
    weights = matrix(0.1, **{f"e{s}_{t}_skip": 0.5 for s, t in EDGES if t < 4})
    normal = derive({"normal": weights, "reduce": weights}, REAL, "darts", max_skips=3).genotype.normal
    assert [(e.source, e.target) for e in normal.edges if e.op == "skip_connect"] == [(0, 2), (1, 2), (0, 3)]


def test_a_skip_that_nothing_can_replace_is_an_error():
    weights = matrix(0.2, e0_2_skip=0.5)
    weights[0, [OPS.index("conv"), OPS.index("pool")]] = 0
    with pytest.raises(
        InputError, match=r"--max-skips 0: no other op has a weight on the edge 0 -> 2 of the normal cell"
    ):
        derive({"normal": weights, "reduce": weights}, REAL, "darts", max_skips=0)
