import contextlib
import hashlib
import io
import os
import socket
import struct
import sys
import threading
import tracemalloc
import types
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from registry import PluginError
from ssfnas_cli.data import images
from ssfnas_cli.data.holdout import cut_test
from ssfnas_cli.data.images import BadImage, choose_size, fit_array, printable, read_header, read_image
from ssfnas_cli.data.sources import arrays
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
    source = opened("folder", root)
    assert source.splits["train"].read(1).shape == (9, 9, 3)
    assert [bad.name for bad in source.bad] == ["train/a/2-dangling.png"]


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


def tiff(path, values, kind, photometric=1):
    """A grey TIFF of the values' type; `kind` is 1 for unsigned, 2 for signed, 3 for floating-point values."""
    data, (height, width) = values.tobytes(), values.shape
    bits = 8 * values.itemsize
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, None), (277, 1)]
    tags += [(278, height), (279, len(data)), (339, kind)]
    start = 14 + 12 * len(tags)
    entries = [struct.pack("<HHII", tag, 4, 1, start if value is None else value) for tag, value in tags]
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + struct.pack("<I", 0) + data)
    return path


DEEP = {
    "signed 16-bit": (np.array([[-1000, 0], [200, 400]], "<i2"), 2, "signed or 32-bit", (-1000, 400)),
    "signed 32-bit": (np.array([[-1000, 0], [200, 400]], "<i4"), 2, "signed or 32-bit", (-1000, 400)),
    "unsigned 32-bit": (np.array([[0, 10**9], [2 * 10**9, 4 * 10**9]], "<u4"), 1, "signed or 32-bit", (0, 4e9)),
    "floating-point": (np.array([[-0.5, 0.0], [0.25, 1.0]], "<f4"), 3, "floating-point", (-0.5, 1.0)),
}


@pytest.mark.parametrize("what", DEEP)
def test_pixels_whose_range_is_not_known_are_refused_or_read_with_a_stated_one(tmp_path, what):
    values, kind, words, (low, high) = DEEP[what]
    path = tiff(tmp_path / "deep.tif", np.tile(values, (4, 4)), kind)
    for read in (lambda: read_image(path, "deep.tif", 1, 8), lambda: read_header(path, "deep.tif")):
        with pytest.raises(BadImage, match=rf"deep.tif: has {words} pixels.*--set source.range=LOW:HIGH"):
            read()
    got = read_image(path, "deep.tif", 1, 8, (low, high))[:2, :2, 0]
    assert np.array_equal(got, np.rint((values.astype(float) - low) / (high - low) * 255))
    assert read_header(path, "deep.tif", (low, high)).is_grey


def test_values_outside_the_stated_range_are_black_or_white_and_no_number_is_refused(tmp_path):
    path = tiff(tmp_path / "f.tif", np.tile(np.array([[-9, 9], [np.inf, -np.inf]], "<f4"), (4, 4)), 3)
    assert read_image(path, "x", 1, 8, (0, 1))[:2, :2, 0].tolist() == [[0, 255], [255, 0]]
    path = tiff(tmp_path / "nan.tif", np.full((8, 8), np.nan, "<f4"), 3)
    with pytest.raises(BadImage, match="not a number"):
        read_image(path, "x", 1, 8, (0, 1))


def test_sixteen_bits_whose_white_is_zero_are_turned(tmp_path):
    path = tiff(tmp_path / "white.tif", np.full((8, 8), 65535, "<u2"), 1, photometric=0)
    assert read_image(path, "x", 1, 8).max() == 0


def test_twelve_bits_in_sixteen_are_refused_with_the_range_they_seem_to_have(tmp_path):
    for split in ("train", "test"):
        for name, level in (("a", 900), ("b", 3000)):
            (tmp_path / "ct" / split / name).mkdir(parents=True)
            tiff(tmp_path / "ct" / split / name / "0.tif", np.full((8, 8), level, "<u2"), 1)
    with pytest.raises(InputError, match=r"no value above 3000 of 65535.*--set source.range=0:4095"):
        opened("folder", tmp_path / "ct")
    split = opened("folder", tmp_path / "ct", range="0:4095").splits["train"]
    assert [split.read(place)[0, 0, 0] for place in (0, 1)] == [56, 187]
    assert opened("folder", tmp_path / "ct", range="0,65535").splits["train"].read(1).max() == 12
    tiff(tmp_path / "ct" / "train" / "a" / "bright.tif", np.full((8, 8), 40000, "<u2"), 1)
    assert opened("folder", tmp_path / "ct").channels == 1


def test_twelve_bits_in_sixteen_of_colours_are_refused_too(tmp_path):
    head = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    row = b"\0" + struct.pack(">H", 4095) * 24
    data = b"".join(chunk(*one) for one in ((b"IHDR", head), (b"IDAT", zlib.compress(row * 8)), (b"IEND", b"")))
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        (tmp_path / split / "a" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    with pytest.raises(InputError, match="16-bit images have no value above"):
        opened("folder", tmp_path)
    with pytest.raises(InputError, match="16-bit colours, which no range can be stated for"):
        opened("folder", tmp_path, range="0:4095")
    assert opened("folder", tmp_path, range="0:65535").splits["train"].read(0).max() == 15


@pytest.mark.parametrize("text", ["5", "5:1", "a:b", "1:1", "1:2:3", 5, [1, 2, 3], "nan:1"])
def test_a_range_that_is_none_names_the_option(make_folder, text):
    with pytest.raises(PluginError, match=r"option 'range' of 'folder': .*LOW"):
        opened("folder", make_folder({"a": 1}, {"a": 1}), range=text)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


REMARKS = {
    "a huge colour profile": chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(2_000_000))),
    "a huge text": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2_000_000))),
    "a text with a wrong sum": chunk(b"tEXt", b"Comment\0hello")[:-1] + b"?",
    "odd dimensions of a pixel": chunk(b"pHYs", b"x"),
    "odd transparency of a later writer": chunk(b"gAMA", b""),
}


@pytest.mark.parametrize("what", REMARKS)
@pytest.mark.parametrize("after", [False, True])
def test_sound_pixels_are_read_whatever_is_remarked_beside_them(tmp_path, what, after):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    whole = save(tmp_path / "plain.png", pixels).read_bytes()
    place = whole.index(b"IEND" if after else b"IDAT") - 4
    (tmp_path / "x.png").write_bytes(whole[:place] + REMARKS[what] + whole[place:])
    assert np.array_equal(read_image(tmp_path / "x.png", "x", 3, 16), pixels)
    assert read_header(tmp_path / "x.png", "x").width == 16


def test_an_orientation_beside_odd_tags_is_followed_and_the_tags_are_not(tmp_path):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 255
    # a "Make" that is a fraction instead of a text, and orientation 6
    tags = struct.pack("<HHII", 0x10F, 5, 1, 38) + struct.pack("<HHII", 0x112, 3, 1, 6)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + tags + struct.pack("<I", 0) + struct.pack("<II", 72, 1)
    path = save(tmp_path / "exif.jpg", pixels, exif=exif)
    got = read_image(path, "x", 1, 16)  # the middle of 16 x 32, white above
    assert got[:7].min() > 240 and got[9:].max() < 15


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_pillow_turns_it(tmp_path, orientation):
    pixels = np.random.default_rng(0).integers(0, 256, (10, 10, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for suffix in ("png", "tiff"):
        path = save(tmp_path / f"turned.{suffix}", pixels, exif=exif)
        with Image.open(path) as image:
            expected = np.asarray(ImageOps.exif_transpose(image))
        assert np.array_equal(read_image(path, "x", 3, 10), expected)


def test_a_large_image_of_16_bits_is_converted_in_parts(tmp_path):
    path = save(tmp_path / "deep.png", Image.fromarray(np.zeros((3000, 3000), np.uint16)))
    assert traced_peak(lambda: read_image(path, "x", 1, 64)) < 24 * 2**20  # whole it takes 72 MB as int64


def test_an_image_is_limited_by_its_bytes_too(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_DECODED_BYTES", 500_000)
    assert read_image(save(tmp_path / "grey.png", np.zeros((300, 300), np.uint8)), "x", 1, 8).max() == 0
    for name, image in {
        "float.tif": Image.fromarray(np.zeros((400, 400), np.float32)),
        "clear.png": Image.fromarray(np.zeros((300, 300, 4), np.uint8)),
    }.items():
        with pytest.raises(BadImage, match="MiB when it is decoded"):
            read_header(save(tmp_path / name, image), "x", (0, 1))


def test_transparency_is_the_same_in_parts_as_whole(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 4), dtype=np.uint8)
    path = save(tmp_path / "clear.png", pixels)
    whole = read_image(path, "x", 3, 40)
    monkeypatch.setattr(images, "STRIP_BYTES", 4 * 40 * 7)
    assert np.array_equal(read_image(path, "x", 3, 40), whole)


def test_names_are_printable_whatever_they_hold():
    assert printable("Größe 猫") == "Größe 猫"
    assert printable("a\nb\x1b[31m") == "a\\u000ab\\u001b[31m"
    assert printable("abc\u202egnp") == "abc\\u202egnp"
    assert printable(os.fsdecode(b"\xff.png")) == "\\udcff.png"


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
    with pytest.raises(InputError, match=r"its labels start at 1 and end at 4.*subtract 1 from the labels of every"):
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


# and with the true one, whose download goes through a proxy of ours


@pytest.fixture
def proxy(monkeypatch):
    """Sends every request to a server on this machine: a function of what it does with a connection."""
    server = socket.create_server(("127.0.0.1", 0))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{server.getsockname()[1]}")
    connections = []

    def serve(answer):
        def work():
            with contextlib.suppress(OSError):  # the client, or the test, has gone
                connection, _ = server.accept()
                connections.append(connection)
                answer(connection)

        threading.Thread(target=work, daemon=True).start()

    yield serve
    for one in (server, *connections):
        one.close()


@pytest.mark.parametrize(("name", "folder"), [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")])
def test_a_silent_cifar_download_is_announced_and_given_up(proxy, tmp_path, caplog, name, folder):
    proxy(lambda connection: None)
    caplog.set_level("INFO", "ssfnas")
    with pytest.raises(InputError, match=rf"--root.*did not answer for 0.2 s.*put {folder} there"):
        opened(name, tmp_path, silence=0.2)
    assert "downloading https://" in caplog.text and str(tmp_path) in caplog.text
    assert "given up after 0.2 s of silence, or 1800 s in all" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_refused_cifar_download_says_where_to_put_the_files(monkeypatch, proxy, tmp_path):
    proxy(lambda connection: connection.sendall(b"HTTP/1.0 403 Forbidden\r\n\r\n"))
    with pytest.raises(InputError, match=r"--root.*403.*put cifar-10-batches-py there"):
        opened("cifar10", tmp_path)


def trickle(connection):
    """An endless answer, a byte at a time."""
    connection.recv(65536)
    connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"x")
        threading.Event().wait(0.01)


def test_a_download_that_trickles_for_ever_is_given_up_and_leaves_nothing(proxy, tmp_path):
    proxy(trickle)
    with pytest.raises(TimeoutError, match=r"not done after 0.3 s; --set source.limit=SECONDS allows more"):
        arrays._download("http://example.invalid/a.tar.gz", tmp_path / "a.tar.gz", arrays.DownloadOptions(limit=0.3))
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_comes_whole_is_kept(proxy, tmp_path):
    proxy(
        lambda connection: (
            connection.recv(65536),
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nall"),
            connection.close(),
        )
    )
    arrays._download("http://example.invalid/a.tar.gz", tmp_path / "a.tar.gz", arrays.DownloadOptions())
    assert (tmp_path / "a.tar.gz").read_bytes() == b"all" and len(list(tmp_path.iterdir())) == 1


def test_a_pipe_among_the_files_of_cifar_does_not_block(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    os.mkfifo(tmp_path / "cifar-10-batches-py" / "data_batch_1")
    with pytest.raises(InputError, match="data_batch_1 is neither a file nor a folder"):
        opened("cifar10", tmp_path)


def test_reading_a_folder_changes_nothing_in_it(make_folder):
    root = make_folder({"a": 2}, {"a": 1})
    before = {path: hashlib.sha256(path.read_bytes()).digest() for path in root.rglob("*.png")}
    opened("folder", root).splits["train"].read(0)
    assert {path: hashlib.sha256(path.read_bytes()).digest() for path in root.rglob("*") if path.is_file()} == before
