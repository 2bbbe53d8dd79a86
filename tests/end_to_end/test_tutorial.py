"""docs/tutorial.md, its commands exactly as they stand, on photos that are small enough for a test."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.timeout(900)  # on a busy machine; some 30 s of processor time
PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"
PHOTOS = {"airplane": 7, "automobile": 6, "bird": 6, "cat": 5, "deer": 5, "dog": 5}


def commands() -> list[str]:
    """Every command of the page's console blocks."""
    blocks = re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]


@pytest.fixture(scope="module")
def walked(ssfnas, compiled_kernels, tmp_path_factory):
    """What each command of the page printed and said, and the folder they ran in."""
    folder = tmp_path_factory.mktemp("tutorial")
    rng = np.random.default_rng(0)
    for number, (name, count) in enumerate(PHOTOS.items()):
        (folder / "photos" / name).mkdir(parents=True)
        for photo in range(count):  # 8x8 pixels and square, so that the standard preset takes seconds
            pixels = rng.integers(0, 60, (8, 8, 3)) + 30 * number
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "photos" / name / f"IMG_{photo}.png")
    compiled_kernels(Path(ssfnas.environ["XDG_CACHE_HOME"]))
    results = {line: ssfnas.ok(*shlex.split(line)[1:], cwd=folder) for line in commands()}
    return folder, results


def said(results, start: str) -> str:
    """What the only command that begins like this said."""
    (found,) = (result.err for line, result in results.items() if line.startswith(start))
    return found


def test_every_command_of_the_page_does_as_the_page_says(walked):
    folder, results = walked
    assert len(results) >= 10 and all(line.startswith("ssfnas ") for line in results)
    assert (folder / "cells.png").read_bytes().startswith(b"\x89PNG")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["class_names"] == sorted(PHOTOS) and metrics["splits"]["test"]["num_images"] == 6
    listed = json.loads(results["ssfnas runs"].out)["runs"]
    assert {run["path"]: run["state"] for run in listed} == {
        f"runs/{name}": "done" for name in ("net", "search", "trial", "trial-net")
    }


def test_every_stage_names_the_next_command_and_the_figure_to_look_at(walked):
    _, results = walked
    assert "next: ssfnas search --data data/photos\n" in said(results, "ssfnas make-dataset")
    assert "next: ssfnas retrain runs/search/genotype.json\n" in said(results, "ssfnas search --data data/photos -o")
    assert "next: ssfnas evaluate runs/net\n" in said(results, "ssfnas retrain runs/search/")
    for start, figure in {
        "ssfnas search --data data/photos -o": "look at accuracy_alpha_half: ",
        "ssfnas retrain runs/search/": "train_accuracy: ",
        "ssfnas evaluate runs/net ": "look at balanced_accuracy of test: ",
    }.items():
        (line,) = (line for line in said(results, start).splitlines() if line.startswith(figure))
        assert "chance 16.7 %" in line and "higher is better" in line


def test_a_trial_says_that_it_is_one_and_how_long_it_takes_is_said_near_the_start(walked):
    _, results = walked
    for start in ("ssfnas search --data data/photos --preset quick", "ssfnas retrain runs/trial/"):
        text = said(results, start)
        assert "this was a trial (preset quick)" in text and "standard" in text
    real = said(results, "ssfnas retrain runs/search/")
    assert "this was a trial" not in real
    assert re.search(r"^train: about \d+ (seconds|minutes) left of all 40 epochs$", real, re.MULTILINE)


def test_quiet_says_none_of_it(walked, ssfnas):
    folder, _ = walked
    for argv in (["search", "--data", "data/photos", "-o", "runs/search"], ["evaluate", "runs/net", "--force"]):
        assert ssfnas.ok(*argv, "-q", cwd=folder).err == ""
