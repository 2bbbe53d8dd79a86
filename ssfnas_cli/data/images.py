"""One image file to one square uint8 array: what may be opened, how modes and sizes are made equal."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ssfnas_cli.artifacts.files import reason
from ssfnas_cli.errors import InputError, UsageError

# Formats are told by content. Everything else PIL knows (EPS runs Ghostscript, PSD, PDF …) stays shut.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N"}
MAX_PIXELS = 100_000_000
MIN_SIZE, MAX_SIZE, DEFAULT_SIZE = 8, 4096, 64


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


@contextlib.contextmanager
def _opened(path: Path, name: str) -> Iterator[Image.Image]:
    """An image of an allowed format; whatever a decoder throws at a stranger's bytes is a BadImage."""
    try:
        if path.stat().st_size == 0:
            raise BadImage(name, "is an empty file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on odd tags, which nobody can act on
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise BadImage(name, f"has more than {MAX_PIXELS:,} pixels")
                yield image
    except BadImage:
        raise
    except Image.UnidentifiedImageError:
        raise BadImage(name, f"is no image of a known format ({', '.join(FORMATS)})") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise BadImage(name, "has more pixels than is safe to decode") from None
    except Exception as error:
        raise BadImage(name, f"cannot be decoded: {_one_line(reason(error))}") from error


def _one_line(text: str) -> str:
    return " ".join(text.split()) or "no reason given"


def read_header(path: Path, name: str) -> Header:
    """Size and greyness of an image file, from its header.

    Raises:
        BadImage: empty, unreadable, no known format, or too large.
    """
    with _opened(path, name) as image:
        return Header(image.width, image.height, image.mode in GREY_MODES)


def read_image(path: Path, name: str, channels: int, size: int) -> NDArray[np.uint8]:
    """An image file as uint8 [size, size, channels]: upright, first frame, transparency over white.

    Raises:
        BadImage: see `read_header`; also a truncated file, and pixels that have no known range.
    """
    with _opened(path, name) as image:
        if image.mode == "F":
            raise BadImage(name, "has floating-point pixels, whose range is not known: save it with 8 bits")
        upright = ImageOps.exif_transpose(image)
        return to_array(fit_square(_to_eight_bits(upright, "L" if channels == 1 else "RGB"), size))


def _to_eight_bits(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit grey; PIL's own conversion clips at 255 instead of scaling. 65535 / 257 is 255 exactly.
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        # What lies under transparent pixels was never meant to be seen.
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def fit_square(image: Image.Image, size: int) -> Image.Image:
    """The shorter side resized to `size` and the centre cropped; untouched where it has that size already."""
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
    """The side of the data set's images, and a line to report where it had to be chosen.

    Args:
        requested: a side in pixels, or `auto`: the images' own where all have one square size, else 64.
        sizes: every (width, height) in the source.

    Raises:
        UsageError: a side outside 8 to 4096. InputError: `auto`, and the images' own side is outside.
    """
    if requested != "auto":
        if not isinstance(requested, int) or not MIN_SIZE <= requested <= MAX_SIZE:
            raise UsageError(f"--image-size: {requested} is not 'auto' or a side of {MIN_SIZE} to {MAX_SIZE} pixels")
        return requested, None
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
