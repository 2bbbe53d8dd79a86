"""Lists, IDX and npz files that are wrong: one line, the right exit code, and every file as it was."""

import gzip

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def images(tmp_path):
    """`images/{0..5}.png`, each of one grey."""
    (tmp_path / "images").mkdir()
    for number in range(6):
        Image.new("L", (9, 9), 20 * number).save(tmp_path / "images" / f"{number}.png")
    return tmp_path / "images"


@pytest.mark.parametrize(
    "words, lines",
    [
        (["--root images: gone.png: is missing (line 2 of", "train.txt", "on_bad=skip"], "0.png 0\ngone.png 0\n"),
        (["images/train.txt: line 2: its label -1 is out of range"], "0.png 0\n1.png -1\n"),
        (["no image has label 1", "highest label is 5", "source.classes"], "0.png 0\n1.png 5\n"),
        (["'0.png' has label 0 in line 1 and 1 in line 3"], "0.png 0\n1.png 1\n0.png 1\n"),
        (["line 1: '../0.png' is not below --root images"], "../0.png 0\n"),
    ],
)
def test_a_list_that_is_wrong(ssfnas, images, tmp_path, words, lines):
    (images / "train.txt").write_text(lines)
    ssfnas.refuses(3, words, "make-dataset", "--source", "list", "--root", "images", "-o", "data", cwd=tmp_path)


def test_a_path_in_two_lists_is_a_warning_that_counts(ssfnas, images, tmp_path):
    (images / "a.txt").write_text("0.png 0\n1.png 1\n2.png 0\n3.png 1\n")
    (images / "b.txt").write_text("4.png 0\n1.png 1\n3.png 1\n")
    lists = ["--set", "source.train=a.txt", "--set", "source.test=b.txt"]
    argv = ["make-dataset", "--source", "list", "--root", "images", *lists, "-o", "data"]
    result = ssfnas.ok(*argv, cwd=tmp_path)
    assert result.json["train_counts"] == [2, 2] and result.json["test_counts"] == [1, 2]
    warnings = [line for line in result.err.splitlines() if line.startswith("ssfnas: warning: ")]
    assert len(warnings) == 2 and "b.txt: 2 of its 3 paths are in" in warnings[0]
    assert "2 of 3 images in test are in train, too, pixel for pixel" in warnings[1]
    quiet = ssfnas.ok(*argv[:-1], "again", "-q", cwd=tmp_path)
    assert quiet.err.splitlines() == warnings, "warnings are shown with -q, too"


@pytest.mark.parametrize(
    "what, words, change",
    [
        ("images", ["its magic number is 0x00000703"], lambda data: b"\0\0\7" + data[3:]),
        ("images", ["its header says 8 x 9 x 9", "647 follow"], lambda data: data[:-1]),
        ("labels", ["has 7 labels", "8 images"], lambda data: data[:7] + b"\7" + data[8:-1]),
        ("images", ["cannot be read", "whole"], lambda data: gzip.compress(data)[:-20]),
    ],
)
def test_an_idx_file_that_is_wrong(ssfnas, tmp_path, what, words, change):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 9), np.uint8)
    whole = {
        "train-images-idx3-ubyte": bytes([0, 0, 8, 3, 0, 0, 0, 8, 0, 0, 0, 9, 0, 0, 0, 9]) + pixels.tobytes(),
        "train-labels-idx1-ubyte": bytes([0, 0, 8, 1, 0, 0, 0, 8, 0, 1, 0, 1, 0, 1, 0, 1]),
    }
    (tmp_path / "mnist").mkdir()
    for file, data in whole.items():
        (tmp_path / "mnist" / file).write_bytes(change(data) if what in file else data)
    argv = ["make-dataset", "--source", "idx", "--root", "mnist", "-o", "data"]
    ssfnas.refuses(3, [f"mnist/train-{what}-idx", *words], *argv, cwd=tmp_path)


@pytest.mark.parametrize(
    "words, shape, labels",
    [
        (["14 labels an image", "multi-label"], (8, 9, 9), (8, 14)),
        (["volumes of 28x28x28"], (8, 28, 28, 28), (8, 1)),
    ],
)
def test_a_medical_set_of_another_kind(ssfnas, tmp_path, words, shape, labels):
    np.savez(tmp_path / "x.npz", train_images=np.zeros(shape, np.uint8), train_labels=np.zeros(labels, np.uint8))
    argv = ["make-dataset", "--source", "npz", "--root", "x.npz", "-o", "data"]
    ssfnas.refuses(3, ["x.npz: 'train_", *words], *argv, cwd=tmp_path)
