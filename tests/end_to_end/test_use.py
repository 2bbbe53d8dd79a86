"""docs/use.md: its commands and its Python as they stand, on a run of the tests."""

import contextlib
import csv
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from ssfnas_cli import load

PAGE = Path(__file__).resolve().parents[2] / "docs" / "use.md"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def walked(ssfnas, world, tmp_path_factory):
    """A folder in which every command of the page was run, and what each printed."""
    folder = tmp_path_factory.mktemp("use")
    shutil.copytree(world / "retrain", folder / "runs" / "net")
    (folder / "photos").mkdir()
    rng = np.random.default_rng(0)
    for name in ("photo.jpg", "photos/first.jpg", "photos/second.jpg"):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(folder / name)
    lines = [line.removeprefix("$ ") for block in blocks("console") for line in block.splitlines()]
    assert len(lines) == 8 and all("ssfnas " in line for line in lines)
    printed = {}
    for line in lines:
        words = shlex.split(line)
        is_pipe = {"|", ">"} & set(words)
        result = ssfnas.shell(line, folder) if is_pipe else ssfnas.run(*words[1:], cwd=folder)
        assert result.code == 0, result.err
        printed[line] = result.out
    return folder, printed


def test_the_commands_give_what_the_page_says(walked, world):
    folder, printed = walked
    (row,) = [json.loads(line) for line in printed["ssfnas predict runs/net photo.jpg"].splitlines()]
    assert (row["path"], len(row["top_k"])) == ("photo.jpg", 3)
    answers = list(csv.DictReader((folder / "answers.csv").read_text().splitlines()))
    assert [row["path"] for row in answers] == ["photos/first.jpg", "photos/second.jpg"]
    listed = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert {row["path"]: row["class"] for row in listed} == {row["path"]: row["class"] for row in answers}
    assert all(len(row["top_k"]) == 5 for row in listed)
    saved = load_file(folder / "test.safetensors")
    assert saved["test.logits"].shape == (len(saved["test.labels"]), 10)


@pytest.mark.parametrize("kind", ["transparent", "palette", "16 bits", "turned"])
def test_the_page_prepares_an_odd_image_as_the_program_does(walked, monkeypatch, kind):
    folder, _ = walked
    monkeypatch.chdir(folder)
    pixels = np.random.default_rng(1).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    image = Image.fromarray(pixels if kind == "transparent" else pixels[:, :, :3])
    exif = Image.Exif()
    if kind == "16 bits":
        image = Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 250 + 3)
    elif kind == "palette":
        image = image.convert("P")
        image.info["transparency"] = image.getpixel((15, 10))
    elif kind == "turned":
        exif[0x0112] = 6
    image.save("odd.png", exif=exif)
    (block,) = [block for block in blocks("python") if "onnxruntime" in block]
    names: dict[str, object] = {}
    exec(compile(block.replace("photo.jpg", "odd.png"), str(PAGE), "exec"), names)
    exp = np.exp(names["logits"][0].astype(np.float64) - names["logits"][0].max())
    wanted = load("runs/net").predict("odd.png").probabilities
    assert (exp / exp.sum()).tolist() == pytest.approx(list(wanted.values()), rel=1e-4)


def test_the_python_gives_what_predict_gives(walked, monkeypatch):
    folder, printed = walked
    monkeypatch.chdir(folder)
    (row,) = [json.loads(line) for line in printed["ssfnas predict runs/net photo.jpg"].splitlines()]
    names: dict[str, object] = {}
    said = []
    for block in blocks("python"):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(block, str(PAGE), "exec"), names)
        said.append(out.getvalue().splitlines())
    class_name, probability = said[0][0].split()
    assert class_name == row["class"] and float(probability) == pytest.approx(row["probability"], rel=1e-4)
    assert len(said[1]) == 2 and said[1][0].startswith("[(")
    assert said[2] == [row["class"]], "the page prepares an image as the program does"
    prediction = names["prediction"].probabilities
    outputs = names["outputs"].detach().numpy()
    for logits in (outputs[0], outputs[1], names["logits"][0], names["same"].detach().numpy()[0]):
        exp = np.exp(logits.astype(np.float64) - logits.max())
        assert (exp / exp.sum()).tolist() == pytest.approx(list(prediction.values()), rel=1e-4)
    assert names["features"].shape[0] == 2
