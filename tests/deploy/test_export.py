"""An exported file gives the network's logits for any batch, says all that it takes to use it, and holds no pickle."""

import json
import zipfile

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from deploy_support import card, trained

from registry import OPS
from ssfnas_cli import load
from ssfnas_cli.artifacts.genotype import Cell, Edge, Genotype
from ssfnas_cli.deploy import export as exporting
from ssfnas_cli.deploy.export import TOLERANCE, export
from ssfnas_cli.deploy.model import Model
from ssfnas_cli.errors import InputError, SsfnasError

ALL_OPS = Cell(edges=tuple(Edge(op=op, source=0, target=2) for op in OPS.names()), concat=(2,))
# Nodes 2 and 5 have no input, and 4 only one from 3; the reduction cell pools twice on one edge.
SPARSE = Cell(
    edges=(Edge(op="skip_connect", source=1, target=3), Edge(op="sep_conv_3x3", source=3, target=4)),
    concat=(2, 3, 4, 5),
)
TWICE = Cell(
    edges=(Edge(op="max_pool_3x3", source=0, target=2), Edge(op="avg_pool_3x3", source=0, target=2)), concat=(2,)
)
NETWORKS = {
    "every op, odd sides": card(Genotype(normal=ALL_OPS, reduce=ALL_OPS), size=15, aux=True),
    "sparse, grey, stem of ImageNet": card(
        Genotype(normal=SPARSE, reduce=TWICE, drop_path="node"),
        size=33,
        channels=1,
        stem="imagenet",
        head={"name": "cosine"},
    ),
    "plain, corrected": card("resnet20", corrections=[{"method": "temperature", "value": 2.0}]),
}


def model_of(name):
    of = NETWORKS[name]
    model = Model(trained(of), of, np.full(3, 1 / 3), torch.device("cpu"))
    if model.module.correction is not None:
        model.module.correction.scale.fill_(0.5)
        model.module.correction.shift.copy_(torch.tensor([1.0, -2.0, 0.0]))
    return model


def images_for(model, num, seed=5):
    shape = num, model.card.image_size, model.card.image_size, model.card.in_channels
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def wanted(model, images):
    """The logits from the definition: (x / 255 - mean) / std, in float64."""
    mean, std = (np.array(values) for values in (model.card.mean, model.card.std))
    standardised = torch.from_numpy((images / 255 - mean) / std).permute(0, 3, 1, 2)
    net = trained(model.card).double().eval()
    net.load_state_dict(model.module.state_dict())
    with torch.no_grad():
        return net(standardised).numpy()


def compare(found, model, images):
    reference = wanted(model, images)
    assert found.shape == reference.shape and found.dtype == np.float32
    assert np.abs(found - reference).max() <= TOLERANCE * np.abs(reference).max()


@pytest.mark.parametrize("name", NETWORKS)
def test_both_formats(name, tmp_path, monkeypatch):
    model, trace, traced = model_of(name), exporting.to_program, []

    def trace_once(module, images):  # it takes seconds
        traced.append(traced[0] if traced else trace(module, images))
        return traced[-1]

    monkeypatch.setattr(exporting, "to_program", trace_once)
    for file in ("m.onnx", "m.pt2"):
        result = export(model, tmp_path / file, file)
        assert result["checked_on"] == "32 random images (seed 0)" and result["path"] == file
        assert result["largest_difference"] <= TOLERANCE * result["largest_logit"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.pt2"], "the weights lie in the files"
    look_at_onnx(tmp_path / "m.onnx", model)
    look_at_pt2(tmp_path / "m.pt2", model)


def look_at_onnx(path, model):
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for num in (1, 2, 5):
        images = images_for(model, num)
        compare(session.run(["logits"], {"images": images})[0], model, images)
    (given,) = session.get_inputs()
    size, channels = model.card.image_size, model.card.in_channels
    assert (given.type, given.shape[1:]) == ("tensor(uint8)", [size, size, channels])
    assert given.shape[0] == session.get_outputs()[0].shape[0] == "N", "a batch of any size, by the name in the facts"
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["class_names"]) == model.class_names and facts["schema"] == "ssfnas.export/1"
    assert json.loads(facts["mean"]) == model.card.mean and json.loads(facts["prior"]) == pytest.approx([1 / 3] * 3)
    assert json.loads(facts["preparation"])["resampling"] == "bicubic"
    assert json.loads(facts["input"])["colour"] == ("grey" if channels == 1 else "RGB")


def look_at_pt2(path, model):
    extra = {"ssfnas.json": ""}
    run = torch.export.load(path, extra_files=extra).module()
    for num in (1, 2, 5):
        images = images_for(model, num)
        compare(run(torch.from_numpy(images)).detach().numpy(), model, images)
    facts = json.loads(extra["ssfnas.json"])
    assert facts["class_names"] == ["ant", "bee", "cat"] and facts["input"]["type"] == "uint8"
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            raw = "/weights/weight_" in member.filename
            assert raw or not member.file_size or is_text(archive.read(member)), f"{member.filename}: may be a pickle"


def is_text(data):
    """A pickle begins with a byte that is no text, or is an archive in the archive, as torch writes it."""
    text = data.decode("utf-8", "replace").strip()
    return text.isprintable() or isinstance(json.loads(text), dict)


def in_place_of_export(monkeypatch, spoil=lambda logits: logits):
    """Nothing is exported; the "file" gives the network's own logits, spoiled."""

    def write(module, images, facts, path):
        path.write_bytes(b"a file")
        return lambda arrays: spoil(module(torch.from_numpy(arrays)).detach().numpy())

    monkeypatch.setitem(exporting.FORMATS, ".pt2", write)


def test_it_is_checked_on_the_data_sets_own_images(run, photo_data, tmp_path, monkeypatch):
    seen = []
    in_place_of_export(monkeypatch, lambda logits: seen.append(len(logits)) or logits)
    result = export(load(run.path), tmp_path / "m.pt2", "m.pt2")
    test = photo_data.split("test")
    arrays, origin = exporting.images_to_check(load(run.path).card, "")
    assert result["checked_on"] == origin == f"{len(test)} images of test"
    assert np.array_equal(arrays, test.rows(np.arange(len(test))))
    assert sorted(seen) == [1, 3, len(test)], "batches of several sizes"
    with pytest.raises(InputError, match="nowhere: no such data set"):
        export(load(run.path), tmp_path / "m.pt2", "m.pt2", str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda logits: logits * (1 + 3e-4), "differ from the network's by"),
        (lambda logits: logits[:, ::-1], "differ from the network's by"),
        (lambda logits: logits * np.nan, "by nan"),
        (lambda logits: np.repeat(logits[:1], 32, 0), "by inf"),
        (lambda logits: logits.missing, "cannot be run"),
    ],
    ids=["a little", "in order", "nan", "as if the batch were fixed", "not at all"],
)
def test_a_file_that_gives_other_logits_is_refused(spoil, words, run, tmp_path, monkeypatch):
    in_place_of_export(monkeypatch, spoil)
    with pytest.raises(SsfnasError, match=f"my.pt2: is not kept: .*{words}") as caught:
        export(load(run.path), tmp_path / "m.pt2", "my.pt2")
    assert caught.value.exit_code == 1


def test_logits_that_differ_by_less_than_a_ten_thousandth_are_the_same(run, tmp_path, monkeypatch):
    in_place_of_export(monkeypatch, lambda logits: logits * (1 + 5e-5))
    assert export(load(run.path), tmp_path / "m.pt2", "m.pt2")["largest_difference"] > 0


def test_a_network_that_torch_cannot_trace_is_one_line(run, tmp_path, monkeypatch):
    model = load(run.path)

    def forward(images):
        return torch.zeros(len(images), 3) if images.sum().item() > 0 else images

    monkeypatch.setattr(model.module.encoder, "forward", forward)
    monkeypatch.setattr(exporting.copy, "deepcopy", lambda module: module)
    with pytest.raises(InputError, match=r"^torch cannot export this network: .+$"):
        export(model, tmp_path / "m.pt2", "m.pt2")
