"""A val split that is cut from train, of every source, beside a test split that is given or cut."""

import struct

import numpy as np
import pytest
from sources_support import save

from registry import SOURCES
from ssfnas_cli.artifacts.dataset import DataSet
from ssfnas_cli.data.build import build_dataset
from ssfnas_cli.data.holdout import val_counts
from ssfnas_cli.errors import UsageError
from ssfnas_cli.settings import MakeDatasetSettings

COUNTS = {"train": [20, 9, 5], "test": [4, 3, 3]}


def pixels_and_labels(split):
    counts = COUNTS[split]
    pixels = np.random.default_rng(len(split)).integers(0, 256, (sum(counts), 9, 9), np.uint8)
    return pixels, np.repeat(np.arange(3), counts).astype(np.uint8)


def write_folder(root, splits):
    for split in splits:
        for number, (pixels, label) in enumerate(zip(*pixels_and_labels(split), strict=True)):
            save(root / split / f"class{label}" / f"{number:02}.png", pixels)
    return root


def write_list(root, splits):
    for split in splits:
        pixels, labels = pixels_and_labels(split)
        names = [save(root / split / f"{number}.png", image).name for number, image in enumerate(pixels)]
        lines = [f"{split}/{name} {label}\n" for name, label in zip(names, labels, strict=True)]
        (root / f"{split}.txt").write_text("".join(lines))
    return root


def write_npz(root, splits):
    arrays = {}
    for split in splits:
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = pixels_and_labels(split)
    np.savez(root.with_suffix(".npz"), **arrays)
    return root.with_suffix(".npz")


def write_idx(root, splits):
    root.mkdir()
    for split in splits:
        for what, array in zip(("images", "labels"), pixels_and_labels(split), strict=True):
            head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (root / f"{split}-{what}-idx{array.ndim}-ubyte").write_bytes(head + array.tobytes())
    return root


WRITERS = {"folder": write_folder, "list": write_list, "npz": write_npz, "idx": write_idx, "digits": lambda *_: ""}


def rows_of(data, split):
    return set(data.split(split).source_index.tolist())


@pytest.mark.parametrize("splits", [["train"], ["train", "test"]], ids=["test is cut", "test is given"])
@pytest.mark.parametrize("source", sorted(WRITERS))
def test_val_is_a_seeded_share_of_each_class_of_train(tmp_path, source, splits):
    assert set(WRITERS) | {"cifar10", "cifar100"} == {
        name for name in SOURCES.names() if name in SOURCES._builtin_module
    }
    root = str(WRITERS[source](tmp_path / "source", splits))

    def build(**settings):
        plan = MakeDatasetSettings(source=source, root=root, dist="natural", **settings)
        return build_dataset(plan, tmp_path / str(settings), lambda line: None)

    whole, cut, again = build(), build(val_share=0.25), build(val_share=0.25, seed=1)
    for data, undivided in ((cut, whole), (again, build(seed=1))):
        counts = undivided.counts("train")
        assert data.counts("val") == [max(1, count // 4) for count in counts]
        assert [sum(pair) for pair in zip(data.counts("train"), data.counts("val"), strict=True)] == counts
        assert rows_of(data, "train") | rows_of(data, "val") == rows_of(undivided, "train")
        assert not rows_of(data, "train") & rows_of(data, "val")
        assert data.manifest.splits["test"] == undivided.manifest.splits["test"]
    assert rows_of(cut, "val") != rows_of(again, "val")
    assert DataSet.open(cut.path).held_out == ["val", "test", "test_longtail"]


@pytest.mark.parametrize("source", ["folder", "list", "npz", "idx"])
def test_a_val_split_that_is_given_is_not_cut_again(tmp_path, source, monkeypatch):
    monkeypatch.setitem(COUNTS, "val", [2, 2, 2])
    root = WRITERS[source](tmp_path / "source", ["train", "val", "test"])
    plan = MakeDatasetSettings(source=source, root=str(root))
    assert build_dataset(plan, tmp_path / "out", lambda line: None).counts("val") == [2, 2, 2]
    with pytest.raises(UsageError, match=r"--val-share: .*has a val split of its own: leave the flag out"):
        build_dataset(plan.model_copy(update={"val_share": 0.1}), tmp_path / "cut", lambda line: None)


@pytest.mark.parametrize(
    ("count", "share", "expected"), [(100, 0.29, 29), (50, 0.58, 29), (100, 0.2, 20), (99, 0.5, 49)]
)
def test_a_share_is_rounded_down_from_the_number_that_was_typed(make_folder, tmp_path, lines, count, share, expected):
    root = make_folder({"a": count, "b": count}, {}) / "train"
    data = build_dataset(
        MakeDatasetSettings(root=str(root), source="folder", test_share=share), tmp_path / "test", lines.append
    )
    assert data.split("test").counts == [expected, expected]
    assert val_counts([count], share) == [expected]
