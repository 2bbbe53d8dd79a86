import pytest
import torch
import torch.nn.functional as F

from registry import HEADS, NETWORKS, PluginError
from registry.norm import BatchNorm
from ssfnas_cli.nets.count import count_macs, count_params
from ssfnas_cli.nets.heads import Classifier


def classifier(name, in_channels=3, num_classes=10, side=32):
    plugin, head = NETWORKS.get(name), HEADS.get("linear")
    encoder = plugin.factory(plugin.parse_options(), in_channels, side)
    linear = head.factory(head.parse_options(), encoder.num_features, num_classes, [1] * num_classes)
    return Classifier(encoder, linear)


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [
        ("resnet20", 269_722, 40_551_040),
        ("resnet32", 464_154, 68_862_592),
        ("resnet56", 853_018, 125_485_696),
    ],
)
def test_weights_and_multiply_adds_are_the_published_ones(name, params, macs):
    with torch.device("meta"):
        net = classifier(name)
    assert count_params(net) == params and count_macs(net, 3, 32) == macs


@pytest.mark.parametrize("side", [8, 15, 28, 32])
def test_any_side_gives_one_row_of_features_an_image(side):
    net = classifier("resnet32", in_channels=1, num_classes=4)
    assert net(torch.randn(2, 1, side, side)).shape == (2, 4)
    assert net.encoder(torch.randn(2, 1, side, side)).aux_map is None


def test_a_shortcut_is_option_a_it_subsamples_and_pads_with_zeros():
    torch.manual_seed(0)
    block = NETWORKS.get("resnet32").factory(None, 3, 32).blocks[5].eval()
    assert block.stride == 2
    for norm in (block.norm1, block.norm2):
        norm.running_var.uniform_(0.5, 2), norm.running_mean.normal_()
    x = torch.randn(2, 16, 8, 8)
    inner = F.relu(F.batch_norm(block.conv1(x), block.norm1.running_mean, block.norm1.running_var, eps=1e-5))
    inner = F.batch_norm(block.conv2(inner), block.norm2.running_mean, block.norm2.running_var, eps=1e-5)
    shortcut = torch.zeros(2, 32, 4, 4)
    shortcut[:, 8:24] = x[:, :, ::2, ::2]
    torch.testing.assert_close(block(x), F.relu(inner + shortcut))


@pytest.mark.parametrize(("name", "params"), [("mobilenet_v2", 2_236_682), ("resnet18", 11_181_642)])
def test_networks_of_torchvision_have_their_weights(name, params):
    with torch.device("meta"):
        assert count_params(classifier(name)) == params


@pytest.mark.parametrize(("side", "last"), [(8, 4), (15, 4), (28, 4), (32, 4), (64, 4), (96, 3), (224, 7)])
def test_mobilenets_first_strides_are_fitted_to_the_side(side, last):
    with torch.device("meta"):
        net = classifier("mobilenet_v2", side=side)
        assert net.encoder.net.features(torch.empty(1, 3, side, side)).shape[2:] == (last, last)
    assert count_params(net) == 2_236_682, "whatever its strides"
    strided = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d) and m.stride == (2, 2)]
    assert all(module.groups > 1 for module in strided) or side >= 96, "the stem loses its stride first"


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5"])
def test_a_network_of_torchvision_takes_any_number_of_channels_and_its_norms_can_be_held(name):
    net = classifier(name, in_channels=1, num_classes=4, side=28)
    assert net(torch.randn(2, 1, 28, 28)).shape == (2, 4)
    norms = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms and all(isinstance(norm, BatchNorm) for norm in norms)


@pytest.mark.parametrize(
    ("name", "side", "words"),
    [
        ("squeezenet1_1", 32, "does not end in a linear layer"),
        ("vgg11", 28, "does not take images of 28 pixels"),
        ("inception_v3", 32, "does not take images of 32 pixels"),
        ("vit_b_16", 28, "does not take images of 28 pixels .*patch size"),
    ],
)
def test_a_network_that_does_not_fit_is_refused_with_the_reason(name, side, words):
    with torch.device("meta"), pytest.raises(PluginError, match=words):
        classifier(name, side=side)


def test_the_weights_of_a_torchvision_network_follow_from_the_seed():
    nets = []
    for _ in range(2):
        torch.manual_seed(3)
        nets.append(classifier("resnet18").state_dict())
    assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[0])
