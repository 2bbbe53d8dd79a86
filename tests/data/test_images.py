"""One image file: what is read, what is refused, how modes and sizes are made equal."""

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps
from sources_support import opened, png_claiming, save

from registry import PluginError
from ssfnas_cli.data import images
from ssfnas_cli.data.images import BadImage, fit_array, read_header, read_image
from ssfnas_cli.errors import InputError


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
    words = {
        "empty": "empty file",
        "bomb.png": "more than 89,478,485 pixels",
        "large.png": "more than 89,478,485 pixels",
    }
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


def traced_peak(function):
    """The most memory, in bytes, that Python and numpy held while the function ran."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


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
