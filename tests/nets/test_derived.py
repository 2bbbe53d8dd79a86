import math

import pytest
import torch
import torch.nn.functional as F

from ssfnas_cli.artifacts.genotype import Cell, Edge, Genotype
from ssfnas_cli.nets import derived
from ssfnas_cli.nets.derived import DerivedEncoder, drop_path_factors
from ssfnas_cli.nets.heads import Classifier


def cell(*edges, concat=(2, 3, 4, 5)):
    """`cell("skip_connect 0 2", ...)`: op, from, to."""
    parts = [edge.split() for edge in edges]
    return Cell(edges=tuple(Edge(op=op, source=int(a), target=int(b)) for op, a, b in parts), concat=concat)


DENSE = cell(
    *("sep_conv_3x3 0 2", "skip_connect 1 2", "dil_conv_3x3 0 3", "max_pool_3x3 2 3"),
    *("skip_connect 0 4", "sep_conv_3x3 3 4", "avg_pool_3x3 1 5", "dil_conv_3x3 4 5"),
)
# Node 3 has no input; 4 has only an edge from 3, 5 only one from 4: all die. Node 2 lives.
DYING = cell("skip_connect 0 2", "sep_conv_3x3 1 2", "sep_conv_3x3 3 4", "skip_connect 4 5")


def encoder(normal=DENSE, reduce=None, channels=4, layers=5, drop_path="op", **options):
    torch.manual_seed(0)
    genotype = Genotype(normal=normal, reduce=reduce or normal, drop_path=drop_path, **options)
    return DerivedEncoder(genotype, 3, channels, layers).double()


def images(side, num=4):
    return torch.randn(num, 3, side, side, generator=torch.Generator().manual_seed(side), dtype=torch.float64)


def slow(net, genotype, x):
    """The derived network again: whatever flows along every edge of the genotype, added up node by node."""
    older, newer = net.stem(x)
    for layer in net.cells:
        plan = genotype.reduce if layer.reduction else genotype.normal
        states = dict(enumerate(layer.inputs(older, newer)))
        ops = iter(layer.ops)
        for node in range(2, 10):
            fed = [e for e in plan.edges if e.target == node and e.source in states]
            for edge in sorted(fed, key=lambda e: e.source):
                states[node] = states.get(node, 0.0) + next(ops)(states[edge.source])
        assert next(ops, None) is None, "an op that the genotype does not ask for"
        older, newer = newer, torch.cat([states[node] for node in plan.concat if node in states], 1)
    return newer.mean((2, 3))


@pytest.mark.parametrize("side", [8, 7, 9, 2])
@pytest.mark.parametrize("normal", [DENSE, DYING], ids=["dense", "dying"])
def test_it_equals_the_plain_sum_over_the_genotypes_edges(normal, side):
    net = encoder(normal)
    genotype = Genotype(normal=normal, reduce=normal)
    torch.testing.assert_close(net(images(side)).features, slow(net, genotype, images(side)))


def test_nodes_without_input_are_pruned_to_a_fixpoint_and_the_concat_shrinks():
    net = encoder(DYING, layers=3)
    for layer in net.cells:
        assert layer.nodes == [2] and layer.concat == [2] and len(layer.ops) == 2
    assert [layer.out_channels for layer in net.cells] == [4, 8, 16]
    assert net(images(8)).features.shape == (4, 16)


def test_the_width_is_that_of_the_nodes_that_exist_in_each_kind_of_cell():
    sparse = cell("sep_conv_3x3 0 2", "skip_connect 1 4", "skip_connect 2 5")  # 3 is missing
    net = encoder(DENSE, sparse, channels=4, layers=6)  # reductions at 2 and 4
    assert [layer.out_channels for layer in net.cells] == [16, 16, 24, 32, 48, 64]
    out = net(images(8))
    assert out.features.shape == (4, 64) and out.aux_map.shape == (4, 48, 2, 2)


def test_the_concat_keeps_the_genotypes_order_and_may_leave_nodes_out():
    part = cell("skip_connect 0 2", "sep_conv_3x3 0 3", "dil_conv_3x3 2 4", concat=(4, 2))
    net = encoder(part, layers=1)
    layer = net.cells[0]
    assert layer.concat == [4, 2] and layer.out_channels == 16  # a reduction: twice 4, two nodes


def test_the_same_op_twice_on_an_edge_has_weights_of_its_own_each():
    twice = cell("sep_conv_3x3 0 2", "sep_conv_3x3 0 2", concat=(2,))
    net = encoder(twice, layers=1)
    ops = net.cells[0].ops
    assert len(ops) == 2 and ops[0] is not ops[1]
    states = net.cells[0].inputs(*net.stem(images(8)))
    expected = (ops[0](states[0]) + ops[1](states[0])).mean((2, 3))
    torch.testing.assert_close(net(images(8)).features, expected)


def test_none_edges_are_left_out():
    net = encoder(cell("none 0 2", "skip_connect 1 2", "none 0 3", "skip_connect 3 4", concat=(2, 3, 4)), layers=1)
    assert net.cells[0].nodes == [2] and len(net.cells[0].ops) == 1


def test_norms_have_weights_and_pools_have_no_norm():
    net = encoder(cell("max_pool_3x3 0 2", "avg_pool_3x3 1 2", concat=(2,)), layers=3)
    assert not [name for name, _ in net.cells.named_parameters() if ".ops." in name]
    norms = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms and all(norm.affine for norm in norms)


def test_the_auxiliary_map_is_that_of_the_cell_at_two_thirds():
    net = encoder(layers=8)
    maps = []
    for layer in net.cells:
        layer.register_forward_hook(lambda module, args, out: maps.append(out))
    out = net(images(8))
    assert net.aux_layer == 5 and torch.equal(out.aux_map, maps[5])
    assert net.aux_channels == maps[5].shape[1]


# Drop path


def test_drop_path_zeroes_whole_samples_and_scales_the_rest():
    torch.manual_seed(0)
    x = torch.rand(4000, 2, 2, 2) + 1
    out = x * drop_path_factors(x, 0.25)
    dropped = (out == 0).flatten(1).all(1)
    torch.testing.assert_close(out[~dropped], x[~dropped] / 0.75)
    assert (out[dropped] == 0).all() and 0.22 < dropped.double().mean() < 0.28


@pytest.fixture
def dropped(monkeypatch):
    """Records what drop path was called on; the values pass unchanged."""
    calls = []
    monkeypatch.setattr(
        derived, "drop_path_factors", lambda x, rate: (calls.append((x.shape, rate)), x.new_ones(len(x), 1, 1, 1))[1]
    )
    return calls


def test_drop_path_per_op_exempts_identities_but_not_reductions(dropped):
    net = encoder(cell("skip_connect 0 2", "sep_conv_3x3 1 2", "max_pool_3x3 0 3", concat=(2, 3)), layers=3)
    net.drop_path = 0.1
    net(images(8))
    # The normal cell drops the convolution and the pool; each of the two reductions also the factorized reduction.
    assert [rate for _, rate in dropped] == [0.1] * (2 + 3 + 3)


def test_drop_path_per_node_drops_the_sum_identities_included(dropped):
    net = encoder(cell("skip_connect 0 2", "sep_conv_3x3 1 2", "skip_connect 0 3", concat=(2, 3)), drop_path="node")
    net.drop_path = 0.1
    net(images(8))
    assert len(dropped) == 2 * len(net.cells)


@pytest.mark.parametrize("form", ["op", "node"])
def test_drop_path_is_off_in_evaluation_and_at_rate_zero(form, dropped):
    net = encoder(drop_path=form)
    net(images(8))
    net.drop_path = 0.5
    net.eval()(images(8))
    assert not dropped


def test_dropping_a_node_drops_all_of_it_for_that_sample():
    net = encoder(cell("skip_connect 0 2", "skip_connect 1 2", concat=(2,)), layers=1, drop_path="node")
    net.drop_path = 0.5
    torch.manual_seed(1)
    features = net(images(8, num=40)).features
    gone = (features == 0).all(1)
    assert 5 < gone.sum() < 35 and (features[~gone] != 0).all()


def test_per_op_each_edge_draws_its_own_samples(monkeypatch):
    net = encoder(cell("sep_conv_3x3 0 2", "sep_conv_3x3 1 3", concat=(2, 3)), layers=1)
    net.drop_path = 0.5
    torch.manual_seed(1)
    features = net(images(8, num=40)).features
    gone = [(part == 0).all(1) for part in features.chunk(2, 1)]
    assert all(5 < part.sum() < 35 for part in gone) and not torch.equal(*gone)


# Sizes


@pytest.mark.parametrize("side", [1, 2, 5, 7, 13, 28])
def test_odd_and_tiny_images_train(side):
    torch.manual_seed(0)
    net = Classifier.of_genotype(Genotype(normal=DENSE, reduce=DYING), 3, 4, 5, 3, aux=True)
    logits, aux = net.with_aux(images(side, num=2).float())
    loss = F.cross_entropy(logits, torch.tensor([0, 1])) + F.cross_entropy(aux, torch.tensor([0, 1]))
    loss.backward()
    assert logits.shape == aux.shape == (2, 3) and math.isfinite(loss.item())
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_shallow_stacks_are_built(layers):
    assert encoder(layers=layers)(images(8)).features.shape[0] == 4


def test_options_of_an_op_reach_it():
    with pytest.raises(ValueError, match="'skip_connect' has no option 'size'"):
        encoder(op_options={"skip_connect": {"size": 3}})
