import json
from pathlib import Path

import pytest
import torch

from ssfnas_cli.artifacts.genotype import parse_genotype
from ssfnas_cli.artifacts.model import load_model, save_model
from ssfnas_cli.artifacts.tensors import save_tensors
from ssfnas_cli.engine.network import build_model, load_classifier, make_card
from ssfnas_cli.errors import InputError
from ssfnas_cli.nets.stems import CifarStem, ImageNetStem
from ssfnas_cli.settings import RetrainSettings, load_settings

TINY = {"channels": 4, "layers": 3}


GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@pytest.fixture
def genotype():
    return parse_genotype(json.dumps(json.loads((GOLDEN / "darts_v2.json").read_text())["genotype"]).encode(), "a test")


def card_of(data, genotype=None, *sets, **flags):
    settings = load_settings(RetrainSettings, sets=sets, flags={**TINY, **flags}).resolve_plugins()
    return make_card(genotype, settings, data)


@pytest.mark.parametrize(
    ("sets", "flags"),
    [
        ((), {}),
        (("aux_weight=0",), {}),
        (("loss.label_smoothing=0.1",), {}),
        (("head=cosine", "head.scale=12"), {}),
        ((), {"network": "resnet32"}),
        ((), {"stem": "imagenet"}),
    ],
    ids=["plain", "no auxiliary head", "option of the loss", "another head", "plain network", "stem"],
)
def test_what_a_card_describes_is_built_the_same_from_the_file(tiny_digits, genotype, tmp_path, sets, flags):
    card = card_of(tiny_digits, None if "network" in flags else genotype, *sets, **flags)
    model = build_model(card).eval()
    save_model(tmp_path / "model.safetensors", model.state_dict(), card)
    tensors, read = load_model(tmp_path / "model.safetensors")
    assert read == card
    x = torch.randn(3, 1, 8, 8)
    again = load_classifier(tensors, read, tmp_path / "model.safetensors").eval()
    assert torch.equal(model(x), again(x))


def test_the_card_says_which_head_and_a_file_with_another_is_refused(tiny_digits, genotype, tmp_path):
    card = card_of(tiny_digits, genotype, "head=cosine", "head.scale=12")
    assert card.head.name == "cosine" and card.head.options == {"scale": 12}
    linear = card_of(tiny_digits, genotype)
    with pytest.raises(InputError, match="do not fit its card"):
        load_classifier(build_model(linear).state_dict(), card, tmp_path / "model.safetensors")


def test_loading_a_network_draws_no_random_numbers(tiny_digits, genotype, tmp_path):
    card = card_of(tiny_digits, genotype)
    tensors = build_model(card).state_dict()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    load_classifier(tensors, card, tmp_path)
    assert torch.equal(torch.rand(1), expected)


def test_a_card_of_the_first_schema_is_read_as_a_derived_network_with_a_linear_head(tiny_digits, genotype, tmp_path):
    card = card_of(tiny_digits, genotype)
    first = card.model_dump(by_alias=True, mode="json", exclude_none=True)
    for key in ("network", "loss", "head"):
        del first[key]
    first |= {"schema": "ssfnas.model/1", "genotype": genotype.model_dump(by_alias=True, mode="json"), **TINY}
    save_tensors(tmp_path / "old.safetensors", build_model(card).state_dict(), first | {"stem": "conv3x3"})
    _, read = load_model(tmp_path / "old.safetensors")
    assert read.model_copy(update={"loss": card.loss, "head": card.head}) == card
    assert (read.loss.name, read.head.name) == ("ce", "linear")


def test_a_card_that_names_no_stem_has_that_for_cifar_whatever_its_images_side(tiny_digits, genotype, tmp_path):
    card = card_of(tiny_digits, genotype).model_copy(update={"image_size": 224})
    old = card.model_dump(by_alias=True, mode="json", exclude_none=True)
    assert old["network"].pop("stem") == "cifar"
    save_tensors(tmp_path / "old.safetensors", build_model(card).state_dict(), old)
    tensors, read = load_model(tmp_path / "old.safetensors")
    assert read == card
    assert isinstance(load_classifier(tensors, read, tmp_path).encoder.stem, CifarStem)


def test_the_card_says_which_stem_and_a_file_with_another_is_refused(tiny_digits, genotype, tmp_path):
    model = build_model(card_of(tiny_digits, genotype, stem="imagenet"))
    assert isinstance(model.encoder.stem, ImageNetStem) and len(model.aux.features) == 5, "no second BN"
    with pytest.raises(InputError, match="do not fit its card"):
        load_classifier(model.state_dict(), card_of(tiny_digits, genotype), tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda card: card["network"].update(stem="patch"), "'cifar' or 'imagenet'"),
        (lambda card: card.update(schema="ssfnas.model/9"), "newer than this ssfnas"),
        (lambda card: card["network"].update(channels=10**9), "less than or equal"),
        (lambda card: card["network"].update(layers=10**6), "less than or equal"),
        (lambda card: card.update(network={"name": "resnet32", "width": 3}), "network"),
    ],
)
def test_a_strangers_card_is_refused_before_anything_is_built(tiny_digits, genotype, tmp_path, edit, words):
    value = card_of(tiny_digits, genotype).model_dump(by_alias=True, mode="json", exclude_none=True)
    edit(value)
    save_tensors(tmp_path / "model.safetensors", {"x": torch.zeros(1)}, value)
    with pytest.raises(InputError, match=words):
        load_model(tmp_path / "model.safetensors")


def test_a_network_that_cannot_be_counted_from_shapes_costs_no_more_than_its_counts(monkeypatch):
    from ssfnas_cli.engine import network

    card = network.ModelCard.model_construct(in_channels=3, image_size=8)

    def of_values(card):
        raise NotImplementedError("aten::item has no meta kernel")

    monkeypatch.setattr(network, "build_model", of_values)
    assert network.count_card(card) == (None, None)
