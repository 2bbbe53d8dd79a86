"""How an image folder may be laid out, what is cut from it, and what is passed over."""

import os

import numpy as np
import pytest
from PIL import Image

from ssfnas_cli.artifacts.dataset import DataSet
from ssfnas_cli.data.build import build_dataset
from ssfnas_cli.data.sources.base import open_source
from ssfnas_cli.errors import InputError, UsageError
from ssfnas_cli.settings import MakeDatasetSettings


def settings_of(root, **settings):
    return MakeDatasetSettings(source="folder", root=str(root), **settings)


def build(root, output, lines, **settings):
    return build_dataset(settings_of(root, **settings), output, lines.append)


@pytest.fixture
def photos(tmp_path):
    """`photos/{cat,dog,eel}/*.png`, 20, 10 and 5 of them."""
    rng = np.random.default_rng(0)
    for name, count in (("cat", 20), ("dog", 10), ("eel", 5)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(count):
            picture(tmp_path / "photos" / name / f"{number:02d}.png", rng)
    return tmp_path / "photos"


def picture(path, rng=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = rng or np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)


# Class folders without splits


def test_class_folders_without_splits_are_divided_by_the_seed(photos, tmp_path, lines):
    data = build(photos, tmp_path / "out", lines)
    assert data.class_names == ["cat", "dog", "eel"] and data.splits == ["train", "test", "test_longtail"]
    assert data.counts("train") == [16, 8, 4] and data.counts("test") == [4, 2, 1]
    train, test = (data.split(name).source_index.tolist() for name in ("train", "test"))
    assert sorted([*train, *test]) == list(range(35))
    assert lines == [
        f"{photos}: 3 class folders without splits, 35 images",
        "test: 7 of 35 images, drawn from each class by the seed (--test-share 0.2)",
        "train: 28 of 28 images kept",
    ]
    assert build(photos, tmp_path / "same", lines).sha256 == data.sha256
    other = build(photos, tmp_path / "other", lines, seed=1)
    assert sorted(other.split("test").source_index) != sorted(test)


def test_another_share_and_a_train_folder_without_a_test_folder(photos, make_folder, tmp_path, lines):
    assert build(photos, tmp_path / "half", lines, test_share=0.5).counts("test") == [10, 5, 2]
    root = make_folder({"a": 10, "b": 4}, {}, val={"a": 2, "b": 2})
    data = build(root, tmp_path / "out", lines)
    assert (data.counts("train"), data.counts("val"), data.counts("test")) == ([8, 3], [2, 2], [2, 1])
    assert f"{root}: 2 class folders in each split, images: train/ with 14, val/ with 4" in lines


def test_a_test_split_of_its_own_is_not_touched(make_folder, tmp_path, lines):
    root = make_folder({"a": 10, "b": 4}, {"a": 3, "b": 2})
    data = build(root, tmp_path / "out", lines)
    assert (data.counts("train"), data.counts("test")) == ([10, 4], [3, 2])
    with pytest.raises(UsageError, match=r"--test-share: --root .* has a test split of its own: leave the flag out"):
        build(root, tmp_path / "other", lines, test_share=0.3)
    build(root, tmp_path / "usual", lines, test_share=0.2)  # as --show-settings prints it


def test_a_single_class_is_refused_with_the_likely_cause(photos, tmp_path, lines):
    with pytest.raises(InputError, match=r"a single class, 'photos'.* --root should be .* too high or too deep"):
        build(photos.parent, tmp_path / "out", lines)
    assert not (tmp_path / "out").exists()


def test_classes_that_differ_by_case_alone_are_a_warning(make_folder, tmp_path, lines):
    build(make_folder(dict.fromkeys(["Cat", "cat", "dog"], 3), {}), tmp_path / "out", lines)
    (warning,) = [line for line in lines if line.startswith("warning: classes")]
    assert "classes 'Cat' and 'cat' differ by case alone: if they are one class" in warning


def test_a_share_of_zero_and_a_class_of_one_image_cannot_be_divided(photos, tmp_path, lines):
    with pytest.raises(UsageError, match=r"--test-share: 0 .*no test split"):
        build(photos, tmp_path / "out", lines, test_share=0.0)
    picture(photos / "fox" / "0.png")
    with pytest.raises(InputError, match="class 'fox' has 1 image, and one to train on and one to test on are needed"):
        build(photos, tmp_path / "out", lines)
    assert not (tmp_path / "out").exists()


def test_a_val_split_is_cut_from_the_long_tail(photos, tmp_path, lines):
    data = build(photos, tmp_path / "out", lines, val_share=0.25)
    assert (data.counts("train"), data.counts("val"), data.counts("test")) == ([12, 6, 3], [4, 2, 1], [4, 2, 1])
    places = [data.split(name).source_index.tolist() for name in ("train", "val", "test")]
    assert sorted(place for split in places for place in split) == list(range(35))
    assert "train: 21 of 28 images kept: 7 in val (--val-share 0.25)" in lines
    whole = build(photos, tmp_path / "whole", lines)
    assert sorted(places[0] + places[1]) == sorted(whole.split("train").source_index)
    assert data.manifest.short_classes == []
    assert DataSet.open(tmp_path / "out").held_out == ["val", "test", "test_longtail"]


def test_a_small_class_keeps_two_images_to_train_on(photos, tmp_path, lines):
    data = build(photos, tmp_path / "out", lines, dist="exp", mu=0.1, val_share=0.9)
    assert (data.counts("train"), data.counts("val")) == ([2, 2, 1], [14, 3, 0])


def test_a_val_split_of_its_own_is_not_cut_again(make_folder, tmp_path, lines):
    root = make_folder({"a": 10}, {"a": 3}, val={"a": 2})
    with pytest.raises(UsageError, match=r"--val-share: .*a val split of its own"):
        build(root, tmp_path / "out", lines, val_share=0.1)


# Which folders are splits


@pytest.mark.parametrize(
    ("names", "roles"),
    [
        (("Train", "Test"), ["train", "test"]),
        (("training", "testing", "valid"), ["train", "val", "test"]),
        (("TRAIN", "test", "validation"), ["train", "val", "test"]),
        (("train", "test", "dev"), ["train", "val", "test"]),
    ],
)
def test_splits_are_known_by_their_usual_names(tmp_path, names, roles):
    for name in names:
        picture(tmp_path / "x" / name / "a" / "0.png")
    source = open_source(settings_of(tmp_path / "x"))
    assert list(source.splits) == roles and all(f"{name}/ with 1" in source.notes[0] for name in names)


def test_two_folders_for_one_split_are_refused(tmp_path):
    for name in ("train", "valid", "val"):
        picture(tmp_path / "x" / name / "a" / "0.png")
    with pytest.raises(InputError, match=r"both val/ and valid/|both valid/ and val/"):
        open_source(settings_of(tmp_path / "x"))


@pytest.mark.parametrize("with_classes", [False, True])
def test_a_val_split_without_images_is_left_out_and_said(make_folder, tmp_path, lines, with_classes):
    root = make_folder({"a": 3, "b": 3}, {"a": 1, "b": 1})
    for name in ("a", "b") if with_classes else ("",):
        (root / "val" / name).mkdir(parents=True)
    data = build(root, tmp_path / "out", lines)
    assert data.splits == ["train", "test", "test_longtail"]
    assert [line for line in lines if "the split val is left out" in line and str(root / "val") in line]


def test_a_class_may_be_called_train(tmp_path):
    for name in ("bus", "train"):
        picture(tmp_path / "x" / name / "0.png")
    assert open_source(settings_of(tmp_path / "x")).class_names == ["bus", "train"]


def test_unlabelled_test_images_and_splits_inside_classes_are_refused(tmp_path):
    picture(tmp_path / "x" / "train" / "a" / "0.png")
    picture(tmp_path / "x" / "test" / "0.png")
    with pytest.raises(InputError, match=r"x/test: has images but no class folders.*test/CLASS/"):
        open_source(settings_of(tmp_path / "x"))
    for name in ("train", "test"):
        picture(tmp_path / "y" / "cat" / name / "0.png")
    with pytest.raises(InputError, match=r"the class folder 'cat' holds a folder 't.*, which may be a split"):
        open_source(settings_of(tmp_path / "y"))
    for name in ("cat", "dog", "val"):
        picture(tmp_path / "beside" / name / "0.png")
    with pytest.raises(InputError, match=r"beside/val: lies beside the class folder 'cat' .* val/CLASS/.*rename it"):
        open_source(settings_of(tmp_path / "beside"))
    picture(tmp_path / "z" / "test" / "a" / "0.png")
    with pytest.raises(InputError, match="has test/ with folders in it but no train/"):
        open_source(settings_of(tmp_path / "z"))


def test_folders_beside_the_splits_are_named(make_folder):
    root = make_folder({"a": 1}, {"a": 1})
    picture(root / "extra" / "0.png")
    assert f"warning: {root}: passed over the folders beside train/: extra" in open_source(settings_of(root)).notes


# What is no image


def test_side_files_are_passed_over_and_counted(photos, tmp_path, lines):
    clean = build(photos, tmp_path / "clean", lines)
    lines.clear()
    for name in ("Thumbs.db", "desktop.ini", "labels.csv", "a.txt", "b.txt", "SHA256SUMS", "meta.json", ".DS_Store"):
        (photos / "cat" / name).write_text("x")
    (photos / "cat" / "._00.png").write_bytes(b"\0\5\x16\7")
    for name in ("@eaDir", "__MACOSX", ".ipynb_checkpoints"):
        (photos / name).mkdir()
        (photos / "dog" / name).mkdir()
        picture(photos / "dog" / name / "thumbnail.png")
    (photos / "README.md").write_text("beside the classes")
    picture(photos / "outside.png")
    os.mkfifo(photos / "dog" / "pipe")
    assert build(photos, tmp_path / "out", lines).sha256 == clean.sha256
    said = [line for line in lines if line.startswith("passed over")]
    assert len(said) == 1 and said[0].startswith("passed over 18 files and folders"), lines
    assert "2 @eaDir" in said[0] and "2 .txt" in said[0]


def test_a_text_that_looks_like_an_image_is_no_image(photos):
    (photos / "cat" / "labels.txt").write_text("P2\n2 2\n255\n0 0 0 0\n")
    assert len(open_source(settings_of(photos)).splits["train"]) == 35


@pytest.mark.parametrize("name", ["x.heic", "x.PNG", "x.dcm"])
def test_what_is_named_like_an_image_is_not_lost_in_silence(photos, tmp_path, lines, name):
    (photos / "cat" / name).write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(InputError, match=rf"cat/{name}: is no image of a known format"):
        build(photos, tmp_path / "out", lines)
    assert build(photos, tmp_path / "out", lines, on_bad="skip").manifest.skipped.files == [f"cat/{name}"]


def test_an_image_without_a_suffix_is_read(photos):
    (photos / "cat" / "00.png").rename(photos / "cat" / "00")
    assert len(open_source(settings_of(photos)).splits["train"]) == 35


def test_folders_inside_a_class_are_read_and_counted(photos):
    picture(photos / "cat" / "2024" / "may" / "0.png")
    picture(photos / "cat" / "2023" / "0.png")
    (photos / "cat" / "2023" / "back").symlink_to(photos / "cat")
    source = open_source(settings_of(photos))
    assert (source.splits["train"].labels == 0).sum() == 22
    assert "2 images lie in folders inside the class folders, and belong to those classes" in source.notes


# Names


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31m", "a\u2028b"])
def test_a_class_named_with_control_characters_is_refused(photos, name):
    picture(photos / name / "0.png")
    with pytest.raises(InputError, match="holds control characters: rename it") as caught:
        open_source(settings_of(photos))
    assert str(caught.value).isprintable()


def test_names_that_are_not_utf8(photos, tmp_path, lines):
    (photos / "cat" / "00.png").rename(photos / "cat" / os.fsdecode(b"\xff.png"))
    assert build(photos, tmp_path / "out", lines).counts("train") == [16, 8, 4]
    (photos / "cat" / os.fsdecode(b"\xfe.png")).write_bytes(b"")
    skipped = build(photos, tmp_path / "skipped", lines, on_bad="skip").manifest.skipped
    assert skipped.files == ["cat/\\udcfe.png"] and any("cat/\\udcfe.png" in line for line in lines)
    picture(photos / os.fsdecode(b"\xff") / "0.png")
    with pytest.raises(InputError, match="not named in UTF-8: rename it"):
        build(photos, tmp_path / "other", lines)
