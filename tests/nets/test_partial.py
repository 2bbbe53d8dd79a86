"""Partial channels and weights of edges, against a supernet that computes edge by edge (tests/oracle/partial.py)."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from registry.space import CELL_TYPES, EDGE_WEIGHTS, edges_into_nodes
from ssfnas_cli.native import cells
from ssfnas_cli.nets.compiled.side_by_side import SideBySide
from ssfnas_cli.nets.partial import join, split
from ssfnas_cli.nets.supernet import Supernet
from ssfnas_cli.settings import PAPER_OPS
from tests.oracle import direct as oracle
from tests.oracle import partial as slow

NUM_OPS = len(PAPER_OPS)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(params=["torch", "kernels"])
def build(request):
    """Make a supernet in float64 that torch or the compiled kernels compute, and the direct one with its weights."""
    kernels = cells.load(torch.float64) if request.param == "kernels" else None
    if request.param == "kernels" and kernels is None:
        pytest.skip("no C++ compiler")

    def make(k: int, channels: int = 4, layers: int = 3):
        torch.manual_seed(0)
        net = Supernet(3, channels, layers, PAPER_OPS, partial_channels=k).double()
        net.compile_with(kernels)
        direct = slow.Supernet(3, channels, layers, PAPER_OPS, k).double()
        oracle.load_product(direct, net.state_dict())
        return net, direct

    return make


def leaves(zeros: bool = False) -> dict[str, Tensor]:
    """Mixing weights and weights of edges; with some that are exactly zero."""
    mixing = {kind: draw(14, NUM_OPS, seed=5 + len(kind)).sigmoid() for kind in CELL_TYPES}
    mixing |= {name: draw(14, seed=len(name)).sigmoid() for name in EDGE_WEIGHTS.values()}
    if zeros:
        mixing = {name: torch.where(values < 0.5, 0.0, values) for name, values in mixing.items()}
        mixing["normal_edges"][edges_into_nodes()[2]] = 0  # nothing at all comes into a node
    return {name: values.requires_grad_() for name, values in mixing.items()}


def gradients(net, x, mixing):
    out = net(x, mixing)
    (out * draw(*out.shape, seed=2)).sum().backward()
    return out


@pytest.mark.parametrize(
    ("k", "side", "num", "zeros"),
    [(1, 8, 3, False), (2, 8, 4, False), (2, 9, 4, True), (4, 8, 6, False), (4, 9, 5, True)],
)
def test_result_and_gradients_are_those_of_the_direct_supernet(build, k, side, num, zeros):
    net, direct = build(k)
    x, ours, theirs = draw(num, 3, side, side, seed=1), leaves(zeros), leaves(zeros)
    torch.testing.assert_close(gradients(net, x, ours), gradients(direct, x, theirs), rtol=1e-9, atol=1e-11)
    for name, given in ours.items():
        live = given != 0
        if name in CELL_TYPES:
            live &= (ours[EDGE_WEIGHTS[name]] != 0)[:, None]
            live[:, PAPER_OPS.index("none")] = False
        assert not given.grad[~live].any(), "what is not computed has no gradient"
        torch.testing.assert_close(given.grad[live], theirs[name].grad[live], rtol=1e-7, atol=1e-9)
    expected = oracle.product_gradients(direct)
    for name, value in net.named_parameters():
        got = torch.zeros_like(value) if value.grad is None else value.grad
        torch.testing.assert_close(got, expected[name], rtol=1e-7, atol=1e-9, msg=name)


def test_an_edge_without_a_weight_of_its_own_counts_once_if_an_op_has_one(build):
    """As strategies that choose architectures propose them: `none` lets channels pass, an edge without ops does not."""
    net, direct = build(4)
    mixing = {kind: torch.zeros(14, NUM_OPS, dtype=torch.float64) for kind in CELL_TYPES}
    for kind, place in (("normal", 3), ("reduce", 6)):
        mixing[kind][[0, 2, 8, 13], place] = 1
        mixing[kind][[1, 5], PAPER_OPS.index("none")] = 1
    edges = {EDGE_WEIGHTS[kind]: torch.zeros(14, dtype=torch.float64) for kind in CELL_TYPES}
    for weights in edges.values():
        weights[[0, 1, 2, 5, 8, 13]] = 1
    x = draw(4, 3, 8, 8, seed=1)
    torch.testing.assert_close(net(x, mixing), direct(x, mixing | edges), rtol=1e-9, atol=1e-11)


def test_channels_are_shuffled_as_published():
    seen, passed = draw(2, 3, 4, 5, seed=1), draw(2, 9, 4, 5, seed=2)
    joined = join(seen, passed)
    expected = torch.nn.ChannelShuffle(4)(torch.cat([seen, passed], dim=1))
    assert torch.equal(joined, expected) and torch.equal(joined[:, 0], seen[:, 0])
    assert torch.equal(joined[:, 1:4], passed[:, 0::3]) and torch.equal(joined[:, 4], seen[:, 1])
    one, others = split(joined, 4)
    assert one.shape[1] == 3 and torch.equal(torch.cat([one, others], dim=1), joined)


def test_one_in_one_channel_without_weights_of_edges_is_the_full_supernet_bit_for_bit():
    weights = {kind: draw(14, NUM_OPS, seed=5).float() for kind in CELL_TYPES}
    results = []
    for more in ({}, {"partial_channels": 1}):
        torch.manual_seed(0)
        net = Supernet(3, 4, 3, PAPER_OPS, **more)
        mixing = {kind: values.clone().requires_grad_() for kind, values in weights.items()}
        out = gradients(net, draw(3, 3, 8, 8, seed=1).float(), mixing)
        results.append([out, *(value.grad for value in mixing.values()), *(value.grad for value in net.parameters())])
    assert all(map(torch.equal, *results))


# Images side by side


def test_images_lie_side_by_side_where_a_vector_has_room_and_the_batch_divides():
    fit = lambda num, channels: SideBySide.fitting(torch.empty(num, channels, 2, 2), lanes=16).images
    assert [fit(64, 4), fit(63, 4), fit(61, 4), fit(64, 12), fit(64, 1), fit(6, 5)] == [4, 3, 1, 1, 16, 3]


def test_laying_images_side_by_side_and_taking_them_back_changes_none():
    for channels in (1, 2):
        x, beside = draw(6, channels, 3, 5).contiguous(memory_format=torch.channels_last), SideBySide(3, channels)
        laid = beside.lay(x)
        assert laid.shape == (2, 3 * channels, 3, 5) and laid.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(laid[1, channels : 2 * channels], x[4]) and torch.equal(beside.take(laid), x)


def test_convolutions_of_images_side_by_side_are_those_of_each():
    x, beside = draw(6, 2, 7, 7, seed=1), SideBySide(3, 2)
    given = [draw(2, 1, 3, 3, seed=2), draw(2, 2, 1, 1, seed=3)]
    depthwise, pointwise = beside.weights(given)
    laid = F.conv2d(F.conv2d(beside.lay(x), depthwise, groups=6), pointwise)
    result = F.conv2d(F.conv2d(x, given[0], groups=2), given[1])
    torch.testing.assert_close(beside.take(laid), result)
    for weights, got in zip(given, beside.weight_gradients([depthwise, pointwise]), strict=True):
        torch.testing.assert_close(got, 3 * weights, msg="each image adds its part")
