"""The networks have exactly the weights and multiply-adds of the published ones, so they are those networks."""

import functools
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from registry import LOSSES
from ssfnas_cli.artifacts.genotype import parse_genotype
from ssfnas_cli.artifacts.published import parse_published
from ssfnas_cli.nets.count import count_macs, count_params
from ssfnas_cli.nets.heads import Classifier
from ssfnas_cli.nets.search_model import SearchModel
from ssfnas_cli.nets.supernet import Supernet
from ssfnas_cli.settings import PAPER_OPS

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
PUBLISHED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "published_genotypes.json"


@functools.cache
def counts(genotype_json, channels, layers, num_classes, image_size, stem="cifar"):
    genotype = parse_genotype(genotype_json, "a test")
    with torch.device("meta"):
        plain = Classifier.of_genotype(genotype, 3, channels, layers, num_classes, aux=False, stem=stem)
        with_aux = Classifier.of_genotype(genotype, 3, channels, layers, num_classes, aux=True, stem=stem)
    return count_params(plain), count_params(with_aux), count_macs(plain, 3, image_size)


def search_model(channels, layers, num_classes, loss="ce", ops=PAPER_OPS, **options):
    plugin = LOSSES.get(loss)
    with torch.device("meta"):
        objective = plugin.factory(plugin.parse_options(options), num_classes, [1] * num_classes)
        return SearchModel(Supernet(3, channels, layers, ops), num_classes, objective)


def test_the_supernet_has_the_weights_of_darts():
    assert count_params(search_model(16, 8, 10)) == 1_930_618


def test_a_supernet_with_a_projector_adds_the_projector_and_the_probe():
    encoder = 1_930_618 - (256 * 10 + 10)
    projector = 256 * 32 + 2 * 32 * 32 + 2 * 2 * 32  # two BN with weight and bias
    model = search_model(16, 8, 10, "barlow", projector_dim=32)
    assert count_params(model) == encoder + projector + 256 * 10 + 10


@pytest.mark.parametrize("name", ["darts_v2", "fairdarts_a", "pdarts", "amoebanet"])
def test_published_networks_have_their_counts(name):
    facts = json.loads((GOLDEN / f"{name}.json").read_text())
    genotype = parse_genotype(json.dumps(facts["genotype"]).encode(), name)
    got = counts(genotype.to_json(), facts["channels"], facts["layers"], facts["num_classes"], facts["image_size"])
    assert got == (facts["num_params"], facts["num_params_with_aux"], facts["num_macs"])


def test_darts_has_its_counts_on_imagenet():
    facts = json.loads((GOLDEN / "darts_v2.json").read_text())
    genotype = parse_genotype(json.dumps(facts["genotype"]).encode(), "darts_v2")
    assert counts(genotype.to_json(), 48, 14, 1000, 224, "imagenet") == (4_718_752, 5_979_528, 529_911_552)


def published():
    return json.loads(PUBLISHED.read_text()) if PUBLISHED.exists() else []


@pytest.mark.parametrize("entry", published() or [None], ids=lambda entry: entry["name"] if entry else "absent")
def test_every_published_network_of_the_shared_folder_has_its_counts(entry):
    if entry is None:
        pytest.skip(f"{PUBLISHED} is not here")
    fields = ", ".join(
        f"{key}={[tuple(item) if isinstance(item, list) else item for item in value]}"
        for key, value in entry["genotype"].items()
    )
    genotype = parse_published(f"Genotype({fields})", entry["name"], entry["name"])
    expected = [entry[key] for key in ("counted_params", "counted_params_with_aux", "counted_conv_linear_macs")]
    assert list(counts(genotype.to_json(), entry["C"], entry["layers"], entry["classes"], 32)) == expected


def test_multiply_adds_are_those_of_convolutions_and_linear_layers():
    with torch.device("meta"):
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),  # 4x4 places x 8 x 27
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),  # 16 places x 8 x 9
            nn.AvgPool2d(4),
            nn.Flatten(),
            nn.Linear(8, 5),
        )
    net.train()
    assert count_macs(net, 3, 8) == 16 * 8 * 27 + 16 * 8 * 9 + 8 * 5
    assert net.training, "counting leaves the mode as it was"


def test_buffers_are_no_params():
    assert count_params(nn.BatchNorm2d(4, affine=False)) == 0
    assert count_params(nn.BatchNorm2d(4)) == 8
