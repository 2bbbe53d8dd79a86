import pytest
import torch
import torch.nn.functional as F

from registry import HEADS, NETWORKS
from ssfnas_cli.nets.count import count_macs, count_params
from ssfnas_cli.nets.heads import Classifier


def classifier(name, in_channels=3, num_classes=10):
    plugin, head = NETWORKS.get(name), HEADS.get("linear")
    encoder = plugin.factory(plugin.parse_options(), in_channels)
    linear = head.factory(head.parse_options(), encoder.num_features, num_classes, [1] * num_classes)
    return Classifier(encoder, linear)


@pytest.mark.parametrize(("name", "params", "macs"), [("resnet32", 464_154, 68_862_592)])
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
    block = NETWORKS.get("resnet32").factory(None, 3).blocks[5].eval()
    assert block.stride == 2
    for norm in (block.norm1, block.norm2):
        norm.running_var.uniform_(0.5, 2), norm.running_mean.normal_()
    x = torch.randn(2, 16, 8, 8)
    inner = F.relu(F.batch_norm(block.conv1(x), block.norm1.running_mean, block.norm1.running_var, eps=1e-5))
    inner = F.batch_norm(block.conv2(inner), block.norm2.running_mean, block.norm2.running_var, eps=1e-5)
    shortcut = torch.zeros(2, 32, 4, 4)
    shortcut[:, 8:24] = x[:, :, ::2, ::2]
    torch.testing.assert_close(block(x), F.relu(inner + shortcut))
