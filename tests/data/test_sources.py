import hashlib
import os

import numpy as np
import pytest
from PIL import Image
from sources_support import opened, save

from ssfnas_cli.data.holdout import cut_test
from ssfnas_cli.data.images import choose_size
from ssfnas_cli.errors import InputError, UsageError

# Digits


def test_digits_are_a_seeded_stratified_fifth_and_the_rest():
    source = opened("digits")
    cut_test(source, 0.2, 0, "")
    train, test = source.splits["train"], source.splits["test"]
    assert (source.channels, source.image_size, source.mirrorable) == (1, 8, False)
    assert sorted([*train.source_index, *test.source_index]) == list(range(1797))
    total = np.bincount(train.labels) + np.bincount(test.labels)
    assert np.array_equal(np.bincount(test.labels), total // 5)
    other = opened("digits")
    cut_test(other, 0.2, 1, "")
    assert not np.array_equal(other.splits["test"].source_index, test.source_index)


def test_digits_use_the_whole_range_of_grey():
    split = opened("digits").splits["train"]
    images = np.stack([split.read(index) for index in range(len(split))])
    assert images.shape[1:] == (8, 8, 1)
    assert (images.min(), images.max()) == (0, 255)


def test_digits_are_resized_on_request():
    assert opened("digits", None, 27).splits["train"].read(0).shape == (27, 27, 1)


# What is wrong with the flags


@pytest.mark.parametrize("name", ["folder", "npz", "cifar10", "cifar100"])
def test_a_source_without_its_root_names_the_flag(name, tmp_path):
    with pytest.raises(UsageError, match="--root"):
        opened(name, None)
    with pytest.raises(InputError, match=r"--root.*does not exist"):
        opened(name, tmp_path / "nowhere")


def test_a_root_for_a_source_that_reads_none_is_refused(tmp_path):
    with pytest.raises(UsageError, match="--root: the source digits reads none"):
        opened("digits", tmp_path)


def test_own_images_that_are_too_small_name_the_flag():
    with pytest.raises(InputError, match=r"5x5.*--image-size"):
        choose_size("auto", {(5, 5)})


def test_auto_keeps_one_square_size_and_reports_any_other_choice():
    assert choose_size("auto", {(27, 27)}) == (27, None)
    size, note = choose_size("auto", {(20, 30), (40, 10)})
    assert size == 64 and "20 to 40 wide" in note and "--image-size" in note
    assert choose_size("auto", {(20, 30)})[0] == 64
    assert choose_size(9, {(20, 30), (40, 10)}) == (9, None)


# Folder


def test_a_folder_is_read_in_the_order_of_its_names(make_folder):
    root = make_folder({"b": 3, "a": 2}, {"a": 1, "b": 1}, val={"a": 1, "b": 2})
    (root / "train" / "a" / ".hidden.png").write_bytes(b"no image")
    (root / "train" / ".cache").mkdir()
    (root / "train" / "README.txt").write_text("beside the classes")
    source = opened("folder", root)
    assert (source.class_names, source.channels, source.image_size) == (["a", "b"], 3, 9)
    assert source.mirrorable and list(source.splits) == ["train", "val", "test"]
    assert source.splits["train"].labels.tolist() == [0, 0, 1, 1, 1]
    assert source.splits["train"].name(0) == "train/a/0000.png"
    expected = np.asarray(Image.open(root / "train" / "b" / "0002.png"))
    assert np.array_equal(source.splits["train"].read(4), expected)


def test_a_folder_of_grey_images_has_one_channel_and_one_coloured_image_makes_three(make_folder):
    root = make_folder({"a": 2}, {"a": 1}, grey=True)
    assert opened("folder", root).splits["train"].read(0).shape == (9, 9, 1)
    save(root / "test" / "a" / "colour.png", np.zeros((9, 9, 3), np.uint8))
    grey = opened("folder", root).splits["train"].read(0)
    assert grey.shape == (9, 9, 3) and np.array_equal(grey[:, :, 0], grey[:, :, 2])


def test_images_of_several_sizes_are_made_square(make_folder):
    root = make_folder({"a": 1}, {"a": 1}, size=(20, 11))
    save(root / "train" / "a" / "tall.png", np.zeros((30, 9, 3), np.uint8))
    source = opened("folder", root)
    assert source.image_size == 64 and "--image-size" in source.notes[1]
    assert source.splits["train"].read(0).shape == (64, 64, 3)
    assert opened("folder", root, 15, 0).splits["train"].read(1).shape == (15, 15, 3)


def test_a_class_in_one_split_only_is_named(make_folder):
    with pytest.raises(InputError, match="'wolf' is in test but not in train"):
        opened("folder", make_folder({"a": 1}, {"a": 1, "wolf": 1}))
    with pytest.raises(InputError, match="'a' is in train but not in val"):
        opened("folder", make_folder({"a": 1}, {"a": 1}, val={"b": 1}, name="other"))


def test_a_folder_laid_out_otherwise_says_what_is_wanted(make_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"train/CLASS/ and test/CLASS/"):
        opened("folder", tmp_path / "empty")
    (tmp_path / "empty" / "train").mkdir()
    with pytest.raises(InputError, match=r"test"):
        opened("folder", tmp_path / "empty")
    with pytest.raises(InputError, match=r"is not a folder"):
        opened("folder", save(tmp_path / "one.png", np.zeros((9, 9), np.uint8)))


def test_a_folder_without_one_readable_image_says_so(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        (tmp_path / split / "a" / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match=r"has no readable image"):
        opened("folder", tmp_path)


def test_links_are_followed_and_dangling_ones_are_bad_images(make_folder):
    root = make_folder({"a": 1}, {"a": 1})
    (root / "train" / "a" / "1-good.png").symlink_to(root / "test" / "a" / "0000.png")
    (root / "train" / "a" / "2-dangling.png").symlink_to(root / "nowhere.png")
    (root / "train" / "a" / "3-circle.png").symlink_to("3-circle.png")
    source = opened("folder", root)
    assert source.splits["train"].read(1).shape == (9, 9, 3)
    assert [bad.name for bad in source.bad] == ["train/a/2-dangling.png", "train/a/3-circle.png"]


def test_a_pipe_among_the_images_does_not_block(make_folder):
    root = make_folder({"a": 1}, {"a": 1})
    os.mkfifo(root / "train" / "a" / "pipe.png")
    (root / "train" / "a" / "link.png").symlink_to(root / "train" / "a" / "pipe.png")
    (root / "train" / "a" / "zeros.png").symlink_to("/dev/zero")
    source = opened("folder", root)
    assert len(source.splits["train"]) == 1
    assert {(bad.name, bad.why) for bad in source.bad} == {
        ("train/a/link.png", "is not a regular file"),
        ("train/a/zeros.png", "is not a regular file"),
    }


def test_reading_a_folder_changes_nothing_in_it(make_folder):
    root = make_folder({"a": 2}, {"a": 1})
    before = {path: hashlib.sha256(path.read_bytes()).digest() for path in root.rglob("*.png")}
    opened("folder", root).splits["train"].read(0)
    assert {path: hashlib.sha256(path.read_bytes()).digest() for path in root.rglob("*") if path.is_file()} == before
