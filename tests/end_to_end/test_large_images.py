"""Photographs go through every stage with the stem for large images, which `--stem auto` takes from 96 pixels on."""

import json
import tomllib

import numpy as np
import pytest
from PIL import Image

COUNTS = {"apple": 12, "pear": 8, "plum": 6}


@pytest.fixture(scope="module")
def photos(ssfnas, tmp_path_factory):
    """A folder with `large`, a data set of 96 pixels, and a search of it, `search`: one colour a class, and noise."""
    folder, draw = tmp_path_factory.mktemp("large"), np.random.default_rng(0)
    for number, (name, count) in enumerate(COUNTS.items()):
        for split in ("train", "test"):
            place = folder / "photos" / split / name
            place.mkdir(parents=True)
            for index in range(count):
                pixels = draw.integers(0, 90, (120, 96, 3), dtype=np.uint8)
                pixels[..., number] += 150
                Image.fromarray(pixels).save(place / f"{index}.png")
    source = ["--source", "folder", "--root", "photos", "--image-size", "96"]
    ssfnas.ok("make-dataset", *source, "-o", "large", cwd=folder)
    ssfnas.ok("search", "--data", "large", *ssfnas.tiny, *ssfnas.ops, "-o", "search", cwd=folder)
    return folder


def test_they_are_searched_retrained_described_and_evaluated(ssfnas, photos):
    config = json.loads((photos / "search" / "config.json").read_text())
    assert config["settings"]["stem"] == config["resolved"]["stem"]["value"] == "imagenet"
    assert "96 pixels" in config["resolved"]["stem"]["why"]
    assert "stem" not in config["changed"], "it is what auto means"
    argv = ["retrain", "search/genotype.json", *ssfnas.tiny, "-o", "net"]
    predicted = ssfnas.ok(*argv, "--dry-run", cwd=photos).json
    trained = ssfnas.ok(*argv, cwd=photos)
    assert "the stem 'imagenet'" in trained.err and predicted["stem"] == "imagenet"
    assert trained.json["num_params"] == predicted["num_params"] - predicted["num_aux_params"]
    described = ssfnas.ok("describe", "net", cwd=photos).json
    assert (described["stem"], described["image_size"]) == ("imagenet", 96)
    assert described["num_params"] == trained.json["num_params"]
    metrics = ssfnas.ok("evaluate", "net", cwd=photos).json
    assert metrics["splits"]["test"]["num_images"] == sum(COUNTS.values())


def test_another_stem_is_another_run_and_the_settings_say_which_auto_takes(ssfnas, photos):
    argv = ["search", "--data", "large", *ssfnas.tiny, *ssfnas.ops]
    words = ["differs in stem (imagenet there, cifar here)"]
    ssfnas.refuses(4, words, *argv, "-o", "search", "--stem", "cifar", cwd=photos)
    shown = ssfnas.ok(*argv, "--show-settings", cwd=photos).out.decode()
    (line,) = [line for line in shown.splitlines() if line.startswith("stem = ")]
    assert line == 'stem = "auto"  # imagenet here: the images have 96 pixels, and auto is imagenet from 96 on'
    assert tomllib.loads(shown)["stem"] == "auto"
