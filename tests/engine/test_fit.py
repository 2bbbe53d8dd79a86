"""Genotypes that are fitted into a size: exactly the least loss, against all possibilities, by every rule."""

import itertools
import logging
from types import SimpleNamespace

import numpy as np
import pytest

from registry.space import CELL_TYPES
from ssfnas_cli.engine.fit import FittingSpace, Limits, Option, _least_loss, _smallest, _unbeaten, fit
from ssfnas_cli.engine.rules import RULES, derive
from ssfnas_cli.errors import InputError
from ssfnas_cli.nets.parts import NetworkShape, Space

OPS = ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5")
SHAPE = NetworkShape(4, 5, "cifar", 3, 12, 1)


def space_of(ops=OPS, **most):
    return FittingSpace(Limits(most, SHAPE.channels, SHAPE.layers), Space(SHAPE, ops, {}))


def random_weights(seed, ops=OPS):
    numbers = np.random.default_rng(seed)
    return {kind: numbers.random((14, len(ops))) for kind in CELL_TYPES}


@pytest.mark.parametrize("num_sizes", [1, 2])
@pytest.mark.parametrize("seed", range(8))
def test_the_least_loss_is_that_of_all_combinations(seed, num_sizes):
    """Three nodes of two edges with three options and none."""
    numbers, edges = np.random.default_rng(seed), []
    for edge in range(6):
        options = [Option(1.0, (0.0,) * num_sizes, ("normal", edge), ())]
        for op in range(3):
            size = tuple(float(value) for value in numbers.integers(1, 9, num_sizes))
            options.append(Option(float(numbers.random()), size, ("normal", edge), (str(op),)))
        edges.append(options)
    possible = []
    for chosen in itertools.product(*edges):
        if all(chosen[k].ops or chosen[k + 1].ops for k in (0, 2, 4)):
            sizes = tuple(sum(one.size[k] for one in chosen) for k in range(num_sizes))
            possible.append((sum(one.loss for one in chosen), sizes))
    nodes = [[_unbeaten(edges[k]), _unbeaten(edges[k + 1])] for k in (0, 2, 4)]
    for budget in ([12.0] * num_sizes, [20.0] * num_sizes, [15.0, 25.0][:num_sizes]):
        fitting = [loss for loss, sizes in possible if all(a <= b for a, b in zip(sizes, budget, strict=True))]
        best = _least_loss(nodes, budget)
        assert best is not None or not fitting
        if best is not None:
            assert best.loss == pytest.approx(min(fitting))
            assert sum(one.loss for one in best.options()) == pytest.approx(best.loss)
            assert all(a <= b for a, b in zip(best.size, budget, strict=True))
    least = np.sum([_smallest(node) for node in nodes], axis=0)
    assert all(least[k] == min(sizes[k] for _, sizes in possible) for k in range(num_sizes))


def kept_weight(genotype, weights):
    rows = {edge: row for row, edge in enumerate(itertools.chain(*([(s, t) for s in range(t)] for t in range(2, 6))))}
    return sum(
        weights[kind][rows[edge.source, edge.target], OPS.index(edge.op)]
        for kind, cell in genotype.cells().items()
        for edge in cell.edges
    )


@pytest.mark.parametrize("rule", RULES)
def test_every_rules_genotype_is_fitted(rule, caplog):
    weights = random_weights(1)
    genotype = derive(weights, OPS, rule).genotype
    free = space_of(params=1e9, macs=1e9)
    params, macs = free.size_of(genotype)
    assert fit(genotype, weights, RULES[rule], free) is genotype and not caplog.records
    with caplog.at_level(logging.WARNING, "ssfnas"):
        space = space_of(params=0.9 * params, macs=0.85 * macs)
        fitted = fit(genotype, weights, RULES[rule], space)
    size = space.size_of(fitted)
    assert space.fits(size) and size != (params, macs)
    assert fit(genotype, weights, RULES[rule], space) == fitted, "it is deterministic"
    assert fit(fitted, weights, RULES[rule], space) is fitted
    lost = kept_weight(genotype, weights) - kept_weight(fitted, weights)
    for one_less in (params * 0.8, params * 0.7):  # the smaller, the more is lost
        smaller = fit(genotype, weights, RULES[rule], space_of(params=one_less))
        assert kept_weight(genotype, weights) - kept_weight(smaller, weights) >= lost - 1e-9 or one_less > size[0]
    for kind, cell in genotype.cells().items():
        live, before = fitted.cells()[kind].pruned(), cell.pruned()
        assert live.nodes == before.nodes and live.concat == before.concat, "the nodes stay"
        assert {(e.source, e.target) for e in live.edges} <= {(e.source, e.target) for e in before.edges}
        for node in live.nodes:
            on_edges = [(e.op, e.source) for e in live.edges if e.target == node]
            assert len(set(on_edges)) == len(on_edges) <= sum(e.target == node for e in before.edges)
    (told, *_) = [record.getMessage() for record in caplog.records]
    assert " became " in told and " -> " in told and "(--cost-channels, --cost-layers)" in told


def test_where_nothing_else_is_free_ops_are_dropped_and_the_smallest_is_named():
    ops = ("none", "sep_conv_3x3", "sep_conv_5x5")
    weights = random_weights(2, ops)
    genotype = derive(weights, ops, "darts").genotype
    with pytest.raises(InputError, match=r"--max-params 1: no network on the edges .* the least is ") as told:
        fit(genotype, weights, RULES["darts"], space_of(ops, params=1.0))
    least = float(str(told.value).partition("the least is ")[2].split("k ")[0]) * 1e3
    smallest = fit(genotype, weights, RULES["darts"], space_of(ops, params=least * 1.001))
    for cell in smallest.cells().values():
        assert sorted(edge.target for edge in cell.edges) == [2, 3, 4, 5], "one input a node"
        assert {edge.op for edge in cell.edges} == {"sep_conv_3x3"}
    with pytest.raises(InputError):
        fit(genotype, weights, RULES["darts"], space_of(ops, params=least * 0.99))


def test_a_pair_of_limits_that_only_single_networks_meet_is_refused():
    option = lambda edge, *size: Option(0.0, size, ("normal", edge), ("op",))
    nodes = [[[option(0, 1.0, 9.0), option(0, 9.0, 1.0)]]]
    assert _least_loss(nodes, [5.0, 5.0]) is None
    assert _least_loss(nodes, [5.0, 9.0]).size == (1.0, 9.0)


def test_without_the_data_set_the_counting_is_said(tmp_path, caplog):
    run = SimpleNamespace(config={"data": {"path": str(tmp_path / "gone")}}, stem="cifar")
    settings = SimpleNamespace(ops=OPS, op_options={})
    with caplog.at_level(logging.WARNING, "ssfnas"):
        space = Limits({"params": 1e6}, 36, 20).of(run, settings).space
    assert space.shape == NetworkShape(36, 20, "cifar", 10, 32, 3) and "counting with num_classes 10" in caplog.text


def test_ops_without_weight_never_take_a_place():
    """Those that a progressive search has dropped: on every edge two of four are left."""
    weights, numbers = random_weights(2), np.random.default_rng(2)
    for values in weights.values():
        for row in values:
            row[numbers.choice([1, 2, 3, 4], 2, replace=False)] = 0
    genotype = derive(weights, OPS, "darts").genotype
    (params,) = space_of(params=1e9).size_of(genotype)
    fitted = fit(genotype, weights, RULES["darts"], space_of(params=0.9 * params))
    assert fitted.cells() != genotype.cells()
    rows = {edge: row for row, edge in enumerate((s, t) for t in range(2, 6) for s in range(t))}
    for kind, cell in fitted.cells().items():
        assert all(weights[kind][rows[edge.source, edge.target], OPS.index(edge.op)] > 0 for edge in cell.edges)
