"""Runs made by an earlier revision stay good: finished ones are read, an unfinished one goes on.

The runs in golden/ were made by revision 3482c2b from `make-dataset --max-per-class 20 --mu 0.5`, with preset quick,
2 channels, 3 layers, a batch of 32 and the ops below: a finished search and retraining, and a search of three epochs
that SIGTERM stopped after the first step of the second.
"""

import json
import logging
import zipfile
from pathlib import Path

import pytest
import torch

from ssfnas_cli.artifacts.files import read_sealed_json, write_sealed_json
from ssfnas_cli.artifacts.genotype import read_genotype
from ssfnas_cli.artifacts.model import load_model, save_model
from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.engine.adjust import run_adjust
from ssfnas_cli.engine.derive_run import derive_run
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.evaluate import evaluate_run
from ssfnas_cli.engine.retrain import run_retrain
from ssfnas_cli.engine.search import plan_search, run_search
from ssfnas_cli.errors import OutputExistsError
from ssfnas_cli.nets import stems
from ssfnas_cli.settings import AdjustSettings, RetrainSettings, SearchSettings, load_settings

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "runs_of_revision_3482c2b.zip"
TINY = {"channels": 2, "layers": 3, "batch_size": 32}
OPS = ("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect")
SEARCHED, HALF_DONE = "search-data-sigmoid-ce-s0-3fdb6920", "search-data-softmax-ce-s0-35f98dbf"
RETRAINED = "retrain-data-ce-none-s0-4a9082d5"


@pytest.fixture
def runs(tiny_digits, tmp_path, monkeypatch):
    """The folder `runs` in the current folder, its runs' data set where it is now, named as it was."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(tiny_digits.path)
    zipfile.ZipFile(GOLDEN).extractall(tmp_path)
    for folder in (tmp_path / "runs").iterdir():
        for name in ("config.json", "status.json"):
            text = json.dumps(read_sealed_json(folder / name))
            write_sealed_json(folder / name, json.loads(text.replace("/data/lt", str(tmp_path / "data"))))
    model = tmp_path / "runs" / RETRAINED / "model.safetensors"
    tensors, card = load_model(model)
    save_model(model, tensors, card.model_copy(update={"data": str(tmp_path / "data")}))
    return tmp_path / "runs"


def search_settings(*sets, **flags):
    flags = {**TINY, "data": "data", "ops": OPS, "epochs": 2, "relax": "sigmoid", "kernels": "torch", **flags}
    return load_settings(SearchSettings, preset="quick", sets=sets, flags=flags)


def test_a_finished_search_is_found_done_under_its_old_name_and_derived(runs, caplog):
    before = sorted(runs.iterdir())
    with caplog.at_level(logging.INFO, "ssfnas"):
        result = run_search(search_settings(), None, False)
    assert result["path"] == f"runs/{SEARCHED}" and sorted(runs.iterdir()) == before
    run = RunFolder.open(runs / SEARCHED, "search")
    recorded = read_genotype(runs / SEARCHED / "genotype.json")
    derived = derive_run(run)
    assert derived.cells() == recorded.cells()
    assert derived.provenance.alphas_sha256 == recorded.provenance.alphas_sha256
    assert len(run.metrics()) == 2 and run.alphas()["normal"].shape == (3, 14, 4)


def test_another_setting_is_another_run_and_says_which(runs):
    with pytest.raises(OutputExistsError, match=r"differs in clip \(5.0 there, 4.0 here\)"):
        run_search(search_settings("clip=4.0"), runs / SEARCHED, False)
    assert run_search(search_settings("clip=4.0"), None, False)["path"] != f"runs/{SEARCHED}"


def test_a_finished_retraining_is_found_done_and_evaluated(runs):
    genotype = read_genotype(runs / SEARCHED / "genotype.json")
    genotype = genotype.model_copy(update={"provenance": genotype.provenance.model_copy(update={"data": "data"})})
    settings = load_settings(
        RetrainSettings, preset="quick", sets=["aux_weight=0"], flags={**TINY, "epochs": 1, "kernels": "torch"}
    )
    assert run_retrain(genotype, settings, None, False)["path"] == f"runs/{RETRAINED}"
    run = RunFolder.open(runs / RETRAINED, "retrain")
    metrics = evaluate_run(run, "", [], Device("cpu", 0))
    assert metrics["splits"]["test"]["top1"] == pytest.approx(10.704225352112676)  # as revision 3482c2b evaluates it
    assert run.evaluation()["splits"].keys() == {"test", "test_longtail"}


def test_a_finished_retraining_is_corrected_from_the_prior_of_its_loss(runs, tiny_digits):
    run = RunFolder.open(runs / RETRAINED, "retrain")
    result = run_adjust(run, load_settings(AdjustSettings), None, False)
    tensors, card = load_model(runs.parent / result["path"] / "model.safetensors")
    counts = torch.tensor(tiny_digits.counts("train"), dtype=torch.float64)
    torch.testing.assert_close(tensors["correction.shift"], -(counts / counts.sum()).log().float())
    assert card.prior == pytest.approx([0.1] * 10)


def test_an_unfinished_search_goes_on_from_where_it_stopped(runs, caplog):
    first = RunFolder.open(runs / HALF_DONE).metrics()
    assert [line["epoch"] for line in first] == [1]
    with caplog.at_level(logging.WARNING, "ssfnas"):
        result = run_search(search_settings(relax="softmax", epochs=3), None, False)
    assert result["path"] == f"runs/{HALF_DONE}" and result["state"] == "done"
    lines = RunFolder.open(runs / HALF_DONE).metrics()
    assert [line["epoch"] for line in lines] == [1, 2, 3] and lines[0] == first[0]
    assert "start over" not in caplog.text


def test_runs_of_large_images_keep_the_stem_that_they_were_begun_with(runs, monkeypatch, caplog):
    """As if the digits were large: `auto` would take the other stem, which these runs did not know."""
    monkeypatch.setattr(stems, "IMAGENET_SIDE", 8)
    before = sorted(runs.iterdir())
    assert run_search(search_settings(), None, False)["path"] == f"runs/{SEARCHED}"
    with caplog.at_level(logging.INFO, "ssfnas"):
        assert run_search(search_settings(relax="softmax", epochs=3), None, False)["path"] == f"runs/{HALF_DONE}"
    assert "the stem 'cifar': the run was begun by an ssfnas that knew no other" in caplog.text
    assert sorted(runs.iterdir()) == before and RunFolder.open(runs / HALF_DONE).status()["state"] == "done"
    assert run_search(search_settings(stem="cifar"), None, False)["path"] == f"runs/{SEARCHED}"
    with pytest.raises(OutputExistsError, match=r"differs in stem \(cifar there, imagenet here\)"):
        run_search(search_settings(stem="imagenet"), runs / SEARCHED, False)
    assert plan_search(search_settings(), runs / SEARCHED, force=True).settings.stem == "imagenet"
    assert plan_search(search_settings(), runs / "new").settings.stem == "imagenet"


def test_a_run_has_one_name_whether_or_not_its_usual_stem_is_spelled_out(runs):
    new = [plan_search(search_settings("clip=4.0", stem=stem), None) for stem in ("auto", "cifar", "imagenet")]
    assert new[0].path == new[1].path != new[2].path and new[0].identity == new[1].identity != new[2].identity


def test_a_checkpoint_that_lacks_something_goes_on_with_one_warning(runs, caplog, monkeypatch):
    from ssfnas_cli.engine.search_phase import SearchPhase

    tensors, load = SearchPhase.tensors, SearchPhase.load
    monkeypatch.setattr(SearchPhase, "tensors", lambda self: {**tensors(self), "new.thing": torch.ones(1)})
    monkeypatch.setattr(
        SearchPhase, "load", lambda self, given: load(self, {k: v for k, v in given.items() if k != "new.thing"})
    )
    with caplog.at_level(logging.WARNING, "ssfnas"):
        run_search(search_settings(relax="softmax", epochs=3), None, False)
    told = [record.getMessage() for record in caplog.records if "starts fresh" in record.getMessage()]
    assert len(told) == 1 and "new.thing" in told[0]
