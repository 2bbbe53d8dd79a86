"""IDX files, as MNIST and its relatives are published, whole and broken."""

import gzip
import struct

import numpy as np
import pytest
from sources_support import opened

from ssfnas_cli.data.build import build_dataset
from ssfnas_cli.errors import DiskError, InputError
from ssfnas_cli.settings import MakeDatasetSettings

TYPES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D}


def idx(array):
    """An array as an IDX file, written from the format's description."""
    head = struct.pack(f">HBB{array.ndim}I", 0, TYPES[array.dtype.name], array.ndim, *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def arrays(split, shape=(10, 12), classes=4):
    """Images and labels of a split, which differ from split to split."""
    number = {"train": 24, "test": 12, "val": 8}[split]
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, (number, *shape), np.uint8), (np.arange(number) % classes).astype(np.uint8)


KINDS = ("images", "labels")
NAMES = [
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
    ("train-images.idx3-ubyte", "train-labels.idx1-ubyte", "t10k-images.idx3-ubyte", "t10k-labels.idx1-ubyte"),
    tuple(f"emnist-letters-{part}-idx{n}-ubyte.gz" for part, n in (
        ("train-images", 3), ("train-labels", 1), ("test-images", 3), ("test-labels", 1)
    )),
]  # fmt: skip


def write(root, names=NAMES[0], pack=None, **changed):
    """The files of train and test; `train_images=array` and so on replace an array, or (None) leave its file out."""
    root.mkdir(exist_ok=True)
    whole = {f"{split}_{what}": arrays(split)[what == "labels"] for split in ("train", "test") for what in KINDS}
    for name, array in zip(names, (whole | changed).values(), strict=True):
        if array is not None:
            data = array if isinstance(array, bytes) else idx(array)
            (root / name).write_bytes(gzip.compress(data) if (pack or name.endswith(".gz")) else data)
    return root


@pytest.mark.parametrize("names", NAMES, ids=lambda names: names[0])
@pytest.mark.parametrize("pack", [False, True])
def test_images_and_labels_are_those_of_the_files_under_every_usual_name(tmp_path, names, pack):
    """Compression is told by the content, because some tools unpack a file and keep `.gz` in its name."""
    source = opened("idx", write(tmp_path / "x", names, pack), 12)
    assert (source.class_names, source.channels, source.mirrorable) == (["0", "1", "2", "3"], 1, False)
    for name in ("train", "test"):
        split, (images, labels) = source.splits[name], arrays(name)
        assert split.labels.tolist() == labels.tolist()
        square = opened("idx", tmp_path / "x", 10).splits[name].read(5)
        assert square.shape == (10, 10, 1) and np.array_equal(square[:, :, 0], images[5][:, 1:-1])
        split.release()
        assert split.read(0).shape == (12, 12, 1)


def test_unpacked_files_go_before_the_same_ones_packed(tmp_path):
    root = write(tmp_path / "x")
    (root / "train-images-idx3-ubyte.gz").write_bytes(b"half a download")
    assert len(opened("idx", root).splits["train"]) == 24


def test_colours_wide_labels_and_a_set_among_several(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (24, 9, 9, 3), np.uint8)
    root = write(
        tmp_path / "x",
        [name.replace("letters", "digits") for name in NAMES[2]],
        train_images=colours,
        train_labels=(np.arange(24) % 3).astype(np.int32)[:, None],
        test_images=colours[:6] ^ 1,
        test_labels=(np.arange(6) % 3).astype(np.int16),
    )
    write(root, NAMES[2], train_labels=1 + arrays("train")[1], test_labels=1 + arrays("test")[1])
    with pytest.raises(InputError, match=r"several sets \(emnist-digits, emnist-letters\): choose one"):
        opened("idx", root)
    source = opened("idx", root, set="emnist-digits")
    assert source.channels == 3 and np.array_equal(source.splits["train"].read(7), colours[7])
    with pytest.raises(InputError, match=r"its labels start at 1 and end at 4.*--set source.first_label=1"):
        opened("idx", root, set="EMNIST-letters")
    assert opened("idx", root, set="emnist-letters", first_label=1).class_names == ["1", "2", "3", "4"]
    with pytest.raises(InputError, match=r"has no set 'mnist': --set source.set should name one of emnist-digits"):
        opened("idx", root, set="mnist")


@pytest.mark.parametrize("pack", [False, True])
def test_a_data_set_is_made_with_splits_that_are_cut_or_given(tmp_path, lines, pack):
    root = write(tmp_path / "x", pack=pack)
    plan = MakeDatasetSettings(source="idx", root=str(root), val_share=0.34)
    data = build_dataset(plan, tmp_path / "given", lines.append)
    assert (data.counts("train"), data.counts("val"), data.counts("test")) == ([4] * 4, [2] * 4, [3] * 4)
    for name in NAMES[0][2:]:
        (root / name).unlink()
    data = build_dataset(plan, tmp_path / "cut", lines.append)
    assert (data.counts("train"), data.counts("val"), data.counts("test")) == ([4] * 4, [1] * 4, [1] * 4)
    assert data.manifest.dist == "natural"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"train_labels": None}, "train-images-idx3-ubyte: has no file of labels beside it"),
        ({"test_images": None}, "t10k-labels-idx1-ubyte: has no file of images beside it"),
        ({"train_labels": arrays("train")[1][:-1]}, "has 23 labels, and there are 24 images in train-images"),
        ({"train_images": b"\x89PNG" + bytes(50)}, "its magic number is 0x89504e47, so it is no IDX file"),
        ({"train_images": b"\0\0\x07\x03" + bytes(12)}, "its magic number is 0x00000703, so it is no IDX file"),
        ({"train_images": b""}, "train-images-idx3-ubyte: it is empty"),
        ({"train_images": b"\0\0\x08\x03\0\0"}, "it ends in its header"),
        ({"train_images": arrays("train")[1]}, r"24 numbers of uint8 \(magic number 0x00000801\); images are three"),
        ({"train_labels": arrays("train")[0]}, r"24 x 10 x 12 numbers of uint8 .*0x00000803\); labels are one"),
        ({"train_labels": np.zeros((24, 14), np.uint8)}, "24 x 14 numbers .* labels are one whole number an image"),
        ({"train_labels": np.zeros(24, np.float32)}, "float32 .* labels are one whole number"),
        ({"train_images": np.zeros((24, 9, 9), np.int32)}, "int32 .* images are three dimensions of uint8"),
        ({"train_labels": np.full(24, -1, np.int8)}, "has a label -1: number classes from 0"),
        ({"train_labels": np.full(24, 9, np.uint8)}, "no image has label 4, and the highest label is 9"),
        ({"test_images": np.zeros((12, 10, 12, 3), np.uint8)}, "its splits differ in channels"),
        ({"train_images": arrays("train")[0][:0], "train_labels": arrays("train")[1][:0]}, "nothing to train on"),
    ],
)
@pytest.mark.parametrize("pack", [False, True])
def test_files_that_are_wrong_are_named(tmp_path, changed, words, pack):
    with pytest.raises(InputError, match=words) as caught:
        opened("idx", write(tmp_path / "x", pack=pack, **changed))
    assert "\n" not in str(caught.value) and str(tmp_path / "x") in str(caught.value)


@pytest.mark.parametrize("change", [lambda data: data[:-7], lambda data: data + b"more"], ids=["cut", "longer"])
def test_a_length_that_is_not_the_headers_is_refused(tmp_path, change):
    images, labels = arrays("train")
    for changed in ({"train_images": change(idx(images))}, {"train_labels": change(idx(labels))}):
        with pytest.raises(InputError, match=r"its header says 24.*which takes .* bytes, and .* follow it"):
            opened("idx", write(tmp_path / "x", **changed))
        with pytest.raises(InputError, match=r"train-.*: cannot be read, is the file whole\?"):
            opened("idx", write(tmp_path / "x", pack=True, **changed))


@pytest.mark.parametrize("part", [0, 1], ids=["images", "labels"])
def test_a_packed_file_that_is_cut_or_damaged_is_named(tmp_path, part):
    root = write(tmp_path / "x", pack=True)
    path = root / NAMES[0][part]
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-6] ^= 1  # in the checksum
    for data in (whole[: len(whole) // 2], whole[:-4], whole[:12]):
        path.write_bytes(data)
        with pytest.raises(InputError, match=rf"{path.name}: cannot be read, is the file whole\?"):
            opened("idx", root)
    for data in (bytes(flipped), whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]):
        path.write_bytes(data)
        with pytest.raises(InputError, match=rf"{path.name}: cannot be read, is the file whole\?"):
            opened("idx", root).splits["train"].read(0)


def test_a_file_that_is_packed_in_several_parts_is_read(tmp_path):
    root = write(tmp_path / "x", pack=True)
    data = idx(arrays("train")[0])
    (root / NAMES[0][0]).write_bytes(gzip.compress(data[:1000]) + gzip.compress(data[1000:]))
    assert np.array_equal(opened("idx", root, 10).splits["train"].read(23)[:, :, 0], arrays("train")[0][23][:, 1:-1])


def test_a_packed_file_that_claims_more_than_it_can_hold_is_refused(tmp_path):
    head = struct.pack(">HBB3I", 0, 8, 3, 2**31, 2**10, 2**10)
    with pytest.raises(InputError, match=r"bytes cannot hold the 2,251,799,813,685,248 that its header claims"):
        opened("idx", write(tmp_path / "x", pack=True, train_images=head + bytes(1000)))


def test_too_little_room_to_unpack_is_said_with_the_mend(tmp_path, monkeypatch):
    split = opened("idx", write(tmp_path / "x", pack=True)).splits["train"]
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 100}))
    with pytest.raises(DiskError, match=r"takes 2,880 bytes in .* while it is read, and 100 are free: set TMPDIR"):
        split.read(0)


def test_a_folder_without_such_files_says_where_they_may_be(tmp_path):
    with pytest.raises(InputError, match=r"has no IDX files: source 'idx' wants train-images-idx3-ubyte"):
        opened("idx", tmp_path)
    (tmp_path / "MNIST").mkdir()
    write(tmp_path / "MNIST" / "raw")
    with pytest.raises(InputError, match=r"perhaps --root .*MNIST/raw"):
        opened("idx", tmp_path)
    with pytest.raises(InputError, match=r"--root: .* is not a folder"):
        opened("idx", tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte")
