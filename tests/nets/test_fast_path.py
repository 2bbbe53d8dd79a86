"""The compiled kernels, held against the ops' own modules and the oracle written from the papers."""

import copy

import pytest
import torch
from torch import nn

from registry import OPS
from registry.norm import BatchNorm, held_statistics
from ssfnas_cli.artifacts.genotype import Genotype
from ssfnas_cli.native import cells
from ssfnas_cli.nets.compiled.fanout import split_ops
from ssfnas_cli.nets.heads import Classifier
from ssfnas_cli.nets.supernet import Supernet
from ssfnas_cli.settings import PAPER_OPS

KNOWN = [
    *("max_pool_3x3", "avg_pool_3x3", "sep_conv_3x3", "sep_conv_5x5"),
    *("sep_conv_7x7", "dil_conv_3x3", "dil_conv_5x5"),
]

pytestmark = pytest.mark.skipif(cells.load() is None, reason="no C++ compiler")


def build(name, channels, stride, affine=False):
    torch.manual_seed(1)
    plugin = OPS.get(name)
    op = plugin.factory(channels, stride, affine, plugin.parse_options())
    return nn.Sequential(op, BatchNorm(channels, affine=False)) if plugin.facts.supernet_bn else op


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distance(got, expected):
    return float((got.detach().double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30))


def by_modules(ops, x, scale, push):
    """What a node's sum is and what it passes back, each op by its own module; contiguous, as the papers' code."""
    x = x.detach().clone().contiguous().requires_grad_()
    scale = scale.detach().clone().requires_grad_()
    total = sum(weight * op(x) for weight, op in zip(scale, ops, strict=True))
    weights = [weight for op in ops for weight in op.parameters()]
    return [total.detach(), *torch.autograd.grad((total * push).sum(), [x, scale, *weights])]


def by_kernels(ops, x, scale, push, stride):
    x = x.detach().clone().requires_grad_()
    scale = scale.detach().clone().requires_grad_()
    fan, known = split_ops(cells.load(x.dtype), [(op, 2) for op in ops], stride, affine=False)
    assert known == list(range(len(ops)))
    sums = {}
    fan.add_to(sums, x, scale[:, None])
    total = sums[2]
    weights = [weight for op in ops for weight in op.parameters()]
    return [total.detach(), *torch.autograd.grad((total * push).sum(), [x, scale, *weights])]


def setting(names, channels, stride, side, num, seed=0):
    ops = [build(name, channels, stride).double() for name in names]
    out = -(-side // stride)
    push = draw(num, channels, out, out, seed=seed + 3)
    return ops, draw(num, channels, side, side, seed=seed), draw(len(names), seed=seed + 2), push


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("channels", "side", "num"), [(4, 7, 3), (16, 9, 17), (36, 8, 4), (8, 1, 5), (20, 12, 2)])
def test_in_float64_every_op_is_its_module_forward_and_back(channels, side, num, stride):
    for name in KNOWN:
        ops, x, scale, push = setting([name], channels, stride, side, num)
        slow = by_modules(copy.deepcopy(ops), x, scale, push)
        fast = by_kernels(ops, x, scale, push, stride)
        scale_of = max(float(part.norm()) for part in slow)  # a BN of one value a channel passes nothing back
        for got, expected in zip(fast, slow, strict=True):
            assert float((got - expected).norm()) < 1e-9 * max(float(expected.norm()), 1e-3 * scale_of), name


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [16, 32, 64])
@pytest.mark.parametrize("names", [*([name] for name in KNOWN), KNOWN], ids=lambda names: "+".join(names)[:12])
def test_in_float32_nothing_is_further_from_the_truth_than_twice_torchs_own_distance(names, channels, stride):
    """Over several draws. Mixing weights are judged as one tensor of all ops: of a single number luck decides."""
    compare_errors(names, channels, stride, 256 // channels, 8)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [5, 20, 24, 36, 40, 72])
def test_widths_that_do_not_fill_vectors_are_as_exact_in_float32(channels, stride):
    compare_errors(["sep_conv_3x3", "dil_conv_5x5"], channels, stride, 10, 3)


@pytest.mark.parametrize("channels", [16, 36])
def test_maps_that_are_written_past_the_caches_are_as_exact(channels):
    """The maps have more than STREAMED_BYTES of native/vectors.h."""
    compare_errors(["dil_conv_3x3", "max_pool_3x3"], channels, 1, 36, (5 << 20) // (4 * 36 * 36 * channels), draws=1)


def compare_errors(names, channels, stride, side, num, draws=5):
    mine, own = [], []
    for seed in range(draws):
        ops, x, scale, push = setting(names, channels, stride, side, num, seed=10 * seed)
        truth = by_modules(copy.deepcopy(ops), x, scale, push)
        floats = [op.float() for op in ops], x.float(), scale.float(), push.float()
        direct, fast = by_modules(*copy.deepcopy(floats)), by_kernels(*floats, stride)
        mine.append([distance(part, true) for part, true in zip(fast, truth, strict=True)])
        own.append([distance(part, true) for part, true in zip(direct, truth, strict=True)])
    judged = [part for part in range(len(mine[0])) if part != 2 or len(names) > 1]
    for part in judged:
        ours, theirs = (torch.tensor([draw[part] for draw in draws]) for draws in (mine, own))
        assert ours.norm() <= 2 * theirs.norm(), (part, ours, theirs)


def test_an_op_whose_last_norm_has_weights_is_left_to_torch_where_the_scale_does_not_hold_them():
    ops = [build("sep_conv_3x3", 4, 1, affine=True), build("dil_conv_3x3", 4, 1)]
    for affine, known in ((False, [1]), (True, [0, 1])):
        assert split_ops(cells.load(), [(op, 2) for op in ops], 1, affine)[1] == known


@pytest.mark.parametrize("shape", [(2, 4, 1, 1), (2, 1, 4, 4), (1, 4, 4, 4), (2, 4, 4, 5)])
def test_a_sum_of_another_shape_is_refused_and_not_written_to(shape):
    fan, _ = split_ops(cells.load(), [(build("sep_conv_3x3", 4, 2), 2)], 2, affine=False)
    with pytest.raises(ValueError, match=r"where \[2, 4, 4, 4\] is expected"):
        fan.add_to({2: torch.zeros(shape)}, torch.zeros(2, 4, 8, 7), torch.ones(1, 1))


@pytest.mark.parametrize("side", [8, 9])
def test_all_ops_of_a_node_at_once_and_a_skip_beside_them(side):
    names = ["skip_connect", *KNOWN]
    ops, x, scale, push = setting(names, 12, 1, side, 5)
    slow, fast = by_modules(copy.deepcopy(ops), x, scale, push), by_kernels(ops, x, scale, push, 1)
    assert all(distance(got, expected) < 1e-12 for got, expected in zip(fast, slow, strict=True))


class Scaled(nn.Module):
    """An op nobody knows."""

    def __init__(self, op):
        super().__init__()
        self.op, self.factor = op, nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, x):
        return (self.op(x) * self.factor).tanh()


def supernets(channels=8, layers=4, strange=False):
    torch.manual_seed(0)
    plain = Supernet(3, channels, layers, PAPER_OPS).double()
    if strange:
        for cell in plain.cells:
            for place, edge in enumerate(cell.of_edge):
                edge["5"] = Scaled(edge["5"]).double()
                cell.outgoing = (
                    [cell._outgoing_ops(node, spec_of(cell)) for node in range(5)] if place == 13 else cell.outgoing
                )
    fast = copy.deepcopy(plain)
    fast.compile_with(cells.load(torch.float64))
    return plain, fast


def spec_of(cell):
    from ssfnas_cli.nets.skeleton import CellSpec

    return CellSpec(0, 0, cell.out_channels // 4, cell.reduction, False)


def mixing():
    weights = draw(2, 14, 8, seed=4).sigmoid()
    return {kind: part.clone().requires_grad_() for kind, part in zip(("normal", "reduce"), weights, strict=True)}


def pass_through(net, weights, x):
    out = net(x, weights)
    return [out, *torch.autograd.grad((out * draw(*out.shape, seed=5)).sum(), [*weights.values(), *net.parameters()])]


@pytest.mark.parametrize("strange", [False, True])
@pytest.mark.parametrize("side", [8, 9])
def test_the_supernet_is_the_same_by_either_path(side, strange):
    plain, fast = supernets(strange=strange)
    x = draw(4, 3, side, side, seed=6)
    slow, quick = pass_through(plain, mixing(), x), pass_through(fast, mixing(), x)
    assert all(distance(got, expected) < 1e-9 for got, expected in zip(quick, slow, strict=True))
    for (name, mine), theirs in zip(fast.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12, msg=name)
    assert sum(len(ops.not_in_fan) for cell in fast.cells for ops in cell.outgoing) >= (56 if strange else 0)


def test_in_evaluation_the_running_statistics_count():
    plain, fast = supernets()
    x = draw(4, 3, 8, 8, seed=6)
    for net in (plain, fast):
        for _ in range(3):
            net(x, mixing())
        net.eval()
    with torch.no_grad():
        torch.testing.assert_close(fast(x, mixing()), plain(x, mixing()), rtol=1e-9, atol=1e-12)


def test_held_statistics_stay():
    _, fast = supernets(layers=3)
    before = [buffer.clone() for buffer in fast.buffers()]
    with held_statistics(fast):
        fast(draw(4, 3, 8, 8), mixing())
    assert all(map(torch.equal, before, fast.buffers()))


def test_results_do_not_depend_on_the_number_of_threads():
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        ops, x, scale, push = setting(KNOWN, 16, 1, 9, 21)
        floats = [op.float() for op in ops], x.float(), scale.float(), push.float()
        results.append(by_kernels(*floats, 1))
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def edges(*lines):
    return [dict(zip(("op", "from", "to"), (op, int(a), int(b)), strict=True)) for op, a, b in map(str.split, lines)]


@pytest.mark.parametrize("form", ["op", "node"])
def test_a_derived_network_is_the_same_by_either_path(form):
    cell = {
        "edges": edges(
            *("sep_conv_3x3 0 2", "skip_connect 1 2", "dil_conv_5x5 0 3", "max_pool_3x3 2 3"),
            *("sep_conv_5x5 1 4", "sep_conv_5x5 3 4", "avg_pool_3x3 0 5", "conv_7x1_1x7 2 5"),
        ),
        "concat": [2, 3, 4, 5],
    }
    torch.manual_seed(0)
    plain = Classifier.of_genotype(
        Genotype.model_validate({"normal": cell, "reduce": cell, "drop_path": form}), 3, 12, 5, 10, True
    )
    plain.double().encoder.drop_path = 0.3
    for norm in plain.modules():
        if isinstance(norm, BatchNorm):
            norm.weight.data.uniform_(0.5, 1.5)
            norm.bias.data.uniform_(-0.5, 0.5)
    fast = copy.deepcopy(plain)
    fast.encoder.compile_with(cells.load(torch.float64))
    results = []
    for net in (plain, fast):
        torch.manual_seed(3)
        out, aux = net.with_aux(draw(5, 3, 16, 16))
        loss = (out * draw(5, 10, seed=1)).sum() + (aux * draw(5, 10, seed=2)).sum()
        results.append([out, aux, *torch.autograd.grad(loss, list(net.parameters()))])
    assert all(distance(got, expected) < 1e-9 for expected, got in zip(*results, strict=True))
    with torch.no_grad():
        inputs = draw(5, 3, 16, 16)
        torch.testing.assert_close(fast.eval()(inputs), plain.eval()(inputs), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("names", [["max_pool_3x3"], ["avg_pool_3x3", "max_pool_3x3"], ["skip_connect"]])
def test_ops_without_norms_are_computed_by_the_kernels_in_training_too(names):
    """As in the reduction cells of DARTS_V2, where only pools leave the inputs."""
    ops = [OPS.get(name).factory(12, 1, True, OPS.get(name).parse_options()) for name in names]
    x, scale, push = draw(3, 12, 9, 9), draw(len(ops), seed=2), draw(3, 12, 9, 9, seed=3)
    fan, supported = split_ops(cells.load(x.dtype), [(op, 2) for op in ops], 1, affine=True)
    assert supported == list(range(len(ops))) and fan.can_run(x) and torch.is_grad_enabled()
    slow, fast = by_modules(ops, x, scale, push), by_kernels(ops, x, scale, push, 1)
    assert all(distance(got, expected) < 1e-12 for got, expected in zip(fast, slow, strict=True))
