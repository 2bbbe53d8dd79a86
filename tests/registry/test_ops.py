import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from registry import OPS
from registry.norm import BatchNorm
from registry.ops import FactorizedReduce, ReLUConvBN

ALL_OPS = [name for name in OPS.names() if OPS.get(name).origin == "builtin"]
SIDES = [1, 2, 5, 7, 8, 9]


def build(name, channels=4, stride=1, affine=True):
    plugin = OPS.get(name)
    return plugin.factory(channels, stride, affine, plugin.parse_options())


def images(side, channels=4, num=3, width=None):
    return torch.randn(num, channels, side, width or side, generator=torch.Generator().manual_seed(side)).double()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", ALL_OPS)
def test_every_op_gives_the_strided_size_rounded_up(name, stride, side):
    op = build(name, stride=stride).double()
    out = op(images(side))
    assert out.shape == (3, 4, math.ceil(side / stride), math.ceil(side / stride))
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("name", ALL_OPS)
def test_every_op_takes_maps_that_are_not_square(name):
    assert build(name, stride=2).double()(images(7, width=10)).shape == (3, 4, 4, 5)


@pytest.mark.parametrize("name", ALL_OPS)
def test_affine_says_whether_the_norms_of_an_op_have_weights(name):
    for stride in (1, 2):
        for affine in (True, False):
            norms = [m for m in build(name, stride=stride, affine=affine).modules() if isinstance(m, nn.BatchNorm2d)]
            assert all(isinstance(norm, BatchNorm) and norm.affine is affine for norm in norms)


@pytest.mark.parametrize("name", ALL_OPS)
def test_no_convolution_has_a_bias(name):
    for stride in (1, 2):
        assert not [n for n, _ in build(name, stride=stride, affine=False).named_parameters() if n.endswith("bias")]


@pytest.mark.parametrize(
    ("name", "stride", "num_params"),
    [
        # weights without BN, 8 channels: k*k*C for a depthwise, C*C for a pointwise convolution
        ("none", 1, 0),
        ("max_pool_3x3", 2, 0),
        ("avg_pool_3x3", 1, 0),
        ("skip_connect", 1, 0),
        ("skip_connect", 2, 8 * 8),
        ("sep_conv_3x3", 1, 2 * (9 * 8 + 64)),
        ("sep_conv_5x5", 2, 2 * (25 * 8 + 64)),
        ("sep_conv_7x7", 1, 2 * (49 * 8 + 64)),
        ("dil_conv_3x3", 1, 9 * 8 + 64),
        ("dil_conv_5x5", 2, 25 * 8 + 64),
        ("conv_7x1_1x7", 1, 2 * 7 * 64),
    ],
)
def test_ops_have_the_weights_of_the_darts_code(name, stride, num_params):
    op = build(name, channels=8, stride=stride, affine=False)
    assert sum(p.numel() for p in op.parameters()) == num_params


def bn(x):
    """Batch normalisation by definition."""
    mean = x.mean(dim=(0, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt()


def separable(x, weights, stride, pad, dilation):
    depthwise, pointwise = weights
    x = F.conv2d(x.clamp(min=0), depthwise, None, stride, pad, dilation, groups=x.shape[1])
    return bn(F.conv2d(x, pointwise))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [7, 8])
@pytest.mark.parametrize(("name", "kernel"), [("sep_conv_3x3", 3), ("sep_conv_5x5", 5), ("sep_conv_7x7", 7)])
def test_sep_conv_is_two_separable_convolutions_the_first_with_the_stride(name, kernel, side, stride):
    op, x = build(name, stride=stride, affine=False).double(), images(side)
    weights = list(op.parameters())
    middle = separable(x, weights[:2], stride, kernel // 2, 1)
    torch.testing.assert_close(op(x), separable(middle, weights[2:], 1, kernel // 2, 1))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [7, 8])
@pytest.mark.parametrize(("name", "pad"), [("dil_conv_3x3", 2), ("dil_conv_5x5", 4)])
def test_dil_conv_is_one_separable_convolution_with_dilation_two(name, pad, side, stride):
    op, x = build(name, stride=stride, affine=False).double(), images(side)
    torch.testing.assert_close(op(x), separable(x, list(op.parameters()), stride, pad, 2))


def test_conv_7x1_1x7_is_a_wide_then_a_tall_full_convolution():
    op, x = build("conv_7x1_1x7", stride=2, affine=False).double(), images(9)
    wide, tall = op.parameters()
    assert (wide.shape, tall.shape) == ((4, 4, 1, 7), (4, 4, 7, 1))
    middle = F.conv2d(x.clamp(min=0), wide, None, (1, 2), (0, 3))
    torch.testing.assert_close(op(x), bn(F.conv2d(middle, tall, None, (2, 1), (3, 0))))


@pytest.mark.parametrize("stride", [1, 2])
def test_pools_look_at_3x3_windows_and_count_no_padding(stride):
    x = images(5)
    largest, mean = torch.empty(2, 3, 4, math.ceil(5 / stride), math.ceil(5 / stride)).double()
    for i, top in enumerate(range(0, 5, stride)):
        for j, left in enumerate(range(0, 5, stride)):
            window = x[:, :, max(0, top - 1) : top + 2, max(0, left - 1) : left + 2]
            largest[:, :, i, j], mean[:, :, i, j] = window.amax((2, 3)), window.mean((2, 3))
    torch.testing.assert_close(build("max_pool_3x3", stride=stride)(x), largest)
    torch.testing.assert_close(build("avg_pool_3x3", stride=stride)(x), mean)


def test_skip_is_the_identity_at_stride_one_and_none_is_zero():
    x = images(5)
    assert build("skip_connect")(x) is x
    assert torch.equal(build("none", stride=2)(x), torch.zeros(3, 4, 3, 3).double())


@pytest.mark.parametrize("side", [7, 8, 9])
@pytest.mark.parametrize("out_channels", [6, 7])
def test_factorized_reduce_reads_even_and_odd_pixels_and_pads_odd_sides(side, out_channels):
    op, x = FactorizedReduce(4, out_channels, affine=False).double(), images(side)
    even_weight, odd_weight = (w[:, :, 0, 0] for w in op.parameters())
    assert even_weight.shape[0] == out_channels // 2
    size = (side + 1) // 2
    relu = x.clamp(min=0)
    even = torch.einsum("oc,nchw->nohw", even_weight, relu[:, :, ::2, ::2])
    shifted = torch.zeros(3, 4, size, size).double()
    inner = relu[:, :, 1::2, 1::2]
    shifted[:, :, : inner.shape[2], : inner.shape[3]] = inner  # what lies beyond an odd side is zero
    odd = torch.einsum("oc,nchw->nohw", odd_weight, shifted)
    torch.testing.assert_close(op(x), bn(torch.cat([even, odd], 1)))


def test_relu_conv_bn_is_that():
    op, x = ReLUConvBN(4, 6, affine=False).double(), images(5)
    (weight,) = op.parameters()
    torch.testing.assert_close(op(x), bn(torch.einsum("oc,nchw->nohw", weight[:, :, 0, 0], x.clamp(min=0))))


def test_facts_say_what_the_networks_rely_on():
    facts = {name: OPS.get(name).facts for name in ALL_OPS}
    assert [name for name in ALL_OPS if facts[name].is_none] == ["none"]
    assert [name for name in ALL_OPS if facts[name].supernet_bn] == ["max_pool_3x3", "avg_pool_3x3"]
    assert [name for name in ALL_OPS if facts[name].drop_path_exempt] == ["skip_connect"]
    for name in ALL_OPS:
        has_weights = any(True for _ in build(name).parameters())
        assert facts[name].parameter_free == (not has_weights), name


# A strided 1x1 convolution of 3 to 15 channels corrupts memory in torch 2.14 on a CPU (uxlfoundation/oneDNN#6035).

NARROW = """
import torch
from registry.ops import FactorizedReduce

torch.set_num_threads(1)
for channels in (2, 3, 4, 5, 6, 12):
    for side in (56, 57, 64):
        op = FactorizedReduce(channels, channels, affine=False)
        for _ in range(8):
            x = torch.randn(4, channels, side, side).contiguous(memory_format=torch.channels_last).requires_grad_()
            op(x).square().sum().backward()
            assert torch.isfinite(x.grad).all()
"""


def test_a_narrow_reduction_of_large_images_leaves_memory_whole():
    done = subprocess.run([sys.executable, "-c", NARROW], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", ALL_OPS)
def test_no_op_has_a_strided_1x1_convolution(name, stride):
    convolutions = [part for part in build(name, stride=stride).modules() if isinstance(part, nn.Conv2d)]
    assert not [part for part in convolutions if part.kernel_size == (1, 1) and part.stride != (1, 1)]
