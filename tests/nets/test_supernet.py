import pytest
import torch
from torch import nn

from registry import LOSSES
from registry.norm import BatchNorm
from registry.ops import FactorizedReduce, ReLUConvBN
from registry.space import edge_list
from ssfnas_cli.nets.search_model import SearchModel
from ssfnas_cli.nets.skeleton import reduction_layers
from ssfnas_cli.nets.supernet import Mixing, Supernet
from ssfnas_cli.settings import PAPER_OPS
from tests.oracle import direct as oracle

SMALL_OPS = ("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_3x3")


def build(channels=4, layers=4, ops=SMALL_OPS, in_channels=3):
    torch.manual_seed(0)
    return Supernet(in_channels, channels, layers, ops).double()


def mixing(num_ops, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        kind: torch.rand(14, num_ops, generator=generator, dtype=torch.float64).requires_grad_()
        for kind in ("normal", "reduce")
    }


def images(side, num=3, channels=3):
    return torch.randn(num, channels, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def direct(net, ops=SMALL_OPS):
    """The same network written directly: every op of every edge for itself, nothing shared."""
    like = oracle.Supernet(3, net.stem[0].out_channels // 3, len(net.cells), ops).double()
    oracle.load_product(like, net.state_dict())
    return like.train(net.training)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("side", "layers"), [(8, 4), (9, 3), (7, 6)])
def test_it_equals_the_plain_sum_over_edges_and_ops(side, layers, training):
    net, x, weights = build(layers=layers), images(side), mixing(len(SMALL_OPS))
    if not training:
        for _ in range(3):
            net(x, weights)  # statistics of some batches
    net.train(training)
    slow = direct(net)(x, weights)
    fast = net(x, weights)
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-11)
    push = torch.randn(fast.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    by_alphas = [torch.autograd.grad((out * push).sum(), list(weights.values())) for out in (fast, slow)]
    for one, other in zip(*by_alphas, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)
    assert all(gradient[:, 1:].abs().sum(1).min() > 0 for gradient in by_alphas[0]), "every edge counts"


def test_one_edge_and_op_alone_reaches_the_output():
    """Each weight is wired to the edge and op it is named for: alone, it gives just that op's output."""
    net = build(layers=3)
    weights = {kind: torch.zeros(14, len(SMALL_OPS), dtype=torch.float64) for kind in ("normal", "reduce")}
    weights["reduce"][0, SMALL_OPS.index("sep_conv_3x3")] = 1.0  # 0 -> 2
    weights["normal"][:] = 1.0
    cell = net.cells[1]
    states = [torch.randn(3, width, 8, 8, dtype=torch.float64) for width in (12, 16)]
    out = cell(states[0], states[1], Mixing.of(weights["reduce"]))
    same = direct(net).cells[1]
    op = same.edges[0][SMALL_OPS.index("sep_conv_3x3")]
    torch.testing.assert_close(out[:, :8], op(same.preprocess0(states[0])))
    assert not out[:, 8:].any()


@pytest.mark.parametrize(("layers", "expected"), [(3, (1, 2)), (4, (1, 2)), (8, (2, 5)), (20, (6, 13)), (5, (1, 3))])
def test_reductions_stand_at_a_third_and_two_thirds(layers, expected):
    assert reduction_layers(layers) == expected
    net = build(channels=2, layers=layers, ops=("skip_connect",))
    assert [number for number, cell in enumerate(net.cells) if cell.reduction] == list(expected)


def test_widths_double_and_the_map_halves_at_each_reduction():
    net, shapes = build(channels=4, layers=8, ops=("skip_connect", "max_pool_3x3")), []
    for cell in net.cells:
        cell.register_forward_hook(lambda module, args, out: shapes.append(tuple(out.shape[1:])))
    net(images(9), mixing(2))
    assert shapes == [(16, 9, 9)] * 2 + [(32, 5, 5)] * 3 + [(64, 3, 3)] * 3
    assert net.num_features == 64


def test_the_older_input_is_reduced_only_after_a_reduction():
    net = build(layers=8, ops=("skip_connect",))
    after = [isinstance(cell.inputs.preprocess0, FactorizedReduce) for cell in net.cells]
    assert after == [False, False, False, True, False, False, True, False]
    assert all(isinstance(cell.inputs.preprocess1, ReLUConvBN) for cell in net.cells)


def test_stride_two_only_on_edges_from_the_two_inputs_of_a_reduction():
    net = build(layers=3, ops=("sep_conv_3x3",))
    for cell in net.cells:
        for (source, _), ops in zip(edge_list(), cell.of_edge, strict=True):
            assert ops["0"][1].stride == ((2, 2) if cell.reduction and source < 2 else (1, 1))


def test_norms_inside_cells_have_no_weights_and_the_stem_has():
    net = build(ops=PAPER_OPS)
    assert net.stem[1].affine
    norms = [module for module in net.cells.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and all(isinstance(module, BatchNorm) and not module.affine for module in norms)


def test_pools_are_normalised_and_shared_and_identities_are_shared():
    cell = build(layers=3, ops=("max_pool_3x3", "skip_connect")).cells[0]
    assert [sorted(home) for home in cell.of_node] == [["0", "1"]] * 5
    assert not any(len(home) for home in cell.of_edge)
    assert isinstance(cell.of_node[0]["0"][1], BatchNorm)
    reduction = build(layers=3, ops=("max_pool_3x3", "skip_connect")).cells[1]
    assert [sorted(home) for home in reduction.of_edge[:2]] == [["1"]] * 2, "a factorized reduction is the edge's own"


@pytest.mark.parametrize("ops", [("none", "skip_connect"), ("skip_connect", "none"), ("avg_pool_3x3",)])
def test_none_adds_nothing_wherever_it_stands(ops):
    net, weights = build(channels=2, layers=3, ops=ops), mixing(len(ops))
    out = net(images(8), weights)
    if "none" in ops:
        with torch.no_grad():
            for values in weights.values():
                values[:, ops.index("none")] += 5
        torch.testing.assert_close(net(images(8), weights), out, rtol=0, atol=0)


@pytest.mark.parametrize("side", [1, 2, 3, 28])
def test_small_and_odd_images_pass(side):
    out = build(channels=2, layers=4, ops=PAPER_OPS)(images(side), mixing(8))
    assert out.shape == (3, 32) and torch.isfinite(out).all()


def test_an_unknown_op_is_refused_with_a_suggestion():
    with pytest.raises(ValueError, match="Did you mean 'sep_conv_3x3'"):
        Supernet(3, 4, 3, ("sep_conv3x3",))


# The model around it


def objective(name):
    plugin = LOSSES.get(name)
    return plugin.factory(plugin.parse_options(), num_classes=3, class_counts=[5, 4, 3])


@pytest.mark.parametrize(
    ("loss", "apart", "modules", "classifier"),
    [
        ("ce", None, {"encoder", "head"}, "head"),
        ("barlow", None, {"encoder", "head", "probe"}, "probe"),
        ("ce", "barlow", {"encoder", "head", "alpha_head"}, "head"),
        ("barlow", "ce", {"encoder", "head", "alpha_head", "probe"}, "probe"),
    ],
)
def test_the_model_has_the_heads_its_losses_need(loss, apart, modules, classifier):
    build_alpha_head = None if apart is None else objective(apart).build_head
    model = SearchModel(build(channels=2, layers=3), 3, objective(loss), None, build_alpha_head)
    assert {name.partition(".")[0] for name, _ in model.named_parameters()} == modules
    assert model.classifier() is getattr(model, classifier)


def test_the_projector_belongs_to_the_weights_a_detached_head_to_a_group_of_its_own_and_the_probe_to_none():
    model = SearchModel(build(channels=2, layers=3), 3, objective("barlow"), None, objective("ce").build_head)
    main, apart = ({id(parameter) for parameter in group} for group in model.weight_groups())
    expected = {id(p) for name, p in model.named_parameters() if name.startswith(("encoder.", "head."))}
    assert main == expected and apart == {id(p) for p in model.alpha_head.parameters()}
    assert not (main | apart) & {id(p) for p in model.probe.parameters()}
