"""A network whose batch normalisations are folded into its convolutions computes what it computed."""

import copy

import pytest
import torch
from torch import nn

from registry.networks import Encoded, Encoder
from registry.norm import BatchNorm
from ssfnas_cli.native.cells import load
from ssfnas_cli.nets.folding import fold
from ssfnas_cli.nets.heads import Classifier, Correction
from tests.nets.trained_networks import network, norms_of, trained


def check(model, images):
    """The folded network's logits beside those of the network itself in float64; the network stays as it was."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folded = fold(model, images[:2])
    with torch.no_grad():
        got, by_itself, wanted = folded(images), model(images), copy.deepcopy(model).double()(images.double())
    assert wanted.std(0).min() > 0.01 * wanted.abs().max(), "the logits differ between images"
    own_error = (by_itself - wanted).abs().max()  # what float32 loses depends on the processor
    assert (got - wanted).abs().max() <= max(1e-5 * wanted.abs().max(), 2 * own_error)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(norm.folded for norm in norms_of(model))
    return folded


@pytest.mark.parametrize(
    ("name", "stem", "size"),
    [("every op", "cifar", 15), ("every op", "imagenet", 33), ("resnet20", "cifar", 24)],
)
def test_every_norm_of_our_networks_is_folded(name, stem, size):
    model = network(name, stem, size)
    model.correction = Correction(5)
    model.correction.shift.copy_(torch.arange(5.0))
    folded = check(model, torch.randn(6, 3, size, size).to(memory_format=torch.channels_last))
    assert norms_of(folded) and all(norm.folded for norm in norms_of(folded)) and folded.aux is None


@pytest.mark.parametrize(
    ("name", "share"), [("mobilenet_v3_small", 1.0), ("shufflenet_v2_x0_5", 1.0), ("densenet121", 0.4)]
)
def test_networks_of_torchvision(name, share):
    """Most norms of a DenseNet come before the convolutions, where they cannot be folded."""
    folded = check(network(name, size=32), torch.randn(4, 3, 32, 32))
    norms = norms_of(folded)
    assert share * len(norms) <= sum(norm.folded for norm in norms)


def test_compiled_kernels_are_left_out():
    kernels = load()
    if kernels is None:
        pytest.skip("no compiler here")
    model = network("every op")
    model.encoder.compile_with(kernels)
    folded = check(model, torch.randn(4, 3, 24, 24))
    assert all(norm.folded for norm in norms_of(folded)) and model.encoder.count_compiled()[0] > 0
    assert folded.encoder.count_compiled()[0] == 0


class Odd(Encoder):
    """An encoder that computes as `how` says, with a convolution and a BN."""

    num_features = 6

    def __init__(self, how):
        super().__init__()
        self.conv, self.other, self.norm = nn.Conv2d(3, 6, 3, bias=True), nn.Conv2d(3, 6, 3), BatchNorm(6)
        self.how = how

    def forward(self, images):
        return Encoded(self.how(self, images).mean((2, 3)), None)


def both(net, x):
    y = net.conv(x)
    return net.norm(y) + y


def twice(net, x):
    return net.norm(net.conv(x)) + net.norm(net.other(x))


def same_convolution_twice(net, x):
    return net.norm(net.conv(x)) + net.conv(x.flip(2)) + net.other(x)


def in_place(net, x):
    y = net.conv(x)
    y.relu_()
    return net.norm(y)


def through_a_view(net, x):
    y = net.conv(x)
    return net.norm(y) + y.view_as(y)[:, :1]


def of_another_width(net, x):
    return net.norm(net.conv(x).view(len(x), 6, -1, 1))


def by_hand(net, x):
    norm = net.norm
    shape = (1, -1, 1, 1)
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).view(shape)
    return (net.conv(x) - norm.running_mean.view(shape)) * scale + norm.bias.view(shape)


def mean_by_hand(net, x):
    return net.conv(x) - net.norm.running_mean[:, None, None]


@pytest.mark.parametrize(
    "how", [both, twice, same_convolution_twice, in_place, through_a_view, of_another_width, by_hand, mean_by_hand]
)
def test_what_cannot_be_folded_is_left_as_it_is(how):
    torch.manual_seed(0)
    model = trained(Classifier(Odd(lambda net, x: net.norm(net.conv(x)) + net.norm(net.other(x))), nn.Linear(6, 5)))
    model.encoder.how = how
    folded = check(model, torch.randn(8, 3, 12, 12))
    assert not folded.encoder.norm.folded


def test_a_concatenation_of_convolutions_is_folded_and_their_biases_are_kept():
    torch.manual_seed(0)
    encoder = Odd(lambda net, x: net.wide(torch.cat([net.conv(x), net.other(x)], 1))[:, 3:9])
    encoder.wide = BatchNorm(12)
    folded = check(trained(Classifier(encoder, nn.Linear(6, 5))), torch.randn(8, 3, 12, 12))
    assert folded.encoder.wide.folded


def test_a_concatenation_with_something_else_is_not():
    torch.manual_seed(0)
    encoder = Odd(lambda net, x: net.wide(torch.cat([net.conv(x), x[:, :, 2:, 2:]], 1))[:, :6])
    encoder.wide = BatchNorm(9)
    assert not check(trained(Classifier(encoder, nn.Linear(6, 5))), torch.randn(8, 3, 12, 12)).encoder.wide.folded
