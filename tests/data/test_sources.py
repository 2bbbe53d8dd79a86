import hashlib
import os
import struct
import sys
import types
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from ssfnas_cli.data.images import BadImage, choose_size, fit_array, read_header, read_image
from ssfnas_cli.data.holdout import cut_test
from ssfnas_cli.data.sources.base import open_source
from ssfnas_cli.errors import InputError, UsageError
from ssfnas_cli.settings import MakeDatasetSettings


def opened(name, root=None, image_size="auto", seed=0, **options):
    """The source of that name, and of those settings."""
    section = {"name": name, **options}
    settings = MakeDatasetSettings(source=section, root=str(root or ""), image_size=image_size, seed=seed)
    return open_source(settings.resolve_plugins())


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def png_claiming(width, height):
    """A PNG whose header names a size that its data does not have."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = b""
    for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 64)), (b"IEND", b"")):
        chunks += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + chunks


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


def test_an_unknown_source_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"--source.*'mnist'.*digits, cifar10"):
        opened("mnist", None)


@pytest.mark.parametrize("name", ["folder", "npz", "cifar10", "cifar100"])
def test_a_source_without_its_root_names_the_flag(name, tmp_path):
    with pytest.raises(UsageError, match="--root"):
        opened(name, None)
    with pytest.raises(InputError, match=r"--root.*does not exist"):
        opened(name, tmp_path / "nowhere")


@pytest.mark.parametrize("size", [7, 0, -1, 100_000, "large"])
def test_an_impossible_side_names_the_flag(size):
    with pytest.raises(UsageError, match="--image-size"):
        choose_size(size, {(32, 32)})


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
    assert source.splits["train"].names[0] == "train/a/0000.png"
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
    assert source.image_size == 64 and "--image-size" in source.notes[0]
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
    root = make_folder({"a": 1}, {"a": 1})
    (root / "train" / "a" / "more").mkdir()
    with pytest.raises(InputError, match="more: is a folder inside a class folder"):
        opened("folder", root)


def test_a_folder_without_one_readable_image_says_so(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        (tmp_path / split / "a" / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match=r"no readable image; train/a/notes.txt"):
        opened("folder", tmp_path)


def test_links_are_followed_and_dangling_ones_are_bad_images(make_folder):
    root = make_folder({"a": 1}, {"a": 1})
    (root / "train" / "a" / "1-good.png").symlink_to(root / "test" / "a" / "0000.png")
    (root / "train" / "a" / "2-dangling.png").symlink_to(root / "nowhere.png")
    split = opened("folder", root).splits["train"]
    assert split.read(1).shape == (9, 9, 3)
    with pytest.raises(BadImage, match="2-dangling"):
        split.read(2)


def test_a_pipe_among_the_images_does_not_block(make_folder):
    root = make_folder({"a": 1}, {"a": 1})
    os.mkfifo(root / "train" / "a" / "pipe.png")
    assert len(opened("folder", root).splits["train"]) == 1


# One image


def test_damaged_files_are_bad_images(tmp_path):
    rng = np.random.default_rng(0)
    whole = save(tmp_path / "whole.png", rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).read_bytes()
    damage = {
        "empty": b"",
        "cut.png": whole[: len(whole) // 2],
        "text.png": b"not an image at all",
        "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        "bomb.png": png_claiming(20_000, 20_000),
        "large.png": png_claiming(9_600, 9_600),
        "short.png": png_claiming(500, 500),
    }
    words = {"empty": "empty file", "bomb.png": "more pixels", "large.png": "more pixels"}
    for name, data in damage.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BadImage, match=f"{name}: .*{words.get(name, '')}"):
            read_image(tmp_path / name, name, 3, 9)


def test_floating_point_pixels_are_refused_with_the_mend(tmp_path):
    path = save(tmp_path / "f.tiff", Image.fromarray(np.zeros((9, 9), np.float32)))
    with pytest.raises(BadImage, match="save it with 8 bits"):
        read_image(path, "f.tiff", 1, 9)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tiff", "webp", "gif", "ppm"])
def test_every_allowed_format_is_told_by_content(tmp_path, suffix):
    path = save(tmp_path / f"image.{suffix}", np.full((9, 9, 3), 200, np.uint8))
    path = path.rename(tmp_path / "image.dat")
    assert abs(int(read_image(path, "x", 3, 9).mean()) - 200) < 4


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    values = np.tile(np.array([0, 257 * 100, 65535], np.uint16), (9, 3))
    path = save(tmp_path / "deep.png", Image.fromarray(values))
    assert read_header(path, "x").is_grey
    assert np.array_equal(read_image(path, "x", 1, 9)[0, :3, 0], [0, 100, 255])


def test_transparency_lies_over_white_and_palettes_become_colours(tmp_path):
    clear = np.zeros((9, 9, 4), np.uint8)
    assert read_image(save(tmp_path / "clear.png", clear), "x", 3, 9).min() == 255
    red = Image.new("P", (9, 9))
    red.putpalette([255, 0, 0] * 256)
    path = save(tmp_path / "red.png", red)
    assert not read_header(path, "x").is_grey
    assert read_image(path, "x", 3, 9)[4, 4].tolist() == [255, 0, 0]
    assert read_image(save(tmp_path / "bits.png", Image.new("1", (9, 9), 1)), "x", 1, 9).min() == 255
    cmyk = save(tmp_path / "print.jpg", Image.new("CMYK", (9, 9)))
    assert read_image(cmyk, "x", 3, 9).shape == (9, 9, 3)


def test_images_are_turned_upright(tmp_path):
    pixels = np.zeros((10, 10, 3), np.uint8)
    pixels[:5] = 255  # the upper half; orientation 3 turns it by 180 degrees
    exif = Image.Exif()
    exif[0x0112] = 3
    path = save(tmp_path / "turned.png", pixels, exif=exif)
    assert read_image(path, "x", 3, 10)[0].max() == 0


def test_fitting_crops_the_centre_of_the_longer_side():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    assert fit_array(wide, 10).min() == 255
    assert fit_array(wide[:, :, :1], 9).shape == (9, 9, 1)


# npz


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


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"test_images": None}, "no 'test_images'"),
        ({"train_labels": None}, "no 'train_labels'"),
        ({"train_labels": np.zeros((40, 14), np.int64)}, "multi-label"),
        ({"train_labels": np.zeros(39, np.int64)}, r"'train_labels' has shape \(39,\), for 40 images"),
        ({"train_labels": np.zeros(40)}, "not whole numbers"),
        ({"train_labels": np.full(40, -1)}, "'train_labels' has labels -1"),
        ({"train_labels": np.full(40, 999)}, "label 999"),
        ({"train_images": np.zeros((40, 12, 12))}, "'train_images' holds float64, not uint8"),
        ({"train_images": np.zeros((40, 12), np.uint8)}, "'train_images' has shape"),
        ({"train_images": np.zeros((40, 12, 12, 3), np.uint8)}, "differ in channels"),
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


# CIFAR, with a stand-in for torchvision's reader: the true one takes only files of the published md5 sums


def stand_in(monkeypatch, reader):
    datasets = types.SimpleNamespace(CIFAR10=reader, CIFAR100=reader)
    monkeypatch.setitem(sys.modules, "torchvision", types.SimpleNamespace(datasets=datasets))


def test_cifar_goes_through_torchvision_and_keeps_stdout_clean(monkeypatch, tmp_path, capsys):
    class Reader:
        classes = ("cat", "dog")

        def __init__(self, root, train, download):
            print("Files already downloaded and verified")
            self.data = np.full((6 if train else 4, 32, 32, 3), 9, np.uint8)
            self.targets = [0, 1] * (len(self.data) // 2)

    stand_in(monkeypatch, Reader)
    source = opened("cifar10", tmp_path)
    assert (source.class_names, len(source.splits["train"])) == (["cat", "dog"], 6)
    assert source.splits["test"].read(3).shape == (32, 32, 3)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("name", "folder"), [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")])
def test_a_failed_cifar_download_says_where_to_put_the_files(monkeypatch, tmp_path, name, folder):
    def reader(root, train, download):
        raise OSError("Name or service not known")

    stand_in(monkeypatch, reader)
    with pytest.raises(InputError, match=f"--root.*Name or service not known.*put {folder} there"):
        opened(name, tmp_path)


def test_reading_a_folder_changes_nothing_in_it(make_folder):
    root = make_folder({"a": 2}, {"a": 1})
    before = {path: hashlib.sha256(path.read_bytes()).digest() for path in root.rglob("*.png")}
    opened("folder", root).splits["train"].read(0)
    assert {path: hashlib.sha256(path.read_bytes()).digest() for path in root.rglob("*") if path.is_file()} == before
