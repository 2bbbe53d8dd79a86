"""MedMNIST's npz files, whole and broken."""

import io
import os
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from sources_support import opened

from ssfnas_cli.errors import DiskError, InputError


def test_an_npz_is_read_with_its_own_splits(make_npz):
    source = opened("npz", make_npz())
    assert (source.class_names, source.channels, source.image_size) == (["0", "1", "2", "3"], 1, 12)
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 40, "val": 8, "test": 12}
    before = source.splits["train"].read(3)
    source.splits["train"].release()
    assert before.shape == (12, 12, 1) and np.array_equal(source.splits["train"].read(3), before)


def test_an_npz_may_lack_val_and_have_flat_labels_and_colours(make_npz):
    colour = np.zeros((40, 20, 14, 3), np.uint8)
    test = np.zeros((12, 20, 14, 3), np.uint8)
    path = make_npz(
        val_images=None,
        val_labels=None,
        train_images=colour,
        test_images=test,
        train_labels=np.arange(40) % 4,
    )
    source = opened("npz", path)
    assert list(source.splits) == ["train", "test"]
    assert source.splits["test"].read(0).shape == (64, 64, 3)


@pytest.mark.parametrize("side", [28, 64, 128, 224])
@pytest.mark.parametrize("colours", [(), (3,)], ids=["grey", "colour"])
@pytest.mark.parametrize("wide", [(), (1,)], ids=["N", "Nx1"])
def test_every_published_size_and_colour_is_read_as_it_is(make_npz, side, colours, wide):
    arrays = {}
    for split, number in (("train", 6), ("val", 0), ("test", 3)):
        pixels = np.random.default_rng(number).integers(0, 256, (number, side, side, *colours), np.uint8)
        arrays |= {f"{split}_images": pixels, f"{split}_labels": (np.arange(number) % 3).reshape(-1, *wide)}
    source = opened("npz", make_npz(**arrays))
    assert (list(source.splits), source.image_size, source.channels) == (["train", "test"], side, len(colours) * 2 + 1)
    for name, split in source.splits.items():
        expected = arrays[f"{name}_images"].reshape(-1, side, side, source.channels)
        assert all(np.array_equal(split.read(index), image) for index, image in enumerate(expected))
        assert split.labels.tolist() == (np.arange(len(split)) % 3).tolist()
        split.release()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_are_never_in_memory_as_a_whole(tmp_path, save):
    pixels = np.random.default_rng(0).integers(0, 256, (128, 224, 224, 3), np.uint8)  # 19 MB
    arrays = {"train_images": pixels, "train_labels": np.arange(128) % 2}
    save(tmp_path / "large.npz", **arrays)
    order = np.random.default_rng(1).permutation(128).tolist()

    def read():
        split = opened("npz", tmp_path / "large.npz").splits["train"]
        assert all(np.array_equal(split.read(index), pixels[index]) for index in order)

    read()  # what is imported for the first time
    assert traced_peak(read) < 6 * 2**20


def test_an_array_in_fortrans_order_is_read(make_npz):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 12, 12, 3), np.uint8)
    others = {f"{split}_{what}": None for split in ("val", "test") for what in ("images", "labels")}
    square = opened("npz", make_npz(train_images=np.asfortranarray(pixels), **others), 12).splits["train"]
    assert all(np.array_equal(square.read(index), image) for index, image in enumerate(pixels))


def test_classes_may_have_names_and_begin_at_one(make_npz, tmp_path):
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\n")
    labels = {f"{split}_labels": 1 + np.arange(n) % 4 for split, n in {"train": 40, "val": 8, "test": 12}.items()}
    source = opened("npz", make_npz(**labels), first_label=1, classes="names.txt")
    assert source.class_names == ["a", "b", "c", "d"] and source.splits["test"].labels.max() == 3


def test_too_little_room_to_unpack_is_said_with_the_mend(make_npz, monkeypatch):
    split = opened("npz", make_npz()).splits["train"]
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 100}))
    with pytest.raises(DiskError, match=r"'train_images' takes 5,760 bytes in .*, and 100 are free: set TMPDIR"):
        split.read(0)


def test_the_room_is_free_again_when_a_split_is_released(make_npz, monkeypatch, tmp_path):
    (tmp_path / "room").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "room"))

    def held():
        maps = Path("/proc/self/maps").read_text()
        return maps.count(str(tmp_path / "room"))

    split = opened("npz", make_npz()).splits["train"]
    assert split.read(3).shape == (12, 12, 1) and held() == 1
    assert list((tmp_path / "room").iterdir()) == [], "nothing stays if the program is killed"
    split.release()
    assert held() == 0


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"test_images": None}, "no 'test_images'"),
        ({"train_labels": None}, "no 'train_labels'"),
        ({"train_labels": np.zeros((40, 14), np.int64)}, "has 14 labels an image: multi-label data is not supported"),
        ({"train_labels": np.zeros(39, np.int64)}, r"'train_labels' has shape \(39,\), for 40 images"),
        ({"train_labels": np.zeros(40)}, "not whole numbers"),
        ({"train_labels": np.full(40, -1)}, "'train_labels' has labels -1"),
        ({"train_labels": np.full(40, 999)}, "no image has label 4, and the highest label is 999"),
        ({"train_images": np.zeros((40, 12, 12))}, "'train_images' holds float64, not uint8"),
        ({"train_images": np.zeros((40, 12), np.uint8)}, "'train_images' has shape"),
        ({"train_images": np.zeros((40, 12, 12, 3), np.uint8)}, "differ in channels"),
        ({"train_images": np.zeros((40, 28, 28, 28), np.uint8)}, "'train_images' holds volumes of 28x28x28 voxels"),
        ({"train_images": np.zeros((40, 28, 28, 28, 1), np.uint8)}, "'train_images' holds volumes of 28x28x28 voxels"),
        ({"train_images": np.zeros((40, 12, 12, 2), np.uint8)}, r"has shape \(40, 12, 12, 2\), not"),
        ({"train_labels": np.array([{}] * 40, dtype=object)}, "'train_labels' holds object"),
    ],
)
def test_an_npz_that_does_not_fit_names_the_file_and_the_key(make_npz, arrays, words):
    with pytest.raises(InputError, match=words) as caught:
        opened("npz", make_npz(**arrays))
    assert "medical.npz" in str(caught.value) and "\n" not in str(caught.value)


def test_a_broken_npz_names_the_file(make_npz, tmp_path):
    path = make_npz()
    whole = path.read_bytes()
    for name, data in {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"hello"}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=f"{name}: "):
            opened("npz", tmp_path / name)
    with pytest.raises(InputError, match="cannot be read"):
        opened("npz", tmp_path)


def test_an_array_that_claims_fewer_images_than_it_has_is_refused(make_npz, tmp_path):
    with zipfile.ZipFile(make_npz()) as source, zipfile.ZipFile(tmp_path / "long.npz", "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name) + b"more")
    with pytest.raises(InputError, match=r"long\.npz: 'train_labels' .*bytes follow the array"):
        opened("npz", tmp_path / "long.npz")


def test_a_flipped_bit_in_an_npz_names_the_array(make_npz, tmp_path):
    stored = tmp_path / "stored.npz"
    with zipfile.ZipFile(make_npz()) as source, zipfile.ZipFile(stored, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    data = bytearray(stored.read_bytes())
    with zipfile.ZipFile(stored) as archive:
        start = archive.getinfo("train_images.npy").header_offset
    data[start + 1000] ^= 1
    stored.write_bytes(data)
    split = opened("npz", stored).splits["train"]
    with pytest.raises(InputError, match=r"'train_images' cannot be read.*CRC"):
        split.read(0)


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("empty", [np.zeros((0, 12, 12), np.uint8), np.zeros(0)])
def test_a_split_of_an_npz_without_images_is_left_out_and_said(make_npz, split, empty):
    source = opened("npz", make_npz(**{f"{split}_images": empty, f"{split}_labels": np.zeros((0, 1), np.uint8)}))
    assert split not in source.splits
    assert source.notes == [f"'{split}_images' has no images: the split {split} is left out"]


def test_an_npz_without_training_images_is_refused(make_npz):
    empty = {"train_images": np.zeros((0, 12, 12), np.uint8), "train_labels": np.zeros(0, np.int64)}
    with pytest.raises(InputError, match="'train_images' has no images"):
        opened("npz", make_npz(**empty))


def test_labels_that_start_at_one_say_so_with_the_mend(make_npz):
    labels = {f"{split}_labels": 1 + np.arange(n) % 4 for split, n in {"train": 40, "val": 8, "test": 12}.items()}
    with pytest.raises(InputError, match=r"its labels start at 1 and end at 4.*--set source.first_label=1"):
        opened("npz", make_npz(**labels))


def npz_with(make_npz, path, key, data):
    """A copy of an npz in which the bytes of an array are replaced."""
    with zipfile.ZipFile(make_npz()) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, data if name == f"{key}.npy" else source.read(name))
    return path


def traced_peak(function):
    """The most memory, in bytes, that Python and numpy held while the function ran."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_an_npz_header_that_claims_a_gigabyte_is_refused_before_it_is_read(make_npz, tmp_path):
    claim = b"\x93NUMPY\x02\x00" + (2**26).to_bytes(4, "little") + b" " * 2**26
    path = npz_with(make_npz, tmp_path / "header.npz", "train_images", claim)

    def refused():
        with pytest.raises(InputError, match=r"'train_images' cannot be read.*header claims 67,108,864 bytes"):
            opened("npz", path)

    assert traced_peak(refused) < 2**24


def test_an_array_that_claims_more_than_it_has_is_refused_before_it_is_allocated(make_npz, tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (40, 9999, 9999)})
    path = npz_with(make_npz, tmp_path / "claim.npz", "train_images", header.getvalue() + b"few")
    split = opened("npz", path, 12).splits["train"]

    def refused():
        with pytest.raises(InputError, match=r"'train_images' cannot be read.*its header wants 3,999,200,040 bytes"):
            split.read(0)

    assert traced_peak(refused) < 2**24


def test_a_pipe_in_place_of_an_npz_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(InputError, match=r"pipe\.npz: cannot be read: it is not a regular file"):
        opened("npz", tmp_path / "pipe.npz")
