"""The compiled kernels on maps of bf16: as near to the truth as torch's own operations in an autocast to bf16.

The kernels round a map where they write it, and compute in float32; products of matrices by factors of bf16 where the
processor multiplies them, by AMX or by AVX512-BF16. They run without either, too.
"""

import copy
import platform
import statistics

import pytest
import torch
from torch import nn

from registry import OPS
from registry.norm import BatchNorm
from registry.ops import FactorizedReduce, ReLUConvBN
from ssfnas_cli.native import cells, library
from ssfnas_cli.nets.compiled.fanout import split_ops
from ssfnas_cli.nets.compiled.projection import Projection, with_kernels

pytestmark = pytest.mark.skipif(cells.load() is None, reason="no C++ compiler")

OPS_OF_A_NODE = ["max_pool_3x3", "avg_pool_3x3", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"]


WITHOUT = {  # flags by which the compiler does without instructions that this processor may have
    "nothing": (),
    "AMX": ("-mno-amx-tile",),
    "AMX and AVX512-BF16": ("-mno-amx-tile", "-mno-avx512bf16"),
}


def kernels(without="nothing"):
    if without != "nothing" and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("no such processor")
    maps_of_weights, of_bf16 = cells.libraries_for(torch.float32, reduced=True)
    return cells.CellKernels(library.load(*maps_of_weights), torch.float32, library.load(*of_bf16, *WITHOUT[without]))


def build(name, channels, stride):
    plugin = OPS.get(name)
    op = plugin.factory(channels, stride, False, plugin.parse_options())
    return nn.Sequential(op, BatchNorm(channels, affine=False)) if plugin.facts.supernet_bn else op


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distance(got, expected):
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def gradients(total, push, inputs):
    return [total.detach(), *torch.autograd.grad((total.to(push.dtype) * push).sum(), inputs)]


def sum_of_ops(ops, x, scale, push, stride, by_kernels):
    """A node's sum, and the gradients with respect to x, the mixing weights and ops' weights; by kernels if given."""
    x, scale = x.detach().clone().requires_grad_(), scale.detach().clone().requires_grad_()
    if by_kernels:
        fan, known = split_ops(by_kernels, [(op, 2) for op in ops], stride, affine=False)
        assert known == list(range(len(ops))) and fan.can_run(x)
        sums = {}
        fan.add_to(sums, x, scale[:, None])
        total = sums[2]
        assert total.dtype == torch.bfloat16
    else:
        total = sum(weight * op(x) for weight, op in zip(scale, ops, strict=True))
    return gradients(total, push, [x, scale, *(weight for op in ops for weight in op.parameters())])


def in_bf16(run, *arguments):
    with torch.autocast("cpu", torch.bfloat16):
        return run(*arguments)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [4, 16, 36])
@pytest.mark.parametrize("names", [*([name] for name in OPS_OF_A_NODE), OPS_OF_A_NODE], ids=lambda n: "+".join(n)[:12])
def test_the_ops_of_a_node_are_no_further_from_the_truth_than_torchs_own_distance(names, channels, stride):
    check_ops_of_a_node(names, channels, stride, kernels())


@pytest.mark.parametrize("channels", [4, 36, 72])
@pytest.mark.parametrize("without", list(WITHOUT)[1:])
def test_so_they_are_without_instructions_that_multiply_bf16(channels, without):
    check_ops_of_a_node(["sep_conv_5x5", "dil_conv_3x3"], channels, 1, kernels(without))


def check_ops_of_a_node(names, channels, stride, by):
    """On the mean: which values are rounded across zero before a ReLU, and change the gradient much, is luck."""
    errors = {by: [], None: []}
    for seed in range(5):
        torch.manual_seed(seed)
        ops = [build(name, channels, stride) for name in names]
        x, scale = draw(6, channels, 9, 9, seed=seed).bfloat16(), draw(len(names), seed=seed + 20)
        push = draw(6, channels, -(-9 // stride), -(-9 // stride), seed=seed + 40)
        truth = sum_of_ops([copy.deepcopy(op).double() for op in ops], x.double(), scale, push, stride, None)
        for by_kernels in errors:
            given = copy.deepcopy(ops), x, scale.float(), push.float(), stride, by_kernels
            found = in_bf16(sum_of_ops, *given)
            errors[by_kernels].append([distance(part, true) for part, true in zip(found, truth, strict=True)])
    ratios = [
        (ours + 0.001) / (theirs + 0.001)
        for draws in zip(errors[by], errors[None], strict=True)
        for part, (ours, theirs) in enumerate(zip(*draws, strict=True))
        if part != 2 or len(names) > 1  # of a single number luck decides
    ]
    assert statistics.geometric_mean(ratios) <= 1.5, (errors, ratios)


@pytest.mark.parametrize(
    "shape", [(3, 5, 7, 3), (40, 16, 9, 4), (64, 36, 8, 6), (200, 72, 5, 4)]
)  # in, out, side, batch
@pytest.mark.parametrize("kind", [ReLUConvBN, FactorizedReduce])
@pytest.mark.parametrize("without", WITHOUT)
def test_a_projection_is_no_further_from_the_truth_than_torchs_own_distance(kind, shape, without):
    in_channels, channels, side, num = shape
    torch.manual_seed(3)
    module = kind(in_channels, channels, True)
    out = side if kind is ReLUConvBN else -(-side // 2)
    x, push = draw(num, in_channels, side, side, seed=1).bfloat16(), draw(num, channels, out, out, seed=2)

    def results(module, x, push, by_kernels):
        x = x.clone().requires_grad_()
        run = with_kernels(module, by_kernels) if by_kernels else module
        assert isinstance(run, Projection) is bool(by_kernels)
        return gradients(run(x), push, [x, *module.parameters()])

    truth = results(copy.deepcopy(module).double(), x.double(), push, None)
    ours, theirs = (in_bf16(results, copy.deepcopy(module), x, push.float(), by) for by in (kernels(without), None))
    for mine, own, true in zip(ours, theirs, truth, strict=True):
        assert distance(mine, true) <= 2 * distance(own, true) + 0.002


def test_statistics_are_added_up_in_float32():
    op, x = build("avg_pool_3x3", 16, 1), draw(8, 16, 9, 9, seed=1).float()
    other = copy.deepcopy(op)
    scale, push = torch.ones(1), draw(8, 16, 9, 9, seed=2).float()
    in_bf16(sum_of_ops, [op], x.bfloat16().float(), scale, push, 1, kernels())
    sum_of_ops([other], x.bfloat16().float(), scale, push, 1, None)
    for got, expected in zip(op.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30, -0.0, 3.140625])
def test_what_is_no_number_stays_none_and_others_are_rounded_to_the_nearest(value):
    x = torch.full((1, 16, 4, 4), value)
    fan, _ = split_ops(kernels(), [(nn.Identity(), 2)], 1, affine=False)
    sums = {}
    with torch.no_grad():
        in_bf16(fan.add_to, sums, x, torch.ones(1, 1))
    torch.testing.assert_close(sums[2], x.bfloat16(), equal_nan=True, rtol=0, atol=0)


def test_without_an_autocast_the_same_kernels_compute_float32_bit_for_bit():
    ops, x = [build(name, 16, 1) for name in OPS_OF_A_NODE], draw(4, 16, 9, 9, seed=1).float()
    results = []
    for loaded in (cells.load(), kernels()):
        fan, _ = split_ops(loaded, [(op, 2) for op in copy.deepcopy(ops)], 1, affine=False)
        sums = {}
        fan.add_to(sums, x, torch.ones(len(ops), 1))
        results.append(sums[2])
    assert results[0].dtype == torch.float32
    assert torch.equal(*results)


def test_an_autocast_without_kernels_for_bf16_is_left_to_torch():
    fan, _ = split_ops(cells.load(), [(build("dil_conv_3x3", 4, 1), 2)], 1, affine=False)
    x = torch.zeros(2, 4, 5, 5)
    assert fan.can_run(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not fan.can_run(x)
