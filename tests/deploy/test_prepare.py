"""An image is prepared exactly as the data set's images were, whatever it comes as."""

import json
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from deploy_support import GENOTYPE, card, pixels
from PIL import Image

from ssfnas_cli.artifacts.model import load_card, save_model
from ssfnas_cli.data.build import build_dataset
from ssfnas_cli.data.images import BadImage, errors_as_bad_image
from ssfnas_cli.data.sources.tree import IgnoredFiles, list_images
from ssfnas_cli.deploy.prepare import prepare
from ssfnas_cli.engine.network import make_card
from ssfnas_cli.settings import MakeDatasetSettings, RetrainSettings, load_settings


def card_of(data):
    return make_card(GENOTYPE, load_settings(RetrainSettings, flags={"channels": 4, "layers": 3}), data)


def files_and_rows(root, data):
    """Every photo with what the data set made of it; a place in the source counts the files of all classes."""
    files = [root / name / file for name in data.class_names for file in list_images(root / name, IgnoredFiles())]
    for name in ("train", "test"):
        split = data.split(name)
        for row, place in zip(split.rows(np.arange(len(split))), split.source_index, strict=True):
            yield files[place], row


def test_every_kind_of_photo_becomes_what_it_is_in_the_data_set(photos, photo_data):
    compared = 0
    for file, row in files_and_rows(photos, photo_data):
        got = prepare(file, card_of(photo_data))
        assert got.dtype == np.uint8 and np.array_equal(got, row), file
        assert np.array_equal(prepare(str(file), card_of(photo_data)), row)
        with Image.open(file) as image:
            assert np.array_equal(prepare(image, card_of(photo_data)), row), file
        compared += 1
    assert compared == 18


def test_a_stated_range_is_recorded_and_used(tmp_path):
    root = tmp_path / "scans"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for number in range(4):
            deep = np.random.default_rng(number).integers(0, 4096, (9, 9), dtype=np.uint16)
            Image.fromarray(deep).save(root / name / f"{number}.png")
    settings = {"source": "folder", "root": str(root), "image_size": 9}
    stated = MakeDatasetSettings(**settings | {"source": {"name": "folder", "range": "0:4095"}})
    data = build_dataset(stated, tmp_path / "data", lambda line: None)
    assert card_of(data).preparation.pixel_range == (0, 4095)
    for file, row in files_and_rows(root, data):
        assert np.array_equal(prepare(file, card_of(data)), row)
        assert row.max() > 200, "the range makes it as bright as it is"


def test_the_manifest_of_a_usual_data_set_has_no_new_key(photo_data):
    assert "pixel_range" not in json.loads((photo_data.path / "manifest.json").read_text())
    assert card_of(photo_data).preparation.pixel_range == "auto"


def test_a_card_without_a_preparation_means_the_usual_one(tmp_path, photo_data):
    whole = card_of(photo_data)
    old = type(whole).model_validate(whole.model_dump(by_alias=True, exclude={"preparation"}))
    assert old == whole
    save_model(tmp_path / "m.safetensors", {"x": torch.zeros(1)}, whole)
    assert load_card(tmp_path / "m.safetensors") == whole


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_are_images(channels):
    of = card(GENOTYPE, size=12, channels=channels)
    colour, grey = pixels(0, 20, 14), pixels(1, 20, 14)[:, :, 0]
    for array in (colour, grey, pixels(2, 9, 9, 4)):
        assert np.array_equal(prepare(array, of), prepare(Image.fromarray(array), of))
    assert np.array_equal(prepare(grey[:, :, None], of), prepare(grey, of))
    assert np.array_equal(prepare(colour.astype(np.float32) / 255, of), prepare(colour, of))
    assert np.array_equal(prepare(grey.astype(np.uint16) * 257, of), prepare(grey, of))
    assert np.array_equal(prepare(colour[:, ::-1], of), prepare(np.ascontiguousarray(colour[:, ::-1]), of))
    assert prepare(np.zeros((1, 1), np.uint8), of).shape == (12, 12, channels)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (pixels(0, 3, 8, 8), r"shape \(3, 8, 8\)"),
        (np.zeros((0, 4), np.uint8), r"shape \(0, 4\)"),
        (np.zeros((4, 4), np.int64), "int64"),
        (np.zeros((4, 4, 3), np.uint16), "holds uint16 in colour, which is for grey ones: give uint8 or floats"),
        (np.full((4, 4), 200.0), "floats from 200 to 200"),
        (np.full((4, 4), -0.1), "floats from -0.1"),
        (np.full((4, 4), np.nan), "floats from nan"),
    ],
)
def test_an_array_that_could_mean_anything_is_refused(array, words):
    with pytest.raises(BadImage, match=words):
        prepare(array, card(GENOTYPE))


def test_what_is_no_image_is_refused():
    for thing, words in ((torch.zeros(3, 8, 8), r"not Tensor, of which .numpy\(\)"), (None, "not NoneType")):
        with pytest.raises(BadImage, match=words):
            prepare(thing, card(GENOTYPE))
    with pytest.raises(BadImage, match="floating-point pixels"):
        prepare(Image.new("F", (8, 8)), card(GENOTYPE))


def test_threads_leave_the_warning_filters_as_they_were():
    before = list(warnings.filters)

    def decode(number):
        with errors_as_bad_image("a file"):
            warnings.warn(Image.DecompressionBombWarning(str(number)), stacklevel=1)

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(decode, number) for number in range(200)]
    for future in futures:
        with pytest.raises(BadImage, match="pixels, more than is safe"):
            future.result()
    assert warnings.filters == before
