"""Images that are in two splits, or twice in train, are counted whatever their files are called."""

from itertools import combinations

import numpy as np
import pytest
from PIL import Image
from sources_support import save

from ssfnas_cli.artifacts.dataset import DataSet
from ssfnas_cli.data.build import build_dataset
from ssfnas_cli.settings import MakeDatasetSettings


def build(root, output, lines, **settings):
    """Make a data set, and what was said of duplicates."""
    build_dataset(MakeDatasetSettings(source="folder", root=str(root), **settings), output, lines.append)
    return [line for line in lines if "pixel for pixel" in line]


def counted_slowly(data, first, second):
    """Images of `second` that are in `first`, and how many of them under another label, by comparing all pairs."""
    one, other = data.split(first), data.split(second)
    equal = (other.rows(range(len(other)))[:, None] == one.rows(range(len(one)))[None]).all((2, 3, 4))
    shared, twins = equal.any(1), equal.argmax(1)
    return int(shared.sum()), int((shared & (other.labels != one.labels[twins])).sum())


@pytest.mark.parametrize("settings", [{}, {"val_share": 0.5}, {"image_size": 16}])
def test_leakage_is_counted_as_a_comparison_of_all_pairs_counts_it(make_folder, tmp_path, lines, settings):
    root = make_folder({"a": 12, "b": 12}, {"a": 6, "b": 6})
    pixels = np.asarray(Image.open(root / "train" / "a" / "0003.png"))
    save(root / "test" / "a" / "copy.bmp", pixels)  # another name and format
    save(root / "test" / "b" / "copy.png", pixels)  # and under another label
    save(root / "test" / "b" / "near.png", pixels ^ 1)  # another image
    for number in range(8):
        twin = (root / "train" / "b" / f"{number:04}.png").read_bytes()
        (root / "train" / "b" / f"twin{number}.png").write_bytes(twin)
        (root / "test" / "b" / f"twin{number}.png").write_bytes(twin)
    said = build(root, tmp_path / "out", lines, **settings)
    data, found = DataSet.open(tmp_path / "out"), {}
    for first, second in combinations([name for name in data.splits if name != "test_longtail"], 2):
        num, differ = found[first, second] = counted_slowly(data, first, second)
        told = [line for line in said if f"images in {second} are in {first}, too" in line]
        assert len(told) == (num > 0)
        if num:
            assert told[0].startswith(f"warning: {num} of {sum(data.counts(second))} images")
            assert (f"({differ} of them as another class)" in told[0]) == (differ > 0)
    assert len(found) == (3 if "val_share" in settings else 1)
    assert found["train", "test"] == (10, 1) or ("val_share" in settings and found["train", "val"][0] > 0)


def test_one_shared_image_is_named_in_both_splits(make_folder, tmp_path, lines):
    root = make_folder({"a": 5, "b": 2}, {"a": 3, "b": 1})
    (root / "test" / "a" / "0001.png").write_bytes((root / "train" / "a" / "0004.png").read_bytes())
    (line,) = build(root, tmp_path / "out", lines)
    assert "1 of 4 images in test" in line
    assert "for example test/a/0001.png in test, train/a/0004.png in train" in line


def test_only_what_is_written_counts(make_folder, tmp_path):
    """The training image that test repeats is left out by the distribution under one seed, and kept under another."""
    root = make_folder({"a": 5, "b": 2}, {"a": 3, "b": 1})
    (root / "test" / "a" / "0001.png").write_bytes((root / "train" / "a" / "0004.png").read_bytes())
    outcomes = set()
    for seed in range(8):
        said = build(root, tmp_path / f"{seed}", [], max_per_class=2, seed=seed)
        kept = 4 in DataSet.open(tmp_path / f"{seed}").split("train").source_index
        assert bool(said) == kept
        outcomes.add(kept)
    assert outcomes == {True, False}


def test_repeats_within_train_are_told_apart_by_their_labels(make_folder, tmp_path, lines):
    root = make_folder({"a": 6, "b": 6}, {"a": 1, "b": 1})
    for source, target in (("a/0000", "a/x"), ("a/0000", "a/y"), ("b/0001", "b/x"), ("a/0002", "b/z")):
        (root / "train" / f"{target}.png").write_bytes((root / "train" / f"{source}.png").read_bytes())
    said = build(root, tmp_path / "out", lines)
    assert said[0] == "3 images in train repeat another one of their class, pixel for pixel"
    assert said[1].startswith("warning: 2 images in train are there under more than one class, pixel for pixel")
    assert "train/a/0002.png" in said[1] and "train/b/z.png" in said[1] and len(said) == 2


def test_a_data_set_without_duplicates_says_nothing(make_folder, tmp_path, lines):
    assert build(make_folder({"a": 5, "b": 5}, {"a": 3, "b": 3}), tmp_path / "out", lines, val_share=0.3) == []
