"""Finished runs on long-tailed digits with a val split, corrections of them, and what the tests look at in both."""

import numpy as np
import pytest

from ssfnas_cli.artifacts.genotype import Cell, Edge, Genotype
from ssfnas_cli.artifacts.model import load_model
from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.data.augment import Normalise
from ssfnas_cli.data.build import build_dataset
from ssfnas_cli.engine.adjust import run_adjust
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.head_phase import HeadPhase
from ssfnas_cli.engine.network import load_classifier
from ssfnas_cli.engine.predict import predict
from ssfnas_cli.engine.retrain import run_retrain
from ssfnas_cli.nets.heads import Correction
from ssfnas_cli.settings import AdjustSettings, MakeDatasetSettings, RetrainSettings, load_settings

CPU = Device("cpu", 0)
CELL = Cell(
    edges=(Edge(op="sep_conv_3x3", source=0, target=2), Edge(op="skip_connect", source=1, target=2)), concat=(2,)
)
GENOTYPE = Genotype(normal=CELL, reduce=CELL)
SMALL = {"channels": 8, "layers": 3, "batch_size": 16, "epochs": 3, "lr": 0.1, "kernels": "torch", "threads": 1}
METHODS = ("logit", "tau-norm", "crt", "lws", "temperature")


@pytest.fixture(scope="module")
def tailed(tmp_path_factory):
    """Digits: 40 images of the largest class, 8 of the smallest, a fifth of each in val."""
    settings = MakeDatasetSettings(mu=0.2, max_per_class=40, val_share=0.2)
    return build_dataset(settings, tmp_path_factory.mktemp("data") / "digits", lambda line: None)


@pytest.fixture(scope="module")
def retrain(tailed, tmp_path_factory):
    """`retrain(sets..., settings...)`: a finished run, one for each of its arguments."""
    done = {}

    def build(*sets, on=tailed, genotype=GENOTYPE, **flags):
        key = repr((sets, on.path, genotype, sorted(flags.items())))
        if key not in done:
            flags = {**SMALL, "data": str(on.path), **flags}
            settings = load_settings(RetrainSettings, sets=["aux_weight=0", "drop_path=0", *sets], flags=flags)
            done[key] = tmp_path_factory.mktemp("runs") / "retrained"
            run_retrain(genotype, settings, done[key], False)
        return RunFolder.open(done[key], "retrain")

    return build


@pytest.fixture
def adjust(tmp_path):
    """`adjust(run, method, settings...)`: the corrected run, in a folder of its own."""

    def build(run, method="logit", output=None, force=False, **flags):
        settings = load_settings(AdjustSettings, flags={"method": method, "threads": 1, **flags})
        output = output or tmp_path / f"{len(list(tmp_path.iterdir()))}-{method}"
        assert run_adjust(run, settings, output, force)["path"] == str(output)
        return RunFolder.open(output, "retrain")

    return build


def model_of(run):
    tensors, card = load_model(run.path / "model.safetensors")
    return load_classifier(tensors, card, run.path).eval(), card, tensors


def logits_of(run, data, split="val", rows=None):
    model, card, _ = model_of(run)
    return predict(model, data.split(split), normalised(card), CPU, rows)


def normalised(card):
    return Normalise(tuple(card.mean), tuple(card.std))


def shares(counts):
    return np.asarray(counts) / sum(counts)


def recalls(predicted, labels):
    return np.mean([(predicted[labels == c] == c).mean() for c in np.unique(labels)])


def flags_for(method):
    return {"logit": {"tau": "auto"}, "tau-norm": {"tau": "auto"}, "temperature": {}}.get(method, {"epochs": 1})


def head_phase(run, method, data, trained=None, **flags):
    """The phase of a correction; `trained` changes the settings of the training that it takes over."""
    model, _, _ = model_of(run)
    model.correction = Correction(10)
    training = run.settings(RetrainSettings).resolve_plugins().model_copy(update=trained)
    settings = load_settings(AdjustSettings, flags={"method": method, **flags})
    weights = [model.correction.scale] if method == "lws" else list(model.head.parameters())
    return HeadPhase(settings, training, data, CPU, model, weights)
