import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rules_support import EDGES, NAMES, OPS, REAL, matrix

from ssfnas_cli.engine.rules import FAIRDARTS_THRESHOLD, derive
from ssfnas_cli.errors import InputError, UsageError


def edges(weights, rule, threshold="auto", kind="normal", other=None, own=None):
    """The edges that `weights` give as (op, from, to), in order; `own` are the weights of edges."""
    both = {"normal": weights, "reduce": weights if other is None else other}
    both |= {} if own is None else {"normal_edges": own, "reduce_edges": own}
    cell = derive(both, REAL, rule, threshold).genotype.cells()[kind]
    short = {name: op for op, name in NAMES.items()}
    return [(short[e.op], e.source, e.target) for e in cell.edges]


# Worked examples


def test_darts_keeps_the_two_best_edges_of_each_node_and_their_best_op():
    weights = matrix(
        **{"e0_2_skip": 0.2, "e1_2_conv": 0.4},
        **{"e0_3_conv": 0.3, "e1_3_pool": 0.1, "e2_3_skip": 0.5},
        **{"e0_4_pool": 0.6, "e1_4_skip": 0.1, "e2_4_conv": 0.2, "e3_4_conv": 0.7, "e3_4_skip": 0.69},
        **{"e1_5_conv": 0.3, "e2_5_pool": 0.3, "e4_5_skip": 0.9},
    )
    assert edges(weights, "darts") == [
        *(("skip", 0, 2), ("conv", 1, 2)),
        *(("conv", 0, 3), ("skip", 2, 3)),
        *(("pool", 0, 4), ("conv", 3, 4)),
        *(("conv", 1, 5), ("skip", 4, 5)),  # 1 and 2 tie: the earlier edge
    ]


def test_each_cell_type_is_derived_from_its_own_weights():
    normal, reduce = matrix(0.1, e0_2_conv=0.9), matrix(0.1, e0_2_pool=0.9)
    assert edges(normal, "darts", other=reduce)[0] == ("conv", 0, 2)
    assert edges(normal, "darts", other=reduce, kind="reduce")[0] == ("pool", 0, 2)


def test_everything_equal_goes_to_the_earlier_edges_and_the_earlier_op():
    assert edges(matrix(0.25), "darts") == [("skip", s, t) for t in (2, 3, 4, 5) for s in (0, 1)]
    flat = edges(matrix(0.9), "fairdarts-edge", 0.85)
    assert flat == [(op, s, t) for s, t in EDGES for op in ("skip", "conv")]


def test_none_never_wins_but_under_argmax_and_hides_no_edge():
    weights = matrix(0.1)
    weights[:, 0] = 0.99
    weights[EDGES.index((2, 5)), OPS.index("conv")] = 0.3
    for rule in ("darts", "fairdarts", "fairdarts-edge"):
        found = edges(weights, rule)
        assert all(op != "none" for op, *_ in found), rule
    assert ("conv", 2, 5) in edges(weights, "darts")


def test_argmax_takes_the_best_op_of_every_edge_and_leaves_out_where_none_wins():
    weights = matrix(0.1, **{f"e{s}_{t}_conv": 0.5 for s, t in EDGES})
    weights[EDGES.index((0, 2)), 0] = 0.6
    weights[EDGES.index((3, 5)), 0] = 0.5  # a tie: `none` is the earlier op
    expected = [("conv", s, t) for s, t in EDGES if (s, t) not in [(0, 2), (3, 5)]]
    assert edges(weights, "argmax") == expected


def test_argmax_may_starve_nodes_which_then_leave_the_concat():
    weights = matrix(0.1)
    weights[:, 0] = 0.9
    weights[EDGES.index((1, 2)), OPS.index("conv")] = 1.0
    weights[EDGES.index((3, 4)), OPS.index("pool")] = 1.0  # from a node without input
    cell = derive({"normal": weights, "reduce": weights}, REAL, "argmax").genotype.normal
    assert [(e.op, e.source, e.target) for e in cell.edges] == [("sep_conv_3x3", 1, 2), ("max_pool_3x3", 3, 4)]
    assert cell.concat == (2,)
    live = cell.pruned()
    assert live.nodes == [2] and [(e.source, e.target) for e in live.dead_edges] == [(3, 4)]


def test_argmax_with_none_everywhere_is_an_error_that_says_so():
    weights = matrix(0.1)
    weights[:, 0] = 0.9
    with pytest.raises(InputError, match=r"the normal cell would be empty: 'none' wins .*use another --rule"):
        edges(weights, "argmax")


def test_fairdarts_keeps_what_reaches_the_threshold_equality_included():
    weights = matrix(
        **{"e0_2_conv": 0.85, "e1_2_skip": 0.8499999},
        **{"e0_3_conv": 0.95, "e1_3_conv": 0.99, "e2_3_conv": 0.97},
        **{"e3_5_pool": 0.9},
    )
    assert edges(weights, "fairdarts", 0.85) == [("conv", 0, 2), ("conv", 1, 3), ("conv", 2, 3), ("pool", 3, 5)]
    cell = derive({"normal": weights, "reduce": weights}, REAL, "fairdarts", 0.85).genotype.normal
    assert cell.concat == (2, 3, 5), "node 4 has no input"


def test_fairdarts_ranks_edges_before_it_looks_at_the_threshold():
    """Two edges a node at most, and one op an edge, however many reach the threshold."""
    weights = matrix(0.9)
    found = edges(weights, "fairdarts", 0.85)
    assert found == [("skip", s, t) for t in (2, 3, 4, 5) for s in (0, 1)]


def test_fairdarts_edge_keeps_up_to_two_ops_of_every_edge():
    weights = matrix(
        **{"e0_2_pool": 0.99, "e0_2_skip": 0.9, "e0_2_conv": 0.86},
        **{"e1_2_conv": 0.85},
        **{"e4_5_conv": 0.9, "e4_5_pool": 0.95},
    )
    found = edges(weights, "fairdarts-edge", 0.85)
    assert found == [("pool", 0, 2), ("skip", 0, 2), ("conv", 1, 2), ("pool", 4, 5), ("conv", 4, 5)]


def test_nodes_fed_only_by_missing_ones_are_kept_as_edges_but_not_in_the_concat():
    weights = matrix(e0_2_conv=0.9, e3_4_conv=0.95, e4_5_skip=0.95)
    cell = derive({"normal": weights, "reduce": weights}, REAL, "fairdarts", 0.85).genotype.normal
    assert [(e.source, e.target) for e in cell.edges] == [(0, 2), (3, 4), (4, 5)]
    assert cell.concat == (2,) and cell.pruned().dead_nodes == [3, 4, 5]


# Thresholds


def test_auto_is_085_where_every_node_has_that_much():
    weights = matrix(**{f"e0_{t}_conv": 0.85 for t in (2, 3, 4, 5)}, e1_2_skip=0.86, e1_3_skip=0.84)
    got = derive({"normal": weights, "reduce": weights}, REAL, "fairdarts")
    assert got.threshold == FAIRDARTS_THRESHOLD == 0.85 and got.notes == []
    assert edges(weights, "fairdarts") == [
        *(("conv", 0, 2), ("skip", 1, 2)),
        *(("conv", 0, 3), ("conv", 0, 4), ("conv", 0, 5)),
    ]


def test_auto_is_lowered_to_the_best_weight_of_the_weakest_node_and_says_so():
    normal = matrix(**{f"e0_{t}_conv": 0.9 for t in (2, 3, 4, 5)}, e1_2_skip=0.61, e1_3_skip=0.59)
    reduce = matrix(**{f"e1_{t}_pool": 0.7 for t in (2, 3, 5)}, e3_4_pool=0.6)
    got = derive({"normal": normal, "reduce": reduce}, REAL, "fairdarts")
    assert got.threshold == 0.6
    (note,) = got.notes
    assert note.startswith("threshold lowered from 0.85 to 0.6,")
    assert ("skip", 1, 2) in edges(normal, "fairdarts", other=reduce)
    assert ("skip", 1, 3) not in edges(normal, "fairdarts", other=reduce)
    assert got.genotype.normal.concat == got.genotype.reduce.concat == (2, 3, 4, 5)


def test_auto_looks_past_none():
    weights = matrix(0.4)
    weights[:, 0] = 0.99
    assert derive({"normal": weights, "reduce": weights}, REAL, "fairdarts").threshold == 0.4


def test_a_fixed_threshold_that_empties_a_cell_names_one_that_would_not():
    normal = matrix(0.2, e0_4_conv=0.7123456789, e2_3_conv=0.8)  # 2 -> 3 alone has no input
    normal[:, 0] = 0.97
    reduce = matrix(0.1, e1_3_pool=0.3333333333)
    for first, second in [(normal, reduce), (reduce, normal)]:
        with pytest.raises(InputError) as error:
            edges(first, "fairdarts", 0.9, other=second)
        found = re.fullmatch(r"--threshold 0\.9: leaves the normal cell empty; (\S+) would not", str(error.value))
        value = float(found[1])
        assert value == 0.333333 and edges(first, "fairdarts", value, other=second)
        with pytest.raises(InputError):
            edges(first, "fairdarts", value + 1e-5, other=second)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1234.5678912])
def test_the_threshold_that_is_named_works_whatever_the_weights_size(scale):
    rng = np.random.default_rng(0)
    both = {kind: scale * rng.random((14, 4)) for kind in ("normal", "reduce")}
    with pytest.raises(InputError) as error:
        derive(both, REAL, "fairdarts", 2 * scale)
    derive(both, REAL, "fairdarts", float(re.search(r"empty; (\S+) would", str(error.value))[1]))


@pytest.mark.parametrize("rule", ["darts", "argmax"])
def test_a_threshold_for_a_rule_without_one_is_refused(rule):
    with pytest.raises(UsageError, match=f"--threshold: rule '{rule}' uses none"):
        edges(matrix(0.3), rule, 0.5)


def test_an_unknown_rule_is_refused():
    with pytest.raises(UsageError, match=r"unknown rule 'dart'\. Available: darts, argmax, fairdarts, fairdarts-edge"):
        edges(matrix(0.3), "dart")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rule", ["darts", "argmax", "fairdarts", "fairdarts-edge"])
def test_weights_that_are_not_finite_are_refused(value, rule):
    with pytest.raises(InputError, match="not finite"):
        edges(matrix(0.3), rule, other=matrix(0.3, e0_2_conv=value))


def test_the_rule_decides_the_form_of_drop_path():
    weights = matrix(0.9)
    weights[:, 0] = 0
    both = {"normal": weights, "reduce": weights}
    forms = {rule: derive(both, REAL, rule).genotype.drop_path for rule in ("darts", "argmax", "fairdarts")}
    assert forms == {"darts": "op", "argmax": "op", "fairdarts": "node"}


def test_ops_without_none_and_float32_weights_are_fine():
    weights = np.full((14, 2), 0.5, np.float32)
    got = derive({"normal": weights, "reduce": weights}, ("skip_connect", "sep_conv_3x3"), "darts")
    assert {edge.op for edge in got.genotype.normal.edges} == {"skip_connect"}
    thresholded = derive({"normal": weights, "reduce": weights}, ("skip_connect", "sep_conv_3x3"), "fairdarts")
    assert thresholded.threshold == 0.5


# Weights of edges


def own_weights(default=0.5, **entries):
    """Weights of edges [14] with `e0_2=0.9` (from 0 to 2) over a default."""
    weights = np.full(14, default)
    for key, value in entries.items():
        weights[EDGES.index((int(key[1]), int(key[3])))] = value
    return weights


def test_the_product_ranks_the_edges_of_a_node_and_ops_rank_within_an_edge():
    weights = matrix(0.1, e0_3_conv=0.9, e1_3_pool=0.5, e2_3_skip=0.4, e2_3_conv=0.3)
    assert [edge for edge in edges(weights, "darts") if edge[2] == 3] == [("conv", 0, 3), ("pool", 1, 3)]
    own = own_weights(e0_3=0.2, e1_3=0.2, e2_3=0.6)  # 0.18, 0.1 and 0.24
    assert [edge for edge in edges(weights, "darts", own=own) if edge[2] == 3] == [("conv", 0, 3), ("skip", 2, 3)]
    assert edges(weights, "argmax", own=own) == edges(weights, "argmax"), "it keeps every edge"


def test_a_threshold_is_compared_with_the_weight_of_the_op_alone():
    weights = matrix(0.1, e0_2_conv=0.9, e1_2_pool=0.86, e0_3_skip=0.88, e1_3_conv=0.95, e2_3_conv=0.9)
    own = own_weights(0.25, e0_3=0.5)
    assert edges(weights, "fairdarts", 0.87, own=own) == [("conv", 0, 2), ("skip", 0, 3), ("conv", 1, 3)]


def test_an_automatic_threshold_is_that_of_the_edges_that_are_kept():
    weights = matrix(0.9)
    weights[2:5] = matrix(0.1, e0_3_skip=0.6, e1_3_conv=0.95, e2_3_conv=0.5)[2:5]
    both = {"normal": weights, "reduce": weights}
    assert derive(both, REAL, "fairdarts").threshold == FAIRDARTS_THRESHOLD
    own = own_weights(0.5, e1_3=0.01)
    assert derive({**both, "normal_edges": own, "reduce_edges": own}, REAL, "fairdarts").threshold == 0.6
    assert ("skip", 0, 3) in edges(weights, "fairdarts", own=own)


def test_weights_of_edges_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="not finite"):
        edges(matrix(0.3), "darts", own=own_weights(e0_2=np.nan))


# Against the procedures as published


def published_pc_darts(weights, own, ops):
    """parse in model_search.py of PC-DARTS: the weights of an edge's ops are scaled by its own, then as DARTS."""
    return published_darts([[value * scale for value in row] for row, scale in zip(weights, own, strict=True)], ops)


def published_darts(weights, ops):
    """model_search.py, 133-152: pairs (op, from), two for each node."""
    gene, n, start, none = [], 2, 0, ops.index("none")
    for i in range(4):
        rows = weights[start : start + n]
        chosen = sorted(range(i + 2), key=lambda x: -max(rows[x][k] for k in range(len(ops)) if k != none))[:2]
        for j in chosen:
            best = None
            for k in range(len(ops)):
                if k != none and (best is None or rows[j][k] > rows[j][best]):
                    best = k
            gene.append((ops[best], j, i + 2))
        start, n = start + n, n + 1
    return gene


def published_fairdarts(weights, ops, threshold, method):
    """utils.py, 143-189, of ops without `none`; its ties in threshold_edge go to the later op, ours to the earlier."""
    gene, n, start = [], 2, 0
    for i in range(4):
        rows = weights[start : start + n]
        chosen = range(i + 2)
        if method == "sparse":
            chosen = sorted(chosen, key=lambda x: -max(rows[x]))[:2]
        for j in chosen:
            top = sorted(enumerate(rows[j]), key=lambda item: -item[1])[: 1 if method == "sparse" else 2]
            gene += [(ops[k], j, i + 2) for k, value in top if value >= threshold]
        start, n = start + n, n + 1
    return gene


# few different values, so that ties and equality with the threshold are common
VALUES = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.8499, 0.85, 0.85001, 0.9, 1.0]) | st.floats(0, 1)
WEIGHTS = arrays(np.float64, (14, 4), elements=VALUES)


@settings(max_examples=60, deadline=None)
@given(WEIGHTS)
def test_darts_is_the_published_procedure(weights):
    assert sorted(edges(weights, "darts")) == sorted(published_darts(weights.tolist(), OPS))


@settings(max_examples=60, deadline=None)
@given(WEIGHTS, arrays(np.float64, 14, elements=st.sampled_from([0.125, 0.25, 0.5, 1.0])))
def test_with_weights_of_edges_darts_is_the_published_procedure_of_pc_darts(weights, own):
    assert sorted(edges(weights, "darts", own=own)) == sorted(published_pc_darts(weights.tolist(), own.tolist(), OPS))


@settings(max_examples=60, deadline=None)
@given(WEIGHTS, st.sampled_from([0.1, 0.5, 0.85, 0.9]), st.sampled_from(["sparse", "edge"]))
def test_fairdarts_is_the_published_procedure(weights, threshold, method):
    rule = {"sparse": "fairdarts", "edge": "fairdarts-edge"}[method]
    expected = published_fairdarts(weights[:, 1:].tolist(), OPS[1:], threshold, method)
    if any(source < 2 for _, source, _ in expected):
        assert sorted(edges(weights, rule, threshold)) == sorted(expected)
    else:
        with pytest.raises(InputError, match="leaves the normal cell empty"):
            edges(weights, rule, threshold)


@settings(max_examples=60, deadline=None)
@given(WEIGHTS, WEIGHTS, st.sampled_from(["fairdarts", "fairdarts-edge"]))
def test_auto_feeds_every_node(normal, reduce, rule):
    got = derive({"normal": normal, "reduce": reduce}, REAL, rule)
    assert got.threshold <= 0.85
    for cell in got.genotype.cells().values():
        assert cell.pruned().nodes == [2, 3, 4, 5] and not cell.pruned().dead_edges


# At most so many skip connections
