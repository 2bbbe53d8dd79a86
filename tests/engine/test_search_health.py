"""The health of a real search: measured, recorded, without a trace in the training, and able to stop it."""

import csv
import json

import numpy as np
import pytest
import torch
from search_support import WITH_CONVOLUTION as TINY
from search_support import alphas_of, run, same, state

from registry.space import edge_list
from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.data.batches import normaliser
from ssfnas_cli.engine.loop import GivenUp
from ssfnas_cli.engine.predict import accuracy, predict
from ssfnas_cli.engine.rules import derive
from ssfnas_cli.engine.search import run_search
from ssfnas_cli.engine.search_health import derived, epoch_health, op_family, pruned_mixing
from ssfnas_cli.settings import PAPER_OPS, SearchSettings, load_settings


@pytest.mark.parametrize("relax", ["softmax", "sigmoid"])
def test_measuring_leaves_no_trace_in_the_training(search, relax):
    measured, plain = (search(relax=relax, epochs=1) for _ in range(2))
    for phase in (measured, plain):
        run(phase, 2)
    line = measured.end_epoch(0)
    assert {"weights_moved", "genotype_changes", "genotype_skips", "pruned_accuracy_alpha_half"} <= set(line)
    for phase in (measured, plain):
        run(phase, 2, start=2)
    assert torch.equal(alphas_of(measured), alphas_of(plain)) and same(state(measured), state(plain))


def test_the_figures_are_those_of_the_record(search):
    phase = search(relax="sigmoid", epochs=3)
    run(phase, 3)
    line = phase.end_epoch(0)
    assert "pruned_accuracy_alpha_half" not in line, "the last epoch alone is pruned"
    sigmas = torch.sigmoid(alphas_of(phase).double())
    assert line["weights_moved"] == pytest.approx(float((sigmas - 0.5).abs().max()))
    near = ((sigmas < 0.1) | (sigmas > 0.9)).double().mean()
    assert line["weights_decided"] == pytest.approx(float(near)) and "weights_entropy" not in line
    weights = phase.strategy.weights_at(phase.strategy.record(), 1)
    genotype = derive(weights, TINY["ops"], "fairdarts").genotype
    ops = [edge.op for cell in genotype.cells().values() for edge in cell.pruned().edges]
    assert line["genotype_skips"] == pytest.approx(ops.count("skip_connect") / len(ops))
    assert line["genotype_pools"] == pytest.approx(ops.count("max_pool_3x3") / len(ops))
    learned = [edge.op for edge in genotype.normal.pruned().edges if edge.op == "dil_conv_3x3"]
    assert line["normal_ops_with_weights"] == len(learned)


def test_an_epoch_in_which_nothing_moves_changes_no_edge(search):
    phase = search(epochs=3)
    run(phase, 1)
    phase.end_epoch(0)
    assert phase.end_epoch(1)["genotype_changes"] == 0


def test_the_pruned_accuracy_is_that_of_a_supernet_whose_other_weights_are_zero(search):
    phase = search(epochs=1)
    run(phase, 3)
    line = phase.end_epoch(0)
    weights = phase.strategy.weights_at(phase.strategy.record(), 1)
    genotype = derive(weights, TINY["ops"], "darts").genotype
    mixing = {}
    for kind, cell in genotype.cells().items():
        mixing[kind] = torch.zeros(14, len(TINY["ops"]))
        for edge in cell.edges:
            mixing[kind][edge_list().index((edge.source, edge.target)), TINY["ops"].index(edge.op)] = 1.0
    with phase.estimated_statistics(mixing):
        score = lambda images: phase.model.head(phase.model.encoder(images, mixing))
        rows = phase.halves[1]
        scores, labels = predict(phase.model, phase.split, normaliser(phase.data), phase.device, rows, score)
    assert line["pruned_accuracy_alpha_half"] == accuracy(scores, labels)
    ours = pruned_mixing(genotype, TINY["ops"], torch.device("cpu"))
    assert all(torch.equal(ours[kind], mixing[kind]) for kind in mixing)


def test_the_probe_of_a_self_supervised_search_is_pruned_too(search):
    phase = search(loss="barlow", epochs=1)
    run(phase, 1)
    assert "pruned_probe_accuracy_alpha_half" in phase.end_epoch(0)


def test_weights_that_give_no_genotype_leave_its_figures_out(search):
    phase = search(epochs=2)
    phase.strategy.default_rule = "argmax"
    record = phase.strategy.record()
    for kind in record:
        none_wins = torch.tensor([9.0, 0, 0, 0]).expand(1, 14, 4)
        record[kind] = torch.cat([record[kind], none_wins])
    figures = epoch_health(phase.strategy, TINY["ops"])
    assert set(figures) == {"weights_moved", "weights_entropy"}
    assert derived(phase.strategy.weights_at(record, 1), TINY["ops"], "argmax") is None


def test_families_of_the_papers_ops():
    families = {op: op_family(op) for op in PAPER_OPS}
    assert [op for op, family in families.items() if family == "learned"] == list(PAPER_OPS[4:])
    assert families["skip_connect"] == "skip" and families["none"] == "none"
    assert families["max_pool_3x3"] == families["avg_pool_3x3"] == "pool"


# Whole searches


@pytest.fixture
def collapsed(monkeypatch):
    """Every genotype counts as collapsed from the first epoch on."""
    figures = {"weights_moved": 0.5, "weights_decided": 0.5, "normal_ops_with_weights": 0}
    monkeypatch.setattr("ssfnas_cli.engine.search_phase.epoch_health", lambda strategy, ops: figures)


def whole_search(data, folder, *sets, **flags):
    given = {**TINY, "batch_size": 64, "data": str(data.path), "epochs": 4, "kernels": "torch", "relax": "sigmoid"}
    given |= {"ops": ("none", "max_pool_3x3", "skip_connect"), **flags}
    return run_search(load_settings(SearchSettings, sets=sets, flags=given), folder, False)


def without_time(lines):
    times = ("step_seconds", "elapsed_seconds", "peak_memory_bytes")
    return [{name: value for name, value in line.items() if name not in times} for line in lines]


def test_a_collapsed_search_stops_resumably_and_goes_on_as_if_it_had_not(tiny_digits, tmp_path, collapsed):
    stopping = "stop_when_collapsed=true"
    with pytest.raises(GivenUp, match=r"stopped after epoch 3, .*since epoch 1 .*stop_when_collapsed=false") as stopped:
        whole_search(tiny_digits, tmp_path / "run", stopping)
    assert stopped.value.exit_code == 3
    folder = RunFolder.open(tmp_path / "run")
    status = folder.status()
    assert status["state"] == "stopped" and "since epoch 1" in status["reason"] and len(folder.metrics()) == 3
    with pytest.raises(GivenUp, match="after epoch 3"):  # the same command trains no further
        whole_search(tiny_digits, tmp_path / "run", stopping)
    whole_search(tiny_digits, tmp_path / "run")
    whole_search(tiny_digits, tmp_path / "undisturbed")
    undisturbed = RunFolder.open(tmp_path / "undisturbed")
    assert without_time(folder.metrics()) == without_time(undisturbed.metrics())
    assert all(torch.equal(a, b) for a, b in zip(folder.alphas().values(), undisturbed.alphas().values(), strict=True))


def test_a_search_says_its_health_at_its_end_and_records_it_in_both_files(tiny_digits, tmp_path, caplog):
    with caplog.at_level("INFO", "ssfnas"):
        whole_search(tiny_digits, tmp_path / "run", epochs=2)
    lines = RunFolder.open(tmp_path / "run").metrics()
    told = [record.getMessage() for record in caplog.records if "search health" in record.getMessage()]
    last = lines[-1]
    gap = last["accuracy_alpha_half"] - last["pruned_accuracy_alpha_half"]
    assert f"discretisation gap {gap:.1f} points" in told[0]
    assert "of the mixing weights are within 0.1 of 0 or 1" in told[1] and "changed in" in told[1]
    assert all(line["steps"] == 2 for line in lines), "72 images in batches of 64"
    with (tmp_path / "run" / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [json.loads(row["epoch"]) for row in rows] == [1, 2]
    for row, line in zip(rows, lines, strict=True):
        assert {name: value for name, value in row.items() if value} == {k: str(v) for k, v in line.items()}
    assert rows[0]["pruned_accuracy_alpha_half"] == "" and rows[1]["pruned_accuracy_alpha_half"]


def test_alphas_that_did_not_move_are_said_with_the_setting(tiny_digits, tmp_path, caplog):
    whole_search(tiny_digits, tmp_path / "run", epochs=1, alpha_lr=1e-6)
    (told,) = [record.getMessage() for record in caplog.records if "about where they started" in record.getMessage()]
    assert "--set alpha_lr= (it was 1e-06)" in told
    assert np.allclose(RunFolder.open(tmp_path / "run").metrics()[-1]["weights_moved"], 0, atol=1e-4)
