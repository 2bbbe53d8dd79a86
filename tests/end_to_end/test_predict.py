"""`predict`, `export` and `evaluate --save-predictions` as a user runs them."""

import csv
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from ssfnas_cli.artifacts.dataset import DataSet
from ssfnas_cli.artifacts.files import read_sealed_json, write_sealed_json
from ssfnas_cli.artifacts.model import load_model, save_model

ONE = ["--threads", "1"]


@pytest.fixture(scope="module")
def digits(world, tmp_path_factory):
    """The test images of the world's data set as files, CLASS/NUMBER.png."""
    folder = tmp_path_factory.mktemp("digits")
    data = DataSet.open(world / "data")
    test = data.split("test")
    for number, (row, label) in enumerate(zip(test.rows(np.arange(len(test))), test.labels, strict=True)):
        path = folder / "test" / data.class_names[label] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(row[:, :, 0]).save(path)
    return folder


def lines(out: bytes):
    return [json.loads(line) for line in out.splitlines()]


def test_a_folder_of_the_test_images_gives_what_evaluate_says_of_them(ssfnas, world, digits, tmp_path):
    argv = ["evaluate", world / "retrain", "--split", "test", "--save-predictions", "p.safetensors", *ONE]
    metrics = ssfnas.ok(*argv, cwd=tmp_path).json["splits"]["test"]
    rows = lines(ssfnas.ok("predict", world / "retrain", digits / "test", "--top-k", "99", *ONE, cwd=tmp_path).out)
    assert len(rows) == metrics["num_images"]
    right = sum(Path(row["path"]).parent.name == row["class"] for row in rows)
    assert 100 * right / len(rows) == metrics["top1"]
    saved = load_file(tmp_path / "p.safetensors")
    logits, names = saved["test.logits"].astype(np.float64), DataSet.open(world / "data").class_names
    exp = np.exp(logits - logits.max(1, keepdims=True))
    softmax = exp / exp.sum(1, keepdims=True)
    for row in rows:
        number = int(Path(row["path"]).stem)
        found = {one["class"]: one["probability"] for one in row["top_k"]}
        assert [found[name] for name in names] == pytest.approx(softmax[number].tolist(), rel=1e-4)
        assert row["probability"] == row["top_k"][0]["probability"] and row["error"] is None
    assert 100 * float((logits.argmax(1) == saved["test.labels"]).mean()) == metrics["top1"]
    assert np.array_equal(saved["test.source_index"], DataSet.open(world / "data").split("test").source_index)


def test_every_kind_of_argument_in_its_order_and_bad_images_at_the_end(ssfnas, world, digits, tmp_path):
    good = next((digits / "test").rglob("*.png"))
    (tmp_path / "x.png").mkdir()
    shutil.copy(good, tmp_path / "x.png" / "inside.png")
    shutil.copy(good, os.fsencode(tmp_path) + b'/\xff odd, "name".png')
    (tmp_path / "broken.png").write_bytes(good.read_bytes()[:60])
    (tmp_path / "empty").mkdir()
    stdin = os.fsencode(good) + b"\0" + b'\xff odd, "name".png\0'
    argv = ["predict", world / "retrain", "broken.png", "x.png", "-", "empty", "--csv", *ONE]
    result = ssfnas.run(*argv, cwd=tmp_path, stdin=stdin)
    assert result.code == 3
    rows = list(csv.DictReader(result.out.decode().splitlines()))
    paths = ["broken.png", "x.png/inside.png", str(good), '\\udcff odd, "name".png', "empty"]
    assert [row["path"] for row in rows] == paths
    assert [bool(row["class"]) for row in rows] == [False, True, True, True, False]
    assert rows[0]["error"] and rows[0]["probability"] == "" and rows[4]["error"] == "is a folder without images"
    told = result.err.splitlines()
    assert told[0].startswith("ssfnas: warning: broken.png: ") and told[1].startswith("ssfnas: warning: empty: ")
    assert told[-1] == "ssfnas: 2 of 5 images could not be read; --on-bad skip leaves such out"
    skipped = ssfnas.ok(*argv[:4], "empty", "--on-bad", "skip", "-q", "-o", "rows.jsonl", *ONE, cwd=tmp_path)
    assert (skipped.out, len(skipped.err.splitlines())) == (b"", 2)
    assert [row["path"] for row in lines((tmp_path / "rows.jsonl").read_bytes())] == ["x.png/inside.png"]


def test_a_retraining_in_a_pipe_to_another_prior_and_to_a_reader_that_has_seen_enough(ssfnas, world, digits, tmp_path):
    image = next((digits / "test").rglob("*.png"))
    retrain = f"ssfnas retrain {world}/genotype.json --data {world}/data {' '.join(ssfnas.tiny)} -o net"
    piped = ssfnas.shell(f"{retrain} | ssfnas predict - {image} --prior uniform --top-k 10", tmp_path)
    assert piped.code == 0, piped.err
    (row,) = lines(piped.out)
    (plain,) = lines(ssfnas.ok("predict", "net", image, "--top-k", "10", *ONE, cwd=tmp_path).out)
    held = dict(zip(load_model(tmp_path / "net" / "model.safetensors")[1].class_names, prior_of(world), strict=True))
    shifted = {one["class"]: one["probability"] / held[one["class"]] for one in plain["top_k"]}
    wanted = {name: value / sum(shifted.values()) for name, value in shifted.items()}
    assert {one["class"]: one["probability"] for one in row["top_k"]} == pytest.approx(wanted, rel=1e-4)
    closed = ssfnas.shell(f"ssfnas predict net {digits} {digits} {digits} | head -c 0", tmp_path)
    assert closed.code == 0 and "Error" not in closed.err and "ssfnas: " not in closed.err


def prior_of(world):
    counts = DataSet.open(world / "data").counts("train")
    return [count / sum(counts) for count in counts]


def test_a_request_to_stop_leaves_no_half_written_file(ssfnas, world, digits, tmp_path):
    image = next((digits / "test").rglob("*.png"))
    argv = [str(ssfnas.script), "predict", str(world / "retrain"), "-", "-o", "rows.csv", *ONE]
    environ = ssfnas.environ
    process = subprocess.Popen(argv, cwd=tmp_path, env=environ, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None and process.stderr is not None
    process.stdin.write(f"{tmp_path}/none.png\n".encode() + f"{image}\n".encode() * 500)
    process.stdin.flush()
    assert process.stderr.readline().startswith(b"ssfnas: warning: "), "it is at work, and the list goes on"
    assert [path.name.startswith(".rows.csv") for path in tmp_path.iterdir()] == [True]
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 75
    assert process.stderr.read() == b"ssfnas: stopped by SIGTERM before the end; a file named by -o is not written\n"
    assert list(tmp_path.iterdir()) == []


def test_a_table_on_a_terminal(ssfnas, world, digits, tmp_path):
    image = next((digits / "test").rglob("*.png"))
    result, said = ssfnas.on_terminal("predict", world / "retrain", image, "-q", *ONE, cwd=tmp_path)
    shown = said.splitlines()
    assert result.code == 0 and len(shown) == 2, result.err
    assert shown[0].split() == ["class", "probability", "or", "image"]
    assert shown[1].endswith(f"  {image}") and shown[1].count(" %") == 3


@pytest.fixture
def copied(world, tmp_path_factory):
    """`copied(**changes)`: a copy of the world's retraining whose model card differs."""

    def make(state="done", **changes):
        folder = tmp_path_factory.mktemp("copy") / "run"
        shutil.copytree(world / "retrain", folder)
        tensors, card = load_model(folder / "model.safetensors")
        save_model(folder / "model.safetensors", tensors, card.model_copy(update=changes))
        write_sealed_json(folder / "status.json", {**read_sealed_json(folder / "status.json"), "state": state})
        return folder

    return make


def test_what_is_refused_is_one_line_and_leaves_nothing(ssfnas, world, copied, tmp_path):
    run, image = world / "retrain", "x.png"
    Image.new("L", (8, 8)).save(tmp_path / image)
    (tmp_path / "there.csv").write_text("mine")
    (tmp_path / "two.json").write_text("[1, 2]")
    for code, words, argv in (
        (2, ["standard input", "one of them"], ["-", "-"]),
        (2, ["standard input", "one of them"], [run, "-", "-"]),
        (2, ["Missing argument", "predict --help"], [run]),
        (2, ["--on-bad stop", "row or skip"], [run, image, "--on-bad", "stop"]),
        (2, ["--top-k", "greater than or equal to 1"], [run, image, "--top-k", "0"]),
        (2, ["--csv, --json"], [run, image, "--csv", "--json"]),
        (2, ["--output p.txt", ".csv", "--json"], [run, image, "-o", "p.txt"]),
        (2, ["--from-prior", "--prior"], [run, image, "--from-prior", "train"]),
        (4, ["there.csv", "--force"], [run, image, "-o", "there.csv"]),
        (3, ["standard input", "paths of images"], [run, "-"]),
        (3, ["search", "is a search run"], [world / "search", image]),
        (3, ["is stopped, not done"], [copied(state="stopped"), image]),
        (3, ["--prior foo: there is no such file", "train, uniform"], [run, image, "--prior", "foo"]),
        (3, ["--prior two.json", "10 positive counts"], [run, image, "--prior", "two.json"]),
        (2, ["not known", "--from-prior train"], [copied(prior="unknown"), image, "--prior", "uniform"]),
    ):
        ssfnas.refuses(code, words, "predict", *argv, cwd=tmp_path)


def test_export_writes_a_file_that_agrees_and_refuses_the_rest(ssfnas, world, copied, tmp_path):
    run = world / "retrain"
    result = ssfnas.ok("export", run, "-o", "m.pt2", cwd=tmp_path).json
    assert (result["kind"], result["path"], result["checked_on"]) == ("export", "m.pt2", "32 images of test")
    assert result["bytes"] == (tmp_path / "m.pt2").stat().st_size and result["input"]["shape"] == ["N", 8, 8, 1]
    blocked = {"PYTHONPATH": str(tmp_path / "blocked"), "PYTHONDONTWRITEBYTECODE": "1"}
    (tmp_path / "blocked").mkdir()
    hide = "import importlib.util as u; f = u.find_spec; u.find_spec = lambda n, *a: None if n == 'onnx' else f(n, *a)"
    (tmp_path / "blocked" / "sitecustomize.py").write_text(hide)
    argv = ["export", run, "-o", "m.onnx"]
    ssfnas.installed.refuses(2, ["needs onnx:", "ssfnas[onnx]", ".pt2"], *argv, cwd=tmp_path, environ=blocked)
    ssfnas.refuses(2, ["m.h5", ".onnx or .pt2"], "export", run, "-o", "m.h5", cwd=tmp_path)
    ssfnas.refuses(4, ["m.pt2", "--force"], "export", run, "-o", "m.pt2", cwd=tmp_path)
    ssfnas.refuses(3, ["nowhere"], "export", run, "-o", "n.pt2", "--data", "nowhere", cwd=tmp_path)
    ssfnas.refuses(3, ["is running, not done"], "export", copied(state="running"), "-o", "n.pt2", cwd=tmp_path)


def test_predictions_are_saved_as_csv_beside_the_metrics(ssfnas, world, tmp_path):
    argv = ["evaluate", world / "retrain", "--save-predictions", "p.csv", *ONE]
    metrics = ssfnas.ok(*argv, cwd=tmp_path).json
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    for split, facts in metrics["splits"].items():
        mine = [row for row in rows if row["split"] == split]
        assert len(mine) == facts["num_images"]
        assert 100 * sum(row["class"] == row["predicted"] for row in mine) / len(mine) == pytest.approx(facts["top1"])
        for row in mine:
            logits = {name: float(row[f"logit:{name}"]) for name in metrics["class_names"]}
            assert max(logits, key=logits.__getitem__) == row["predicted"]
    ssfnas.refuses(4, ["--save-predictions p.csv", "--force"], *argv, cwd=tmp_path)
    ssfnas.refuses(2, ["--save-predictions p.txt", ".safetensors or .csv"], *argv[:3], "p.txt", cwd=tmp_path)
