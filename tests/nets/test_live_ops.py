"""A candidate whose mixing weight is exactly zero is neither computed nor stored, whatever computes the cells."""

from __future__ import annotations

import functools
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from registry.norm import BatchNorm
from registry.separable import SeparableConvs
from registry.space import CELL_TYPES, edge_list, edges_into_nodes
from ssfnas_cli.native import cells
from ssfnas_cli.nets.supernet import Mixing, SearchCell, Supernet
from ssfnas_cli.settings import PAPER_OPS
from tests.oracle import direct as oracle

NUM_OPS = len(PAPER_OPS)
SHARED = [PAPER_OPS.index(name) for name in ("max_pool_3x3", "avg_pool_3x3", "skip_connect")]


@pytest.fixture(params=["torch", "kernels"])
def build(request):
    """Make a supernet in float64 that torch or the compiled kernels compute."""
    kernels = cells.load(torch.float64) if request.param == "kernels" else None
    if request.param == "kernels" and kernels is None:
        pytest.skip("no C++ compiler")

    def make() -> Supernet:
        net = supernet()
        net.compile_with(kernels)
        return net

    return make


def supernet() -> Supernet:
    """One that has the same weights every time."""
    torch.manual_seed(0)
    return Supernet(3, 2, 3, PAPER_OPS).double()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def one_op_per_edge() -> Tensor:
    """A sampled path: on each edge one op has weight one; on some it is `none`."""
    chosen = torch.randint(NUM_OPS, (14,), generator=torch.Generator().manual_seed(3))
    return nn.functional.one_hot(chosen, NUM_OPS).double()


def one_edge_per_node() -> Tensor:
    """A single architecture: one op into each node."""
    weights = torch.zeros(14, NUM_OPS, dtype=torch.float64)
    for node, rows in enumerate(edges_into_nodes()):
        weights[rows[node % len(rows)], PAPER_OPS.index("sep_conv_3x3" if node % 2 else "dil_conv_5x5")] = 0.7
    return weights


def half() -> Tensor:
    return draw(14, NUM_OPS, seed=5).clamp(min=0)


def only_shared() -> Tensor:
    """Only ops that several edges share, and each on some edges only."""
    weights = torch.zeros(14, NUM_OPS, dtype=torch.float64)
    weights[:, SHARED] = half()[:, SHARED]
    return weights


def nothing_into_node_three() -> Tensor:
    weights = half()
    weights[edges_into_nodes()[1]] = 0
    return weights


def only_skips() -> Tensor:
    weights = torch.zeros(14, NUM_OPS, dtype=torch.float64)
    weights[:, PAPER_OPS.index("skip_connect")] = 1
    return weights


PATTERNS = [one_op_per_edge, one_edge_per_node, half, only_shared, nothing_into_node_three, only_skips]
every_pattern = pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.__name__)


def leaves(pattern) -> dict[str, Tensor]:
    return {kind: pattern().requires_grad_() for kind in CELL_TYPES}


@functools.cache
def direct_sum(pattern, side: int) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """The direct result of the supernet that `build` makes, and its gradients for mixing weights and weights."""
    slow, net = oracle.Supernet(3, 2, 3, PAPER_OPS).double(), supernet()
    oracle.load_product(slow, net.state_dict())
    mixing = leaves(pattern)
    out = slow(draw(3, 3, side, side, seed=1), mixing)
    (out * draw(3, net.num_features, seed=2)).sum().backward()
    return out.detach(), {kind: values.grad for kind, values in mixing.items()}, oracle.product_gradients(slow)


@pytest.mark.parametrize(
    ("pattern", "side"),
    [*((pattern, 9) for pattern in PATTERNS), (half, 8)],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_result_and_the_gradients_are_those_of_the_direct_sum(build, pattern, side):
    net, x, mixing = build(), draw(3, 3, side, side, seed=1), leaves(pattern)
    out = net(x, mixing)
    (out * draw(3, net.num_features, seed=2)).sum().backward()
    expected, expected_mixing, gradients = direct_sum(pattern, side)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-11)
    for kind in CELL_TYPES:
        live = mixing[kind] != 0
        assert not mixing[kind].grad[~live].any(), "the gradient with respect to a zero weight is zero"
        live[:, PAPER_OPS.index("none")] = False
        torch.testing.assert_close(mixing[kind].grad[live], expected_mixing[kind][live], rtol=1e-7, atol=1e-9)
    for name, value in net.named_parameters():
        got = torch.zeros_like(value) if value.grad is None else value.grad
        torch.testing.assert_close(got, gradients[name], rtol=1e-7, atol=1e-9, msg=name)


def last_norms(net: Supernet) -> dict[tuple[int, int, str], BatchNorm]:
    """For each cell, edge and op, the BN that shows whether the op was computed."""
    norms = {}
    for layer, cell in enumerate(net.cells):
        for edge, (source, _) in enumerate(edge_list()):
            for column, name in enumerate(PAPER_OPS):
                homes = [home for home in (cell.of_edge[edge], cell.of_node[source]) if str(column) in home]
                for norm in homes[0][str(column)].modules() if homes else []:
                    if isinstance(norm, BatchNorm):
                        norms[layer, edge, name] = norm
    return norms


@every_pattern
def test_statistics_of_ops_with_weight_zero_do_not_move_and_those_of_others_do(build, pattern):
    net, mixing = build(), leaves(pattern)
    norms = last_norms(net)
    net(draw(3, 3, 8, 8, seed=1), mixing)
    live = Counter()
    for (layer, edge, name), norm in norms.items():
        weights = mixing["reduce" if net.cells[layer].reduction else "normal"]
        live[norm] += bool(weights[edge, PAPER_OPS.index(name)] != 0)
    for norm, count in live.items():
        assert (norm.num_batches_tracked == 1) == (count > 0)
        assert bool((norm.running_var != 1).any()) == (count > 0)


def test_modules_of_ops_with_weight_zero_are_not_called():
    torch.manual_seed(0)
    net = Supernet(3, 4, 3, PAPER_OPS).double()
    mixing, calls = leaves(one_op_per_edge), Counter()
    for op in ops_of(net):
        for module in (op, *norms_of(op)):
            module.register_forward_hook(lambda module, args, out, op=op: calls.update([op]))
        if isinstance(op, SeparableConvs):  # its convolutions are called one by one, without the module's `forward`
            op.after_relu = lambda *args, op=op, enter=op.after_relu: calls.update([op]) or enter(*args)
    net(draw(3, 3, 8, 8, seed=1), mixing)
    for cell in net.cells:
        weights = mixing["reduce" if cell.reduction else "normal"]
        live = Counter()
        for candidate in (c for ops in cell.outgoing for c in ops.candidates):
            live[candidate.op] += bool(weights[candidate.edge, candidate.column] != 0)
        assert live and all((calls[op] > 0) == (count > 0) for op, count in live.items())


def ops_of(net: Supernet) -> list[nn.Module]:
    return [op for cell in net.cells for home in (*cell.of_edge, *cell.of_node) for op in home.values()]


def norms_of(op: nn.Module) -> list[BatchNorm]:
    return [module for module in op.modules() if isinstance(module, BatchNorm)]


def test_the_fewer_ops_are_live_the_fewer_maps_are_kept(build):
    net, x = build(), draw(4, 3, 8, 8)

    def kept(mixing: dict[str, Tensor]) -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            net(x, mixing)
        return sum(sizes)

    dense = {kind: torch.ones(14, NUM_OPS, dtype=torch.float64, requires_grad=True) for kind in CELL_TYPES}
    assert kept(leaves(one_op_per_edge)) < kept(dense) / 3


def test_a_node_that_receives_nothing_is_a_map_of_zeros(build):
    for cell in build().cells:
        assert isinstance(cell, SearchCell)
        older, newer = inputs_of(cell, side=7)
        weights = torch.zeros(14, NUM_OPS, dtype=torch.float64)
        out = cell(older, newer, Mixing.of(weights))
        side = 4 if cell.reduction else 7
        assert out.shape == (2, cell.out_channels, side, side) and not out.any()


def inputs_of(cell: SearchCell, side: int) -> tuple[Tensor, Tensor]:
    """Two maps that fit the cell's inputs."""
    projections = (cell.inputs.preprocess0, cell.inputs.preprocess1)
    first, second = (
        next(part.in_channels for part in module.modules() if isinstance(part, nn.Conv2d)) for module in projections
    )
    older_side = 2 * side if type(projections[0]).__name__ == "FactorizedReduce" else side
    return draw(2, first, older_side, older_side), draw(2, second, side, side, seed=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_weights_may_have_another_type_than_the_images_and_need_no_gradient(build, dtype, requires_grad):
    net, x = build(), draw(3, 3, 8, 8, seed=1)
    rounded = {kind: half().float() for kind in CELL_TYPES}
    expected = net(x, {kind: values.double() for kind, values in rounded.items()})
    given = {kind: values.to(dtype).requires_grad_(requires_grad) for kind, values in rounded.items()}
    out = net(x, given)
    assert torch.equal(out, expected)
    if requires_grad:
        out.sum().backward()
        assert all(values.grad.dtype == dtype for values in given.values())


def test_float32_images_take_float64_weights(build):
    net = build().float()
    net.compile_with(cells.load() if net.cells[0].outgoing[0].fan else None)
    mixing = {kind: half() for kind in CELL_TYPES}
    x = draw(3, 3, 8, 8).float()
    assert torch.equal(net(x, mixing), net(x, {kind: values.float() for kind, values in mixing.items()}))


def test_a_fan_keeps_one_subset_however_many_paths_are_sampled():
    kernels = cells.load(torch.float64)
    if kernels is None:
        pytest.skip("no C++ compiler")
    net = Supernet(3, 4, 3, PAPER_OPS).double()
    net.compile_with(kernels)
    fan = net.cells[0].outgoing[0].fan
    first = fan.subset([0, 3])
    assert fan.subset([0, 3]) is first and len(first.uses) == 2 and len(first.branches) <= 2
    for end in range(1, len(fan.uses)):
        assert len(fan.subset(list(range(end))).uses) == end
    assert fan.subset([0, 3]) is not first, "the newest one only"
    assert fan.subset(list(range(len(fan.uses)))) is fan, "a dense pass makes no subset"
