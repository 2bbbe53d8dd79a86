"""docs/reference/files.md against the files that the program writes: nothing lacks, and nothing is there no more."""

import contextlib
import csv
import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from ssfnas_cli.artifacts.run import FILES, STATES
from ssfnas_cli.deploy.rows import csv_format

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def described():
    sys.path.insert(0, str(DOCS))
    from generator import files

    return files


@pytest.fixture(scope="module")
def runs(ssfnas, world, tmp_path_factory):
    """A folder with the data set, searches and retrainings that between them have every kind of figure."""
    folder = tmp_path_factory.mktemp("formats")
    shutil.copytree(world / "data", folder / "data" / "lt")
    shutil.copytree(world / "search", folder / "runs" / "search")
    shutil.copytree(world / "retrain", folder / "runs" / "net")
    data = ["--data", "data/lt", *ssfnas.tiny, "--set", "track_test=true"]
    cost = ["--cost", "params", "--cost-channels", "2", "--cost-layers", "3"]
    barlow = ["--relax", "sigmoid", "--loss", "barlow", "--strategy", "progressive", "--set", "strategy.ops=4,2"]
    barlow += ["--set", "strategy.add_layers=0,0", "--set", "strategy.skip_dropout=0,0", "--epochs", "2"]
    barlow += ["--set", "edge_weights=true", *cost]
    ssfnas.ok("search", *data, *ssfnas.ops, *barlow, "-o", "runs/barlow", cwd=folder)
    judged = ["--strategy", "reinforce", "--set", "strategy.candidates=1"]
    ssfnas.ok("search", "--data", "data/lt", *ssfnas.tiny, *ssfnas.ops, *judged, "-o", "runs/judged", cwd=folder)
    clients = ["--set", "sync=round", "--set", "clients=2"]
    ssfnas.ok("search", "--data", "data/lt", *ssfnas.tiny, *ssfnas.ops, *clients, "-o", "runs/federated", cwd=folder)
    ssfnas.ok("retrain", world / "genotype.json", *data, "-o", "runs/tracked", cwd=folder)
    ssfnas.ok("evaluate", "runs/net", "--data", "data/lt", "-o", "printed.json", cwd=folder)
    small = [*ssfnas.tiny, "--set", "ops=max_pool_3x3,skip_connect", "--set", "statistics_batches=1"]
    ssfnas.ok("search", "--data", "data/lt", *small, "-o", "runs/small", cwd=folder)
    ssfnas.ok("search", "--data", "data/lt", *small, "--init-from", "runs/small", "-o", "runs/started", cwd=folder)
    perturb = ["--rule", "perturbation", "--epochs-between", "0", "--set", "kernels=torch", "--threads", "1"]
    ssfnas.ok("derive", "runs/started", *perturb, "-o", "runs/derived", cwd=folder)
    ssfnas.ok("adjust", "runs/net", "--data", "data/lt", "-o", "runs/adjusted", cwd=folder)
    return folder


def keys_of(lines) -> set[str]:
    return {re.sub(r"_(val|test|test_longtail)$", "_SPLIT", key) for line in lines for key in line}


def test_the_files_of_a_run_folder(described, runs):
    named = {name.rstrip("/") for name in described.RUN_FILES}
    assert {name.replace("-test_longtail", "-SPLIT") for name in FILES if "confusion" not in name} <= named
    for run in (runs / "runs").iterdir():
        assert {path.name for path in run.iterdir()} <= named, run


def test_the_keys_of_metrics_are_all_described_and_all_exist(described, runs):
    lines = []
    for run in ("search", "net", "barlow", "judged", "federated", "tracked", "derived"):
        folder = runs / "runs" / run
        lines += [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        with (folder / "metrics.csv").open() as stream:
            assert keys_of(csv.DictReader(stream)) <= set(described.METRICS)
    assert keys_of(lines) == set(described.METRICS)


def test_the_keys_of_config_and_status(described, runs):
    for name, known in {"config.json": described.CONFIG, "status.json": described.STATUS}.items():
        found = [json.loads((run / name).read_text()) for run in (runs / "runs").iterdir()]
        assert keys_of(found) | {"step", "checkpoint", "reason"} >= set(known) >= keys_of(found)
    assert all(state in described.STATUS["state"] for state in STATES)


def test_the_keys_of_an_evaluation(described, runs):
    kept = json.loads((runs / "runs" / "net" / "evaluation.json").read_text())
    printed = json.loads((runs / "printed.json").read_text())
    assert kept.keys() | printed.keys() == set(described.EVALUATION)
    for figures in kept["splits"].values():
        assert set(figures) | {"confusion_file"} == set(described.SPLIT_FIGURES)


def test_the_columns_of_predictions(described):
    header, _ = csv_format(2)
    assert {*header.strip().split(","), "top_k"} == set(described.PREDICTION)


def test_every_field_of_a_record_is_described(described):
    for models in described.RECORDS.values():
        for model in models:
            for name, field in model.model_fields.items():
                assert field.description or field.alias == "schema", f"{model.__name__}.{name}"


def test_the_python_of_the_page_reads_the_files(runs, monkeypatch):
    monkeypatch.chdir(runs)
    page = (DOCS / "reference" / "files.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        for block in blocks:
            exec(compile(block, "files.md", "exec"), {})
    shape, card = said.getvalue().splitlines()
    assert shape.startswith("(") and card.startswith("['0', '1'")
