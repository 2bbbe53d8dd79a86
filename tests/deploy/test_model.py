"""A trained network in other people's Python."""

import copy
import io
import pickle  # noqa: TID251  # as multiprocessing does
import platform
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from deploy_support import GENOTYPE, card, trained
from PIL import Image

from ssfnas_cli import load
from ssfnas_cli.artifacts.files import read_sealed_json, write_sealed_json
from ssfnas_cli.artifacts.model import load_model, save_model
from ssfnas_cli.deploy.model import BATCH_SIZE, Model, load_run
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.network import load_classifier
from ssfnas_cli.errors import InputError, UsageError


@pytest.fixture(scope="module")
def model(run):
    return load(run.path)


@pytest.fixture
def files(photos):
    return sorted(photos.glob("*/*"))


def direct(run, data, rows):
    """Logits from the model file and the pixels of the data set, in plain torch and float64."""
    tensors, of = load_model(run.path / "model.safetensors")
    net = load_classifier(tensors, of, run.path).eval().double()
    images = torch.from_numpy(rows).double().permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1) for values in (data.mean, data.std))
    with torch.no_grad():
        return net((images - mean) / std).numpy()


def softmax(scores):
    exp = np.exp(scores - scores.max(1, keepdims=True))
    return exp / exp.sum(1, keepdims=True)


def test_three_lines(run, files):
    prediction = load(str(run.path)).predict(files[0])
    assert prediction.class_name in ("ant", "bee", "cat")
    assert prediction.probability == max(prediction.probabilities.values())
    assert sum(prediction.probabilities.values()) == pytest.approx(1)
    assert prediction.top(2)[0] == (prediction.class_name, prediction.probability)
    assert [probability for _, probability in prediction.top(3)] == sorted(prediction.probabilities.values())[::-1]


def test_mistakes_in_python_are_one_clear_error(model, files, run):
    with pytest.raises(ValueError, match=r"load: should be given the path of a run folder .*, not 3$"):
        load(3)
    with pytest.raises(ValueError, match="precision fp8: should be fp32 or bf16"):
        load(run.path, precision="fp8")
    with pytest.raises(ValueError, match="top: should be given how many classes, 0 or more, not -1"):
        model.predict(files[0]).top(-1)


def test_the_precision_is_that_which_is_asked_for(run, monkeypatch):
    asked = []
    plain = Device.for_evaluation
    monkeypatch.setattr(Device, "for_evaluation", lambda *given, **_: asked.append(given) or plain(given[0], 0, "fp32"))
    load(run.path, precision="bf16")
    assert asked == [("cpu", 0, "bf16")]


def test_a_model_is_shown_in_a_line(model):
    assert repr(model) == "<Model: 3 classes (ant, bee, cat), images of 16 pixels, on cpu>"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])  # noqa: S301
def test_a_model_that_has_predicted_can_be_copied_and_sent_to_other_processes(model, files, copied):
    before = model.predict(files)
    assert copied(model).predict(files) == before == model.predict(files)


def test_probabilities_are_those_of_the_network_on_the_data_sets_own_pixels(model, run, photo_data):
    rows = photo_data.split("test").rows(np.arange(len(photo_data.split("test"))))
    wanted = softmax(direct(run, photo_data, rows))
    for prediction, row in zip(model.predict(rows), wanted, strict=True):
        np.testing.assert_allclose(list(prediction.probabilities.values()), row, rtol=1e-4)
        assert list(prediction.probabilities) == photo_data.class_names
        assert prediction.class_name == photo_data.class_names[row.argmax()]


def test_one_image_or_several_of_any_kind(model, files):
    image = Image.open(files[0])
    (alone,) = {model.predict(one).class_name for one in (files[0], str(files[0]), image, np.asarray(image))}
    together = model.predict([files[0], image, np.asarray(image)])
    assert [one.class_name for one in together] == [alone] * 3
    assert [one.class_name for one in model.predict(path for path in files)] == [
        model.predict(path).class_name for path in files
    ], "a generator is several images"
    many = model.predict([files[0]] * (BATCH_SIZE + 1))
    assert len(many) == BATCH_SIZE + 1 and many[-1].probability == pytest.approx(alone and many[0].probability)
    assert model.predict([]) == [] and model.features([]).shape == (0, model.module.encoder.num_features)


def test_what_a_web_server_hands_over_is_one_image(model, files):
    for path in files[:6]:
        wanted, content = model.predict(path), path.read_bytes()
        upload = io.BytesIO(b"before" + content)
        upload.seek(6)
        with path.open("rb") as stream:
            for image in (content, bytearray(content), memoryview(content), upload, stream):
                assert model.predict(image) == wanted
        assert [one.class_name for one in model.predict([content, path])] == [wanted.class_name] * 2
        assert model.features(content).shape == (model.module.encoder.num_features,)


def test_a_png_with_a_broken_remark_is_read_from_its_bytes_as_from_its_path(model, tmp_path):
    Image.new("RGB", (9, 9), "red").save(tmp_path / "a.png")
    plain = (tmp_path / "a.png").read_bytes()
    profile = b"iCCP" + b"x"  # a colour profile without the zero byte that ends its name
    chunk = (len(profile) - 4).to_bytes(4, "big") + profile + zlib.crc32(profile).to_bytes(4, "big")
    broken = plain[:33] + chunk + plain[33:]
    (tmp_path / "b.png").write_bytes(broken)
    assert model.predict(broken) == model.predict(tmp_path / "b.png") == model.predict(plain)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (b"", "the image: is an empty file"),
        (b"no image", "the image: is no image of a known format"),
        (io.StringIO("no bytes"), "open for text"),
        (torch.zeros(3, 8, 8), "not Tensor"),
        (None, "not NoneType"),
        ([1], "not int"),
        ({"image": "a.png"}, "not dict"),
        (Path(), "is a folder: name the images in it"),
    ],
)
def test_what_is_no_image_is_a_value_error_of_one_line(model, images, words):
    for use in (model.predict, model.features):
        with pytest.raises(InputError, match=words) as told:
            use(images)
        assert isinstance(told.value, ValueError) and "\n" not in str(told.value)


def test_the_bare_module_its_transform_and_its_features(model, files):
    batch = torch.stack([model.transform(path) for path in files[:3]])
    assert batch.shape == (3, 3, 16, 16) and batch.dtype == torch.float32
    with torch.no_grad():
        logits = model.module(batch)
    wanted = [list(one.probabilities.values()) for one in model.predict(files[:3])]
    np.testing.assert_allclose(torch.softmax(logits.double(), 1).numpy(), wanted, rtol=1e-5)
    features = model.features(files[:3])
    assert features.shape == (3, model.module.encoder.num_features)
    with torch.no_grad():
        torch.testing.assert_close(model.module.logits(features), logits)
    torch.testing.assert_close(model.features(files[0]), features[0])


def test_training_mode_that_somebody_left_on_changes_nothing(model, files):
    before = model.predict(files[0])
    statistics = {name: value.clone() for name, value in model.module.state_dict().items()}
    model.module.train()
    assert model.predict(files[0]) == before
    assert all(torch.equal(value, statistics[name]) for name, value in model.module.state_dict().items())


def test_another_prior_is_bayes_rule(model, run, photo_data, tmp_path):
    rows = photo_data.split("test").rows(np.arange(len(photo_data.split("test"))))
    posterior = softmax(direct(run, photo_data, rows))
    held = np.array(photo_data.counts("train")) / sum(photo_data.counts("train"))
    assert model.prior == pytest.approx(held)
    (tmp_path / "counts.json").write_text('{"cat": 70, "ant": 10, "bee": 20}')
    for prior, wanted in {
        "uniform": [1 / 3] * 3,
        "train": held,
        str(tmp_path / "counts.json"): [0.1, 0.2, 0.7],
        tmp_path / "counts.json": [0.1, 0.2, 0.7],
        (2.0, 1.0, 1.0): [0.5, 0.25, 0.25],
    }.items():
        shifted = posterior * np.array(wanted) / held
        shifted /= shifted.sum(1, keepdims=True)
        got = [list(one.probabilities.values()) for one in model.predict(rows, prior=prior)]
        np.testing.assert_allclose(got, shifted, rtol=1e-4)
    by_name = model.predict(rows, prior={"cat": 70, "ant": 10, "bee": 20})
    assert by_name == model.predict(rows, prior=[10, 20, 70])


def test_a_prior_that_is_stated_is_the_one_that_the_outputs_hold(run, model, files):
    stated = load_run(run, Device("cpu", 0), from_prior="uniform")
    assert stated.prior.tolist() == [1 / 3] * 3
    for mine, plain in zip(stated.predict(files, prior="uniform"), model.predict(files), strict=True):
        assert mine.probabilities == pytest.approx(plain.probabilities), "there is nothing to change"


def test_a_prior_that_cannot_be(model):
    by_name = {"ant": 1, "bee": 1}
    for prior, words in (
        *(([1, 2], "3 classes"), ([1, 0, 1], "positive"), ([1, np.nan, 1], "positive")),
        *(
            (by_name, "by name"),
            (by_name | {"owl": 1}, "by name"),
            (["a", "b", "c"], "positive"),
            (object(), "3 classes"),
        ),
    ):
        with pytest.raises(UsageError, match=words):
            model.predict([], prior=prior)
    with pytest.raises(InputError, match="nowhere"):
        model.predict([], prior="nowhere")
    unknown = card(GENOTYPE, loss={"name": "focal"}, prior="unknown")
    with pytest.raises(UsageError, match="'focal' it is not known which class prior"):
        Model(trained(unknown), unknown, None, torch.device("cpu")).predict([], prior="uniform")


def test_a_prior_of_huge_counts_is_a_prior(model, files):
    assert model.predict(files[0], prior=[1e308] * 3) == model.predict(files[0], prior="uniform")
    with pytest.raises(UsageError, match="3 classes"):
        model.predict(files[0], prior=[10**400, 1, 1])


def test_it_can_be_loaded_and_used_under_inference_mode_and_another_default_type(run, model, files):
    wanted = model.predict(files[0])
    with torch.inference_mode():
        assert load(run.path).predict(files[0]).class_name == wanted.class_name
    torch.set_default_dtype(torch.float64)
    try:
        assert load(run.path).predict(files[0]).class_name == wanted.class_name
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_loading_leaves_the_memory_of_the_process_alone(run):
    script = (
        "import pathlib, sys, torch, ssfnas_cli\n"
        "resident = lambda: int(pathlib.Path('/proc/self/statm').read_text().split()[1]) * 4096\n"
        "model = ssfnas_cli.load(sys.argv[1]); before = resident()\n"
        "torch.ones(50_000_000); print(resident() - before)"
    )
    argv = [sys.executable, "-c", script, str(run.path)]
    kept = int(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
    assert kept < 100_000_000, "200 MB are given back"


def test_the_model_file_alone_is_enough(run, files, tmp_path):
    shutil.copy(run.path / "model.safetensors", tmp_path / "mine.safetensors")
    assert load(tmp_path / "mine.safetensors").predict(files[0]) == load(run.path).predict(files[0])


def test_a_run_of_before_cards_had_priors_holds_what_its_loss_says(run, model, tmp_path):
    shutil.copytree(run.path, tmp_path / "old")
    tensors, of = load_model(run.path / "model.safetensors")
    save_model(tmp_path / "old" / "model.safetensors", tensors, of.model_copy(update={"prior": None}))
    assert load(tmp_path / "old").prior == pytest.approx(model.prior)
    assert load(tmp_path / "old" / "model.safetensors").prior is None, "a file alone does not tell the sampler"


def test_what_cannot_be_loaded_or_read(run, model, tmp_path):
    shutil.copytree(run.path, tmp_path / "half")
    status = read_sealed_json(run.path / "status.json")
    write_sealed_json(tmp_path / "half" / "status.json", {**status, "state": "stopped"})
    for path, words in (
        (tmp_path / "half", "is stopped, not done"),
        (tmp_path / "nowhere", "no such run folder"),
        (tmp_path, "is not a run folder"),
        (run.path / "config.json", "config.json"),
    ):
        with pytest.raises(ValueError, match=words):
            load(path)
    with pytest.raises(UsageError, match="tpu: is not here"):
        load(run.path, device="tpu")
    with pytest.raises(InputError, match=r"config.json: is no image of a known format"):
        model.predict(run.path / "config.json")


def test_importing_the_package_imports_no_torch():
    script = "import sys, ssfnas_cli; assert callable(ssfnas_cli.load); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "ssfnas_cli" in modules and not {"torch", "numpy", "PIL", "safetensors"} & set(modules)


def test_weights_that_somebody_changed_count_at_once(run, files):
    mine, image = load(run.path), files[0]
    wanted = load(run.path).predict(image)  # by one as new: a later prediction may round differently
    assert mine.predict(image) == wanted
    with torch.no_grad():
        mine.module.head.weight.zero_()
        mine.module.head.bias.copy_(torch.tensor([0.0, 5.0, 0.0]))
    assert mine.predict(image).class_name == "bee"
    mine.module.load_state_dict(load(run.path).module.state_dict())
    assert mine.predict(image) == wanted
