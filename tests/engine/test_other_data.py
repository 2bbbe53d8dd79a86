"""A network sees images of another data set as it saw its own: standardised by its own statistics."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ssfnas_cli.artifacts.dataset import DataSet
from ssfnas_cli.artifacts.genotype import parse_genotype
from ssfnas_cli.artifacts.model import load_model
from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.data.build import build_dataset
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.evaluate import evaluate_run
from ssfnas_cli.engine.network import load_classifier
from ssfnas_cli.engine.retrain import run_retrain
from ssfnas_cli.settings import MakeDatasetSettings, RetrainSettings, load_settings

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "darts_v2.json"


@pytest.fixture(scope="module")
def run(tiny_digits, tmp_path_factory):
    genotype = parse_genotype(json.dumps(json.loads(GOLDEN.read_text())["genotype"]).encode(), "a test")
    flags = {"data": str(tiny_digits.path), "channels": 2, "layers": 3, "epochs": 1, "kernels": "torch", "threads": 1}
    settings = load_settings(RetrainSettings, preset="quick", flags=flags)
    path = tmp_path_factory.mktemp("runs") / "retrain"
    run_retrain(genotype, settings, path, False, other_data=True)
    return RunFolder.open(path)


def darker(data: DataSet, folder: Path) -> DataSet:
    """The same images at a quarter of their brightness: another mean and deviation."""
    arrays = {}
    for name in ("train", "test"):
        split = data.split(name)
        arrays[f"{name}_images"] = split.rows(np.arange(len(split)))[..., 0] // 4
        arrays[f"{name}_labels"] = split.labels
    np.savez(folder / "dark.npz", **arrays)
    settings = MakeDatasetSettings(source="npz", root=str(folder / "dark.npz"), dist="natural")
    return build_dataset(settings, folder / "dark", lambda line: None)


def test_other_data_is_standardised_by_the_networks_own_statistics(run, tiny_digits, tmp_path):
    other = darker(tiny_digits, tmp_path)
    assert abs(other.mean[0] - tiny_digits.mean[0]) > 0.1
    got = evaluate_run(run, str(other.path), ["test"], Device("cpu", 0), other_data=True)["splits"]["test"]
    tensors, card = load_model(run.path / "model.safetensors")
    model = load_classifier(tensors, card, run.path).eval()
    split = other.split("test")
    pixels = torch.from_numpy(split.rows(np.arange(len(split)))).float().permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        scores = model((pixels - tiny_digits.mean[0]) / tiny_digits.std[0])
    assert got["top1"] == pytest.approx(100 * (scores.argmax(1).numpy() == split.labels).mean())
    assert run.evaluation() is None, "figures on another data set are not the run's own"


def test_figures_on_the_runs_own_data_stay_with_the_run(run, tiny_digits):
    metrics = evaluate_run(run, "", ["test"], Device("cpu", 0))
    assert run.evaluation()["splits"] == metrics["splits"]
    evaluate_run(run, "", ["test_longtail"], Device("cpu", 0))
    assert set(run.evaluation()["splits"]) == {"test", "test_longtail"}
