"""Networks with the stem for large images, against the oracle that is written from the papers."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from registry.norm import BatchNorm
from registry.ops import FactorizedReduce
from ssfnas_cli.artifacts.genotype import Cell, Edge, Genotype
from ssfnas_cli.native import cells
from ssfnas_cli.nets.heads import AuxiliaryHead, Classifier
from ssfnas_cli.nets.stems import IMAGENET_SIDE, choose_stem
from ssfnas_cli.nets.supernet import Supernet
from ssfnas_cli.settings import PAPER_OPS
from tests.oracle import direct

KERNELS = cells.load(torch.float64)
PATHS = ["torch", pytest.param("compiled", marks=pytest.mark.skipif(KERNELS is None, reason="no C++ compiler"))]
EDGES = [
    *(("sep_conv_3x3", 0, 2), ("max_pool_3x3", 1, 2), ("dil_conv_5x5", 0, 3), ("skip_connect", 1, 3)),
    *(("skip_connect", 0, 4), ("sep_conv_5x5", 3, 4), ("avg_pool_3x3", 0, 5), ("dil_conv_3x3", 2, 5)),
]
CELL = Cell(edges=tuple(Edge(op=op, source=a, target=b) for op, a, b in EDGES), concat=(2, 3, 4, 5))
GENOTYPE = Genotype(normal=CELL, reduce=CELL)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def supernet(channels=4, layers=4, ops=PAPER_OPS, in_channels=3):
    torch.manual_seed(0)
    return Supernet(in_channels, channels, layers, ops, stem="imagenet").double()


def derived(channels=6, layers=5, aux=True):
    torch.manual_seed(0)
    net = Classifier.of_genotype(GENOTYPE, 3, channels, layers, 5, aux, "imagenet").double()
    for norm in net.modules():
        if isinstance(norm, BatchNorm):
            norm.weight.data.uniform_(0.5, 1.5)
            norm.bias.data.uniform_(-0.5, 0.5)
    return net


def mixing():
    weights = draw(2, 14, len(PAPER_OPS), seed=4).sigmoid()
    return {kind: part.clone().requires_grad_() for kind, part in zip(("normal", "reduce"), weights, strict=True)}


def compare(got, expected, rtol=1e-8):
    """Tensors by name; differences are measured on each tensor as a whole."""
    assert got.keys() == expected.keys()
    largest = max(float(value.norm()) for value in expected.values())
    for name, value in expected.items():
        assert float((got[name] - value).norm()) <= rtol * max(float(value.norm()), 1e-4 * largest), name


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("side", [32, 41, 97])
def test_the_supernet_equals_the_direct_one_forward_and_back(side, path):
    net, x = supernet(), draw(3, 3, side, side, seed=6)
    slow = direct.Supernet(3, 4, 4, PAPER_OPS, large=True).double()
    direct.load_product(slow, net.state_dict())
    net.compile_with(KERNELS if path == "compiled" else None)
    outs, gradients = [], []
    for one, images in ((net, x.contiguous(memory_format=torch.channels_last)), (slow, x)):
        weights = mixing()
        out = one(images, weights)
        (out * draw(*out.shape, seed=5)).sum().backward()
        outs.append(out.detach())
        by_name = {name: value.grad for name, value in one.named_parameters() if one is net}
        gradients.append((by_name or direct.product_gradients(one)) | {kind: w.grad for kind, w in weights.items()})
    torch.testing.assert_close(*outs, rtol=1e-9, atol=1e-11)
    compare(*gradients)
    statistics = dict(slow.named_buffers())
    for name, value in net.named_buffers():
        for place in direct.oracle_names(name):
            torch.testing.assert_close(value, statistics[place], msg=name)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("side", [32, 49])
def test_a_derived_network_with_its_auxiliary_head_equals_the_direct_one(side, path):
    net, x, labels = derived(), draw(4, 3, side, side, seed=6), torch.tensor([0, 1, 2, 4])
    plan = EDGES, (2, 3, 4, 5)
    slow = direct.Classifier({"normal": plan, "reduce": plan}, "op", 3, 6, 5, 5, large=True).double()
    direct.load_product(slow, net.state_dict())
    net.encoder.compile_with(KERNELS if path == "compiled" else None)
    logits, aux = net.with_aux(x.contiguous(memory_format=torch.channels_last))
    loss = F.cross_entropy(logits, labels) + 0.4 * F.cross_entropy(aux, labels)
    loss.backward()
    expected = slow.loss(x, labels)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    compare({name: value.grad for name, value in net.named_parameters()}, direct.product_gradients(slow))
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(x), slow.eval()(x), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("side", "older", "sides"),
    [(96, 24, [12, 6, 6, 3]), (97, 25, [13, 7, 7, 4]), (224, 56, [28, 14, 14, 7]), (225, 57, [29, 15, 15, 8])],
)
def test_the_first_cells_older_input_is_twice_as_large_as_the_newer_one(side, older, sides):
    with torch.device("meta"):
        net = Supernet(3, 4, 5, ("skip_connect", "sep_conv_3x3"), stem="imagenet")
        images, shapes = torch.empty(2, 3, side, side), []
        for cell in net.cells:
            cell.register_forward_hook(lambda module, args, out: shapes.append(tuple(out.shape[1:])))
        assert [tuple(part.shape) for part in net.stem(images)] == [(2, 4, older, older), (2, 4, sides[0], sides[0])]
        net(images, {kind: torch.empty(14, 2) for kind in ("normal", "reduce")})
    widths = [16, 32, 32, 64]  # reductions at 1 and 3
    assert shapes == [(width, at, at) for width, at in zip([*widths, 64], [*sides, sides[-1]], strict=True)]
    after = [isinstance(cell.inputs.preprocess0, FactorizedReduce) for cell in net.cells]
    assert after == [True, False, True, False, True]


@pytest.mark.parametrize("side", [1, 2, 9, 30])
@pytest.mark.parametrize("channels", [2, 6])
def test_small_images_and_a_single_channel_pass_too(side, channels):
    net = supernet(channels, 3, in_channels=1)
    out = net(draw(3, 1, side, side), mixing())
    out.sum().backward()
    assert out.shape == (3, 16 * channels) and torch.isfinite(out).all()
    assert all(torch.isfinite(value.grad).all() for value in net.stem.parameters())


def auxiliary():
    torch.manual_seed(0)
    return AuxiliaryHead(6, lambda num_features: nn.Linear(num_features, 3), "imagenet").double().eval()


def behind_the_pool(head, pooled):
    """The rest of the head from its own weights; nothing normalises the second convolution's result."""
    conv1, norm1, _, conv2, _ = head.features
    x = F.conv2d(pooled, conv1.weight)
    x = F.batch_norm(x, norm1.running_mean, norm1.running_var, norm1.weight, norm1.bias).relu()
    return F.linear(F.conv2d(x, conv2.weight).relu().flatten(1), head.classifier.weight, head.classifier.bias)


@pytest.mark.parametrize(("side", "first", "second"), [(7, (0, 5), (2, 7)), (3, (0, 2), (1, 3)), (8, (0, 4), (4, 8))])
def test_the_auxiliary_head_pools_7x7_maps_by_5x5_windows_with_stride_2(side, first, second):
    head, x = auxiliary(), draw(4, 6, side, side)
    windows = [
        [x.relu()[:, :, slice(*rows), slice(*columns)] for columns in (first, second)] for rows in (first, second)
    ]
    pooled = torch.stack([torch.stack([part.mean((2, 3)) for part in row], -1) for row in windows], -2)
    torch.testing.assert_close(head(x), behind_the_pool(head, pooled))


def test_the_auxiliary_map_has_7_pixels_a_side_at_224_and_14_cells():
    with torch.device("meta"):
        net = Classifier.of_genotype(GENOTYPE, 3, 8, 14, 5, True, "imagenet")
        assert net.encoder(torch.empty(1, 3, 224, 224)).aux_map.shape[2:] == net.aux.pooled_sides == (7, 7)


def test_both_stems_keep_the_digits_of_channels_last_maps():
    """In float32 their statistics must be as near to the truth as those of maps in torch's default layout."""
    for stem in ("cifar", "imagenet"):
        torch.manual_seed(0)
        net = Supernet(3, 4, 3, ("skip_connect",), stem=stem).stem
        net.requires_grad_(False)
        x = 20 + torch.randn(8, 3, 64, 64)
        truth = copy.deepcopy(net).double()(x.double())[1]
        errors = [
            float((copy.deepcopy(net).to(memory_format=layout)(x.contiguous(memory_format=layout))[1] - truth).norm())
            for layout in (torch.contiguous_format, torch.channels_last)
        ]
        assert errors[1] <= 2 * errors[0] and math.isfinite(errors[1])


def test_auto_is_imagenet_from_96_pixels_on():
    assert [choose_stem("auto", side)[0] for side in (8, 64, 95, 96, 97, 224)] == ["cifar"] * 3 + ["imagenet"] * 3
    assert IMAGENET_SIDE == 96 and "95 pixels" in choose_stem("auto", 95)[1]
    assert choose_stem("cifar", 224)[0] == "cifar" and choose_stem("imagenet", 8)[0] == "imagenet"
