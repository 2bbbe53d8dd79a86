"""One image file to one square uint8 array: what may be opened, how modes and sizes are made equal."""

from __future__ import annotations

import io
import stat
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ssfnas_cli.artifacts.files import reason
from ssfnas_cli.errors import InputError

# Formats are told by content. Everything else PIL knows (EPS runs Ghostscript, PSD, PDF …) stays shut.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"}
MAX_PIXELS = 100_000_000
MAX_DECODED_BYTES = 512 * 2**20
STRIP_BYTES = 4 * 2**20
MIN_SIZE, MAX_SIZE, DEFAULT_SIZE = 8, 4096, 64
FULL_RANGE = (0.0, 65535.0)
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# What a PNG's pixels need: the chunks that every reader must know, transparency, and the orientation.
PNG_CHUNKS = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"eXIf"}
# They turn what follows from right to left or back.
DIRECTION_MARKS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
ORIENTATION, PHOTOMETRIC, SAMPLE_FORMAT = 0x0112, 262, 339
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

PixelRange = Literal["auto"] | tuple[float, float]  # the values that become black and white
T = TypeVar("T")


class BadImage(Exception):
    """One image that cannot be read: its name in the source and why."""

    def __init__(self, name: str, why: str):
        super().__init__(f"{name}: {why}")
        self.name, self.why = name, why


class Header(NamedTuple):
    """What an image's header tells without decoding it."""

    width: int
    height: int
    is_grey: bool
    has_16_bits: bool  # unsigned ones, a channel


def printable(name: str) -> str:
    """A name that can be printed and written as UTF-8, whatever bytes, control or direction marks it holds."""
    text = name.encode("utf-8", "backslashreplace").decode()
    if text.isprintable():
        return text
    is_odd = lambda one: unicodedata.category(one) in ("Cc", "Zl", "Zp") or one in DIRECTION_MARKS
    return "".join(f"\\u{ord(one):04x}" if is_odd(one) else one for one in text)


def _with_image(path: Path, name: str, use: Callable[[Image.Image], T]) -> T:
    """What `use` makes of an image of an allowed format. Whatever a decoder throws at a stranger's bytes is a BadImage.

    A PNG whose remarks (text, colour profile, …) stop the decoder is read again without them.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would keep us waiting, a device never end
            raise BadImage(name, "is not a regular file")
        if status.st_size == 0:
            raise BadImage(name, "is an empty file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on odd tags, which nobody can act on
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            try:
                return _use_opened(path, name, use)
            except (ValueError, SyntaxError, OSError):
                bare = _png_without_remarks(path, status.st_size)
                if bare is None:
                    raise
                return _use_opened(bare, name, use)
    except BadImage:
        raise
    except Image.UnidentifiedImageError:
        raise BadImage(name, f"is no image of a known format ({', '.join(FORMATS)})") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise BadImage(name, "has more pixels than is safe to decode") from None
    except MemoryError:
        raise BadImage(name, "does not fit in memory") from None
    except Exception as error:
        raise BadImage(name, f"cannot be decoded: {' '.join(reason(error).split()) or 'no reason given'}") from error


def _use_opened(file: Path | io.BytesIO, name: str, use: Callable[[Image.Image], T]) -> T:
    with Image.open(file, formats=FORMATS) as image:
        pixels = image.width * image.height
        if pixels > MAX_PIXELS:
            raise BadImage(name, f"has more than {MAX_PIXELS:,} pixels")
        # A pixel of these modes takes one byte or two in PIL, of any other mode four; beside it lies the converted one.
        width = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4
        target = 0 if image.mode in ("L", "RGB") else 1 if image.mode in GREY_MODES else 4
        if pixels * (width + target) > MAX_DECODED_BYTES:
            raise BadImage(
                name, f"takes more than {MAX_DECODED_BYTES // 2**20} MiB when it is decoded: make it smaller"
            )
        return use(image)


def _png_without_remarks(path: Path, size: int) -> io.BytesIO | None:
    """The same PNG with nothing but its pixels, transparency and orientation; None if it is no whole PNG."""
    if size > MAX_DECODED_BYTES:
        return None
    with path.open("rb") as stream:
        if stream.read(8) != PNG_SIGNATURE:
            return None
        kept = io.BytesIO()
        kept.write(PNG_SIGNATURE)
        while len(head := stream.read(8)) == 8:
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            if length > size - stream.tell():
                return None
            if kind in PNG_CHUNKS:
                kept.write(head + stream.read(length + 4))
            else:
                stream.seek(length + 4, io.SEEK_CUR)
    kept.seek(0)
    return kept


def read_header(path: Path, name: str, pixel_range: PixelRange = "auto") -> Header:
    """Size and kind of an image file, from its header.

    Raises:
        BadImage: empty, unreadable, no known format, too large, or with pixels whose range is not known.
    """

    def look(image: Image.Image) -> Header:
        _check_range(image, name, pixel_range)
        return Header(image.width, image.height, image.mode in GREY_MODES, _has_16_bits(image))

    return _with_image(path, name, look)


def read_image(path: Path, name: str, channels: int, size: int, pixel_range: PixelRange = "auto") -> NDArray[np.uint8]:
    """An image file as uint8 [size, size, channels]: upright, first frame, transparency over white.

    Args:
        pixel_range: the values of pixels of more than 8 bits that become black and white. `auto`: 0 and 65535 for
            unsigned 16-bit pixels, and none for signed, 32-bit and floating-point ones, which are refused.

    Raises:
        BadImage: see `read_header`; also a file that is cut short.
    """

    def convert(image: Image.Image) -> NDArray[np.uint8]:
        _check_range(image, name, pixel_range)
        image.load()
        mode = "L" if channels == 1 else "RGB"
        whole = image if image.mode == mode and "transparency" not in image.info else Image.new(mode, image.size)
        if whole is not image:
            for top, strip in _strips(image):
                whole.paste(_to_eight_bits(image, strip, mode, pixel_range, name), (0, top))
        turn = TURNS.get(_orientation(image))
        return to_array(fit_square(whole if turn is None else whole.transpose(turn), size))

    return _with_image(path, name, convert)


def read_peak(path: Path, name: str) -> int:
    """The largest value of an image of 16-bit pixels, from 0 to 65535; of colours, their upper 8 bits times 257.

    Raises:
        BadImage: see `read_image`.
    """

    def peak(image: Image.Image) -> int:
        image.load()
        if image.mode.startswith("I"):
            return max(int(np.asarray(strip).max()) for _, strip in _strips(image))
        colours = [band for kind, band in zip(image.getbands(), image.split(), strict=True) if kind != "A"]
        return max(int(np.asarray(band).max()) for band in colours) * 257

    return _with_image(path, name, peak)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 if there is none that can be read."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # odd tags beside it, which are no reason to refuse sound pixels
        return 1


def _has_16_bits(image: Image.Image) -> bool:
    if image.mode == "I":
        return image.format != "TIFF"  # PNG, and PPM scaled to 16 bits
    # PIL keeps the upper 8 bits of colours.
    layout = str(image.tile[0][3]) if image.tile else ""  # type: ignore[attr-defined]
    return image.mode.startswith("I;16") or (";16" in layout and image.format in ("PNG", "TIFF"))


def _check_range(image: Image.Image, name: str, pixel_range: PixelRange) -> None:
    """Refuse pixels that would have to be scaled by a guess."""
    if pixel_range == "auto" and (image.mode == "F" or (image.mode == "I" and not _has_16_bits(image))):
        kind = "floating-point" if image.mode == "F" else "signed or 32-bit"
        raise BadImage(
            name,
            f"has {kind} pixels, whose range is not known: state the values of black and white "
            "with --set source.range=LOW:HIGH, or save it with 8 bits",
        )
    if pixel_range not in ("auto", FULL_RANGE) and _has_16_bits(image) and not image.mode.startswith("I"):
        raise BadImage(name, "has 16-bit colours, which no range can be stated for: save it with 8 bits")


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """An image in parts of some MiB, each with the row it begins at."""
    rows = max(1, STRIP_BYTES // (4 * image.width))
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _to_eight_bits(
    image: Image.Image, strip: Image.Image, mode: str, pixel_range: PixelRange, name: str
) -> Image.Image:
    """A strip of an image in `L` or `RGB`."""
    if strip.mode.startswith(("I", "F")):
        strip = _scaled(image, np.asarray(strip), pixel_range, name)
    if strip.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in strip.info:
        # What lies under transparent pixels was never meant to be seen.
        strip = strip.convert("RGBA")
        strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip)
    return strip.convert(mode)


def _scaled(image: Image.Image, values: NDArray[np.generic], pixel_range: PixelRange, name: str) -> Image.Image:
    """Pixels of more than 8 bits on a scale of 0 to 255."""
    tags = getattr(image, "tag_v2", {})
    if image.mode == "I" and tags.get(SAMPLE_FORMAT, (1,))[0] == 1 and image.format == "TIFF":
        values = values.view(np.uint32)
    if pixel_range == "auto":  # 65535 / 257 is 255 exactly; PIL's own conversion clips at 255 instead of scaling
        scaled = (np.clip(values.astype(np.int64), 0, 65535) + 128) // 257
    else:
        low, high = pixel_range
        exact = values.astype(np.float64)
        if np.isnan(exact).any():
            raise BadImage(name, "has pixels that are not a number: save it with 8 bits")
        scaled = np.rint(np.clip((exact - low) / (high - low), 0, 1) * 255)
    grey = scaled.astype(np.uint8)
    if tags.get(PHOTOMETRIC) == 0:  # white is zero; PIL turns only pixels of 8 bits
        grey = 255 - grey
    return Image.fromarray(grey)


def fit_square(image: Image.Image, size: int) -> Image.Image:
    """The shorter side resized to `size` and the centre cropped; untouched if it has that size already."""
    if image.size == (size, size):
        return image
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def to_array(image: Image.Image) -> NDArray[np.uint8]:
    """uint8 [H, W, C] of an `L` or `RGB` image."""
    array = np.asarray(image, dtype=np.uint8)
    return array[:, :, None] if array.ndim == 2 else array


def fit_array(array: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """`fit_square` for uint8 [H, W, C] with 1 or 3 channels."""
    if array.shape[:2] == (size, size):
        return array
    return to_array(fit_square(Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array), size))


def choose_size(requested: int | str, sizes: set[tuple[int, int]]) -> tuple[int, str | None]:
    """The side of the data set's images, and a line to report if it had to be chosen.

    Args:
        requested: a side in pixels, or `auto`: the images' own if all have one square size, else 64.
        sizes: every (width, height) in the source.

    Raises:
        InputError: `auto`, and the images' own side is outside 8 to 4096.
    """
    if requested != "auto":
        return int(requested), None
    widths, heights = {width for width, _ in sizes}, {height for _, height in sizes}
    if len(sizes) == 1 and widths == heights:
        side = widths.pop()
        if not MIN_SIZE <= side <= MAX_SIZE:
            raise InputError(
                f"the images are {side}x{side}: give --image-size a side of {MIN_SIZE} to {MAX_SIZE} pixels"
            )
        return side, None
    what = "are not square" if len(sizes) == 1 else "differ in size"
    return DEFAULT_SIZE, (
        f"the images {what} ({min(widths)} to {max(widths)} wide, {min(heights)} to {max(heights)} high): "
        f"resized and centre-cropped to {DEFAULT_SIZE}x{DEFAULT_SIZE}; --image-size sets another side"
    )
