"""Reading of image files as square uint8 arrays: supported formats, conversion of modes, and resizing."""

from __future__ import annotations

import contextlib
import io
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ssfnas_cli.artifacts.files import reason
from ssfnas_cli.errors import InputError

# Formats are recognised by content. PIL's other formats (EPS, which runs Ghostscript, PSD, PDF …) are not opened.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"}
MAX_PIXELS = 89_478_485  # PIL's own limit against files that only claim to be small
MAX_DECODED_BYTES = 512 * 2**20
STRIP_BYTES = 4 * 2**20
MIN_SIZE, MAX_SIZE, DEFAULT_SIZE = 8, 4096, 64
FULL_RANGE = (0.0, 65535.0)
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# The chunks of a PNG that determine its pixels: those that every reader must know, transparency, and the orientation.
PNG_CHUNKS = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"eXIf"}
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

PixelRange = Literal["auto"] | tuple[float, float]  # the values that are mapped to black and white
T = TypeVar("T")


class BadImage(Exception):
    """An image cannot be read. The error has its name in the source and the reason."""

    def __init__(self, name: str, why: str):
        super().__init__(f"{name}: {why}")
        self.name, self.why = name, why


class Header(NamedTuple):
    """Facts from the header of an image, without decoding it."""

    width: int
    height: int
    is_grey: bool
    has_16_bits: bool  # unsigned, per channel


def _with_image(file: Path | bytes, name: str, use: Callable[[Image.Image], T]) -> T:
    """Call `use` with the opened image of a file, or of its bytes. Any exception of a decoder becomes a BadImage.

    If the metadata of a PNG (text, colour profile, …) makes the decoder fail, the PNG is read again without it.
    """
    with errors_as_bad_image(name):
        size = len(file) if isinstance(file, bytes) else _size_of(file, name)
        if size == 0:
            raise BadImage(name, "is an empty file")
        try:
            return _use_opened(io.BytesIO(file) if isinstance(file, bytes) else file, name, use)
        except (ValueError, SyntaxError, OSError):
            bare = _png_without_remarks(file, size)
            if bare is None:
                raise
            return _use_opened(bare, name, use)


def _size_of(path: Path, name: str) -> int:
    """The size of a file in bytes; of a folder, a pipe, which could block, or a device, which may be endless, none."""
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise BadImage(name, "is a folder: name the images in it")
    if not stat.S_ISREG(status.st_mode):
        raise BadImage(name, "is not a regular file")
    return status.st_size


@contextlib.contextmanager
def errors_as_bad_image(name: str) -> Iterator[None]:
    """Within, any exception of a decoder becomes a BadImage with that name, and decoders do not warn."""
    try:
        with _DECODERS_WARNINGS:
            yield
    except BadImage:
        raise
    except Image.UnidentifiedImageError:
        raise BadImage(name, f"is no image of a known format ({', '.join(FORMATS)})") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise _too_large(name) from None
    except (FileNotFoundError, PermissionError) as error:
        raise BadImage(name, f"cannot be opened: {reason(error)}") from None
    except MemoryError:
        raise BadImage(name, "does not fit in memory") from None
    except Exception as error:
        raise BadImage(name, f"cannot be decoded: {' '.join(reason(error).split()) or 'no reason given'}") from error


def _too_large(name: str) -> BadImage:
    return BadImage(name, f"has more than {MAX_PIXELS:,} pixels, more than is safe to decode: make it smaller")


class _WarningFilters:
    """A context without warnings about odd tags, which the user cannot act on; huge images are an error.

    Python's warning filters belong to the process. Several threads may be within, and the last one that leaves restores
    them.
    """

    def __init__(self) -> None:
        self._lock, self._within = threading.Lock(), 0
        self._before = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            self._within += 1
            if self._within == 1:
                self._before = warnings.catch_warnings()
                self._before.__enter__()
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", Image.DecompressionBombWarning)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._within -= 1
            if self._within == 0:
                self._before.__exit__(None, None, None)


_DECODERS_WARNINGS = _WarningFilters()


def _use_opened(file: Path | io.BytesIO, name: str, use: Callable[[Image.Image], T]) -> T:
    with Image.open(file, formats=FORMATS) as image:
        pixels = image.width * image.height
        if pixels > MAX_PIXELS:
            raise _too_large(name)
        # PIL uses one or two bytes per pixel for these modes and four for others, and more for the converted image.
        width = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4
        target = 0 if image.mode in ("L", "RGB") else 1 if image.mode in GREY_MODES else 4
        if pixels * (width + target) > MAX_DECODED_BYTES:
            raise BadImage(
                name, f"takes more than {MAX_DECODED_BYTES // 2**20} MiB when it is decoded: make it smaller"
            )
        return use(image)


def _png_without_remarks(file: Path | bytes, size: int) -> io.BytesIO | None:
    """A PNG reduced to its pixels, transparency and orientation; None if it is not a complete PNG."""
    if size > MAX_DECODED_BYTES:
        return None
    with io.BytesIO(file) if isinstance(file, bytes) else file.open("rb") as stream:
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
    """Read the size and kind of an image file from its header.

    Raises:
        BadImage: the file is empty, unreadable, too large or of an unsupported format, or the range of its pixels is
            unknown.
    """

    def inspect(image: Image.Image) -> Header:
        _check_range(image, name, pixel_range)
        return Header(image.width, image.height, image.mode in GREY_MODES, _has_16_bits(image))

    return _with_image(path, name, inspect)


def read_image(
    file: Path | bytes, name: str, channels: int, size: int, pixel_range: PixelRange = "auto"
) -> NDArray[np.uint8]:
    """Read an image file as uint8 [size, size, channels]: its first frame, upright, with transparency over white.

    Args:
        file: the path, or what the file holds.
        name: its name in messages.
        channels: 1 or 3.
        size: the side of the result.
        pixel_range: the values of pixels of more than 8 bits that are mapped to black and white. `auto` means 0 and
            65535 for unsigned 16-bit pixels; signed, 32-bit and floating-point pixels are then not supported.

    Raises:
        BadImage: see `read_header`; also if the file is truncated.
    """

    return _with_image(file, name, lambda image: convert_image(image, name, channels, size, pixel_range))


def convert_image(
    image: Image.Image, name: str, channels: int, size: int, pixel_range: PixelRange = "auto"
) -> NDArray[np.uint8]:
    """`read_image` for an image that is open; whatever the decoder raises is passed on."""
    _check_range(image, name, pixel_range)
    image.load()
    mode = "L" if channels == 1 else "RGB"
    whole = image if image.mode == mode and "transparency" not in image.info else Image.new(mode, image.size)
    if whole is not image:
        for top, strip in _strips(image):
            whole.paste(_to_eight_bits(image, strip, mode, pixel_range, name), (0, top))
    turn = TURNS.get(_orientation(image))
    return to_array(fit_square(whole if turn is None else whole.transpose(turn), size))


def read_peak(path: Path, name: str) -> int:
    """The largest value of an image with 16-bit pixels, from 0 to 65535; for colours, their upper 8 bits times 257.

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
    except Exception:  # invalid tags do not affect the pixels
        return 1


def _has_16_bits(image: Image.Image) -> bool:
    if image.mode == "I":
        return image.format != "TIFF"  # PNG, and PPM scaled to 16 bits
    # PIL keeps only the upper 8 bits of colours.
    tile = getattr(image, "tile", None)  # an image that was not opened from a file has none
    layout = str(tile[0][3]) if tile else ""
    return image.mode.startswith("I;16") or (";16" in layout and image.format in ("PNG", "TIFF"))


def _check_range(image: Image.Image, name: str, pixel_range: PixelRange) -> None:
    """Raise a BadImage if the range of the pixels would have to be guessed."""
    if pixel_range == "auto" and (image.mode == "F" or (image.mode == "I" and not _has_16_bits(image))):
        kind = "floating-point" if image.mode == "F" else "signed or 32-bit"
        raise BadImage(
            name,
            f"has {kind} pixels, whose range is not known: state the values of black and white "
            "with make-dataset's --set source.range=LOW:HIGH, or save it with 8 bits",
        )
    if pixel_range not in ("auto", FULL_RANGE) and _has_16_bits(image) and not image.mode.startswith("I"):
        raise BadImage(name, "has 16-bit colours, which no range can be stated for: save it with 8 bits")


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield parts of an image of at most STRIP_BYTES, with their first rows."""
    rows = max(1, STRIP_BYTES // (4 * image.width))
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _to_eight_bits(
    image: Image.Image, strip: Image.Image, mode: str, pixel_range: PixelRange, name: str
) -> Image.Image:
    """Convert a strip of an image to `L` or `RGB`."""
    if strip.mode.startswith(("I", "F")):
        strip = _scaled(image, np.asarray(strip), pixel_range, name)
    if strip.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in strip.info:
        # The colours of transparent pixels are not meant to be seen.
        strip = strip.convert("RGBA")
        strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip)
    return strip.convert(mode)


def _scaled(image: Image.Image, values: NDArray[np.generic], pixel_range: PixelRange, name: str) -> Image.Image:
    """Scale pixels of more than 8 bits to 0 to 255."""
    tags = getattr(image, "tag_v2", {})
    if image.mode == "I" and tags.get(SAMPLE_FORMAT, (1,))[0] == 1 and image.format == "TIFF":
        values = values.view(np.uint32)
    if pixel_range == "auto":  # 65535 / 257 is exactly 255; PIL's conversion clips at 255 instead of scaling
        scaled = (np.clip(values.astype(np.int64), 0, 65535) + 128) // 257
    else:
        low, high = pixel_range
        precise = values.astype(np.float64)
        if np.isnan(precise).any():
            raise BadImage(name, "has pixels that are not a number: save it with 8 bits")
        scaled = np.rint(np.clip((precise - low) / (high - low), 0, 1) * 255)
    grey = scaled.astype(np.uint8)
    if tags.get(PHOTOMETRIC) == 0:  # zero means white; PIL inverts only 8-bit pixels
        grey = 255 - grey
    return Image.fromarray(grey)


def fit_square(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size` and crop the centre, unless the image has that size already."""
    if image.size == (size, size):
        return image
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def to_array(image: Image.Image) -> NDArray[np.uint8]:
    """Convert an `L` or `RGB` image to uint8 [H, W, C]."""
    array = np.asarray(image, dtype=np.uint8)
    return array[:, :, None] if array.ndim == 2 else array


def fit_array(array: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """`fit_square` for uint8 [H, W, C] with 1 or 3 channels."""
    if array.shape[:2] == (size, size):
        return array
    return to_array(fit_square(Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array), size))


def choose_size(requested: int | str, sizes: set[tuple[int, int]]) -> tuple[int, str | None]:
    """Choose the side of the images of a data set. Also return a line for the user if it was chosen automatically.

    Args:
        requested: a side in pixels, or `auto`, which means the size of the images if all are square and equal, else 64.
        sizes: all pairs (width, height) in the source.

    Raises:
        InputError: `requested` is `auto`, and the size of the images is outside 8 to 4096.
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
