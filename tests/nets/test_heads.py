import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssfnas_cli.artifacts.genotype import Cell, Edge, Genotype
from ssfnas_cli.nets.heads import AuxiliaryHead, Classifier

SKIPS = Cell(
    edges=(Edge(op="skip_connect", source=0, target=2), Edge(op="sep_conv_3x3", source=1, target=2)), concat=(2,)
)
GENOTYPE = Genotype(normal=SKIPS, reduce=SKIPS)


def maps(side, channels=6, num=4):
    return torch.randn(num, channels, side, side, generator=torch.Generator().manual_seed(side), dtype=torch.float64)


def auxiliary(channels=6, classes=3):
    torch.manual_seed(0)
    return AuxiliaryHead(channels, lambda num_features: nn.Linear(num_features, classes)).double()


def behind_the_pool(head, pooled):
    """The rest of DARTS's auxiliary head from its own weights, in evaluation."""
    conv1, norm1, _, conv2, norm2, _ = head.features
    x = F.conv2d(pooled, conv1.weight)
    x = F.batch_norm(x, norm1.running_mean, norm1.running_var, norm1.weight, norm1.bias).relu()
    x = F.conv2d(x, conv2.weight)
    x = F.batch_norm(x, norm2.running_mean, norm2.running_var, norm2.weight, norm2.bias).relu()
    return F.linear(x.flatten(1), head.classifier.weight, head.classifier.bias)


def test_on_8x8_maps_it_is_darts_head_exactly():
    head, x = auxiliary().eval(), maps(8)
    windows = [[x.relu()[:, :, top : top + 5, left : left + 5].mean((2, 3)) for left in (0, 3)] for top in (0, 3)]
    pooled = torch.stack([torch.stack(row, -1) for row in windows], -2)
    torch.testing.assert_close(head(x), behind_the_pool(head, pooled))
    assert head.features[0].weight.shape == (128, 6, 1, 1) and head.features[3].weight.shape == (768, 128, 2, 2)


@pytest.mark.parametrize("side", [1, 2, 3, 5, 7, 9, 14])
def test_on_other_maps_it_pools_to_2x2(side):
    head, x = auxiliary().eval(), maps(side)
    halves = [slice(0, -(-side // 2)), slice(side // 2, side)]  # the middle row of an odd side serves both
    windows = [[x.relu()[:, :, rows, columns].mean((2, 3)) for columns in halves] for rows in halves]
    pooled = torch.stack([torch.stack(row, -1) for row in windows], -2)
    torch.testing.assert_close(head(x), behind_the_pool(head, pooled))


@pytest.mark.parametrize("side", [2, 7, 8])
def test_it_trains_on_a_last_batch_of_two(side):
    head = auxiliary()
    loss = head(maps(side, num=2)).logsumexp(1).sum()
    loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in head.parameters())


def test_only_with_aux_asks_the_auxiliary_head():
    torch.manual_seed(0)
    net = Classifier.of_genotype(GENOTYPE, 3, 4, 3, 5, aux=True).eval()
    x = torch.randn(2, 3, 8, 8)
    logits, aux = net.with_aux(x)
    assert torch.equal(net(x), logits) and aux.shape == (2, 5)
    torch.testing.assert_close(aux, net.aux(net.encoder(x).aux_map))
    assert Classifier.of_genotype(GENOTYPE, 3, 4, 3, 5, aux=False).with_aux(x)[1] is None


def test_weights_go_by_the_names_that_artifacts_use():
    names = {
        name.partition(".")[0] for name, _ in Classifier.of_genotype(GENOTYPE, 3, 4, 3, 5, aux=True).named_parameters()
    }
    assert names == {"encoder", "head", "aux"}
