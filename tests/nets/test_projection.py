"""What brings a map to a cell's width by compiled kernels, held against the modules themselves."""

import copy

import pytest
import torch
from torch import nn

from registry.ops import FactorizedReduce, ReLUConvBN
from ssfnas_cli.native import cells
from ssfnas_cli.nets.compiled.projection import Projection, with_kernels

pytestmark = pytest.mark.skipif(cells.load() is None, reason="no C++ compiler")

SHAPES = [(3, 5, 7, 3), (64, 16, 8, 17), (40, 33, 9, 4), (16, 2, 1, 5)]  # in, out, side, batch


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(kind, shape, affine):
    torch.manual_seed(3)
    in_channels, channels, side, num = shape
    module = kind(in_channels, channels, affine).double()
    if affine:
        for parameter, seed in zip(
            (module[2] if kind is ReLUConvBN else module.norm).parameters(), (7, 8), strict=True
        ):
            parameter.data = draw(channels, seed=seed)
    out = side if kind is ReLUConvBN else -(-side // 2)
    return module, draw(num, in_channels, side, side, seed=1), draw(num, channels, out, out, seed=2)


def results(run, module, x, push):
    x = x.clone().requires_grad_()
    out = run(x)
    return [out.detach(), *torch.autograd.grad((out * push).sum(), [x, *module.parameters()])]


def by_kernels(module, x, push):
    return results(with_kernels(module, cells.load(x.dtype)), module, x, push)


def distance(got, expected):
    return float((got.double() - expected).norm())


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", [ReLUConvBN, FactorizedReduce])
def test_in_float64_it_is_the_module_and_moves_the_same_statistics(kind, shape, affine):
    module, x, push = build(kind, shape, affine)
    other = copy.deepcopy(module)
    slow, fast = results(module, module, x, push), by_kernels(other, x, push)
    size = max(float(part.norm()) for part in slow)
    for got, expected in zip(fast, slow, strict=True):
        assert distance(got, expected) < 1e-9 * max(float(expected.norm()), 1e-3 * size)
    for got, expected in zip(other.buffers(), module.buffers(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
    module.eval(), other.eval()
    with torch.no_grad():
        torch.testing.assert_close(with_kernels(other, cells.load(x.dtype))(x), module(x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(64, 16, 16, 16), (144, 36, 9, 3), (24, 40, 9, 3), (108, 20, 9, 3), (56, 36, 80, 4)])
@pytest.mark.parametrize("kind", [ReLUConvBN, FactorizedReduce])
def test_in_float32_it_is_no_further_from_the_truth_than_twice_torchs_own_distance(kind, shape):
    """Also widths that do not fill vectors; maps of the last shape are written past the caches."""
    module, x, push = build(kind, shape, affine=True)
    truth = results(module, module, x, push)
    floats = module.float(), x.float(), push.float()
    theirs, ours = results(module, *floats), by_kernels(*floats)
    for one, other, true in zip(ours, theirs, truth, strict=True):
        assert distance(one, true) <= 2 * distance(other, true)


@pytest.mark.parametrize("kind", [ReLUConvBN, FactorizedReduce])
def test_frozen_weights_get_no_gradients_and_x_the_same(kind):
    module, x, push = build(kind, SHAPES[1], affine=False)
    expected = by_kernels(module, x, push)[1]
    module.requires_grad_(False)
    x = x.clone().requires_grad_()
    out = with_kernels(module, cells.load(x.dtype))(x)
    (got,) = torch.autograd.grad((out * push).sum(), [x])
    assert torch.equal(got, expected)


def test_results_do_not_depend_on_the_number_of_threads():
    module, x, push = build(ReLUConvBN, SHAPES[1], affine=True)
    floats, found = (module.float(), x.float(), push.float()), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(by_kernels(*floats))
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_where_the_kernels_cannot_run_the_module_does():
    module, x, _ = build(ReLUConvBN, SHAPES[1], affine=False)
    run = with_kernels(module, cells.load(torch.float32))
    assert isinstance(run, Projection)
    torch.testing.assert_close(run(x), module(x), rtol=0, atol=0)
    assert with_kernels(nn.ReLU(), cells.load()).__class__ is nn.ReLU
    assert with_kernels(module, None) is module
