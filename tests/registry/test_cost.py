"""The expected cost against every architecture of a tiny space, two nodes and three ops, written out."""

import itertools

import numpy as np
import pytest
import torch

from registry.cost import SearchCost, costs_of, front
from registry.space import CELL_TYPES, edge_list

EDGES, NONE, FIXED = edge_list(2), 0, 7.0
NUMBERS = np.random.default_rng(3)
OPS = {kind: NUMBERS.uniform(1, 9, (5, 3)) * [0, 1, 1] for kind in CELL_TYPES}
LOGITS = {kind: NUMBERS.normal(size=(5, 3)) for kind in CELL_TYPES}
AS_DARTS = {"choices": (1, 2), "kept": 2}
AS_ARGMAX = {"choices": (0, 1, 2), "kept": None}


def cells_of(choices, kept):
    """Every cell: {edge: op}, and how often its set of edges is drawn."""
    nodes = [[row for row, (_, target) in enumerate(EDGES) if target == node] for node in (2, 3)]
    sets = [list(itertools.combinations(rows, kept or len(rows))) for rows in nodes]
    for pair in itertools.product(*sets):
        rows = [row for part in pair for row in part]
        for ops in itertools.product(choices, repeat=len(rows)):
            yield dict(zip(rows, ops, strict=True)), 1 / (len(sets[0]) * len(sets[1]))


def enumerated(choices, kept, probabilities):
    """The costs of all pairs of cells, and the probability of each: sampled edge by edge and node by node."""
    by_kind = []
    for kind in CELL_TYPES:
        rows = []
        for cell, share in cells_of(choices, kept):
            among = [probabilities[kind][row][list(choices)].sum() for row in range(5)]
            chance = share * np.prod([probabilities[kind][row][op] / among[row] for row, op in cell.items()])
            rows.append((sum(OPS[kind][row, op] for row, op in cell.items()), chance))
        by_kind.append(np.array(rows).T)
    (first, of_first), (second, of_second) = by_kind
    return FIXED + np.add.outer(first, second).ravel(), np.multiply.outer(of_first, of_second).ravel()


def softmaxed(logits):
    return {kind: torch.softmax(values, -1) for kind, values in logits.items()}


@pytest.mark.parametrize("how", [AS_DARTS, AS_ARGMAX], ids=["two inputs a node", "all inputs, none competes"])
def test_the_expected_cost_is_the_mean_over_all_architectures(how):
    cost = SearchCost(OPS, FIXED, **how)
    logits = {kind: torch.tensor(values, requires_grad=True) for kind, values in LOGITS.items()}
    probabilities = softmaxed(logits)
    costs, chances = enumerated(*how.values(), {kind: p.detach().numpy() for kind, p in probabilities.items()})
    assert chances.sum() == pytest.approx(1, rel=1e-12)
    expected = cost.expected(probabilities)
    assert expected.item() == pytest.approx((costs * chances).sum(), rel=1e-12)
    expected.backward()
    for kind, row, op in (("normal", 0, 0), ("normal", 3, 1), ("reduce", 4, 2)):
        ends = []
        for sign in (1, -1):
            moved = {name: values.copy() for name, values in LOGITS.items()}
            moved[kind][row, op] += sign * 1e-5
            given = softmaxed({name: torch.tensor(values) for name, values in moved.items()})
            ends.append(np.prod(enumerated(*how.values(), {n: p.numpy() for n, p in given.items()}), axis=0).sum())
        assert logits[kind].grad[row, op].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("how", [AS_DARTS, AS_ARGMAX], ids=["two inputs a node", "all inputs, none competes"])
def test_the_range_and_the_mean_are_those_of_all_architectures(how):
    cost = SearchCost(OPS, FIXED, **how)
    costs, chances = enumerated(*how.values(), {kind: np.full((5, 3), 1 / 3) for kind in CELL_TYPES})
    assert cost.smallest == pytest.approx(costs.min()) and cost.largest == pytest.approx(costs.max())
    assert cost.mean == pytest.approx((costs * chances).sum())


def test_none_is_no_way_to_seem_cheap_where_it_cannot_be_chosen():
    cost = SearchCost(OPS, FIXED, **AS_DARTS)
    with_none = {kind: values + np.array([9.0, 0, 0]) for kind, values in LOGITS.items()}
    given = [
        softmaxed({kind: torch.tensor(values) for kind, values in logits.items()}) for logits in (LOGITS, with_none)
    ]
    assert cost.expected(given[0]).item() == pytest.approx(cost.expected(given[1]).item(), rel=1e-9)
    none_alone = {kind: torch.eye(3)[[0] * 5] for kind in CELL_TYPES}
    assert torch.isfinite(cost.expected(none_alone))


def test_the_penalty_pulls_towards_the_target_from_both_sides_and_equally_far_away_alike():
    cost = SearchCost(OPS, FIXED, **AS_DARTS, target=50.0, weight=2.0)
    values = torch.tensor([25.0, 49.0, 50.0, 100.0, 200.0], dtype=torch.float64, requires_grad=True)
    penalties = cost.penalty(values, {})
    wanted = 2 * np.abs(np.log(np.array([25, 49, 50, 100, 200]) / 50))
    np.testing.assert_allclose(penalties.detach().numpy(), wanted, atol=1e-12)
    (slopes,) = torch.autograd.grad(penalties.sum(), values)
    np.testing.assert_allclose((slopes * values.detach()).numpy(), [-2, -2, 0, 2, 2], atol=1e-12)
    free = SearchCost(OPS, FIXED, **AS_DARTS)
    assert free.penalty(torch.tensor(free.mean, dtype=torch.float64), {}).item() == pytest.approx(0, abs=1e-12)
    smallest, largest = (free.penalty(torch.tensor(value), {}) for value in (free.smallest, free.largest))
    assert smallest < 0 < largest


def test_the_derived_network_decides_the_direction_and_the_expected_cost_gives_the_gradient():
    given = {kind: torch.full((5, 3), 0.5) for kind in CELL_TYPES}
    asked = []
    for found, target in ((80.0, 50.0), (20.0, 50.0), (None, 50.0)):
        derived = lambda weights, found=found: (asked.append(weights), found)[1]
        cost = SearchCost(OPS, FIXED, **AS_DARTS, target=target, weight=3.0, derived=derived)
        expected = torch.tensor(40.0, dtype=torch.float64, requires_grad=True)
        penalty = cost.penalty(expected, given)
        value = 40.0 if found is None else found
        assert penalty.item() == pytest.approx(3 * abs(np.log(value / target)))
        penalty.backward()
        assert expected.grad.item() == pytest.approx(3 * np.sign(value - target) / value)
    assert all(weights["normal"].dtype == np.float64 for weights in asked) and len(asked) == 3


def test_the_cost_of_an_architecture_by_weights_and_by_genes():
    cell = {0: 1, 1: 2, 2: 2, 4: 1}
    genes = np.full((2, 5), -1, np.int16)
    genes[:, list(cell)] = list(cell.values())
    wanted = FIXED + sum(OPS[kind][row, op] for kind in CELL_TYPES for row, op in cell.items())
    weights = {kind: np.zeros((5, 3), np.float32) for kind in CELL_TYPES}
    for rows in weights.values():
        rows[list(cell), list(cell.values())] = 1
    assert SearchCost(OPS, FIXED, **AS_DARTS).of(weights) == pytest.approx(wanted)
    assert costs_of(genes, OPS, FIXED).shape == () and costs_of(genes, OPS, FIXED) == pytest.approx(wanted)
    np.testing.assert_allclose(costs_of(np.stack([genes] * 3), OPS, FIXED), [wanted] * 3)


def is_beaten(k, points):
    """Whether another point is at least as fit and cheap, and better in one or earlier."""
    return any(
        j != k and fit >= points[k][0] and cost <= points[k][1] and ((fit, cost) != points[k] or j < k)
        for j, (fit, cost) in enumerate(points)
    )


def test_the_front_has_all_that_nothing_beats():
    for seed in range(20):
        numbers = np.random.default_rng(seed)
        points = list(zip(numbers.integers(0, 8, 12).tolist(), numbers.integers(0, 8, 12).tolist(), strict=True))
        found = front(*zip(*points, strict=True))
        assert set(found) == {k for k in range(12) if not is_beaten(k, points)}
        assert [points[k][1] for k in found] == sorted(points[k][1] for k in found)
    assert front([], []) == []
