"""From an image of any kind to the square uint8 array that the images of the data set became."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ssfnas_cli.artifacts.model import ModelCard
from ssfnas_cli.console import printable
from ssfnas_cli.data.images import BadImage, convert_image, errors_as_bad_image, read_image

AnyImage = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | NDArray

WANTED = "uint8 or uint16 from 0 up, or floats from 0 to 1, as [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]"


def prepare(image: AnyImage, card: ModelCard) -> NDArray[np.uint8]:
    """Prepare an image as the card says: uint8 [S, S, C], upright, resized and cropped.

    Args:
        image: a path, the bytes of an image file, such a file opened for reading bytes, a PIL image, or an array (see
            `to_pil`).
        card: of the network.

    Raises:
        BadImage: it cannot be read, or is nothing of these.
    """
    shape = card.in_channels, card.image_size, card.preparation.pixel_range
    if isinstance(image, str | os.PathLike):
        return read_image(Path(image), printable(os.fspath(image)), *shape)
    if is_file_content(image):
        return read_image(content_of(image), "the image", *shape)
    if isinstance(image, np.ndarray):
        image = to_pil(image)
    if isinstance(image, Image.Image):
        name = "the image"
        with errors_as_bad_image(name):
            return convert_image(image, name, *shape)
    kind = type(image).__name__
    hint = ", of which .numpy() makes one, as [H, W, C]" if kind == "Tensor" else ""
    raise BadImage("the image", f"is a path, bytes, an open file, a PIL image or a numpy array, not {kind}{hint}")


def is_file_content(image: Any) -> bool:
    """Whether something is what an image file holds: its bytes, or a file that is open, as web servers hand it over."""
    return isinstance(image, bytes | bytearray | memoryview | io.IOBase) or (
        hasattr(image, "read") and not hasattr(image, "getbands")
    )


def content_of(image: Any) -> bytes:
    """The bytes of an image file, from where it was read last.

    Raises:
        BadImage: the file is open for reading text.
    """
    content = image if isinstance(image, bytes | bytearray | memoryview) else image.read()
    if not isinstance(content, bytes | bytearray | memoryview):
        raise BadImage("the image", "is a file that is open for text: open it with the mode 'rb'")
    return bytes(content)


def to_pil(array: NDArray) -> Image.Image:
    """The image that an array [H, W] or [H, W, C] holds, C being 1 (grey), 3 (RGB) or 4 (RGBA).

    Raises:
        BadImage: the shape or the type is another one, or floats are not between 0 and 1.
    """
    plain = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    coloured = plain.ndim == 3 and plain.shape[2] in (3, 4)
    if not (plain.ndim == 2 or coloured) or plain.size == 0:
        raise BadImage("the array", f"has shape {array.shape}: {WANTED}")
    if plain.dtype.kind == "f":
        if not (plain.min() >= 0 and plain.max() <= 1):  # NaN fails, too
            raise BadImage("the array", f"has floats from {plain.min():g} to {plain.max():g}: {WANTED}")
        plain = np.rint(plain * 255).astype(np.uint8)
    if plain.dtype == np.uint8 or (plain.dtype == np.uint16 and not coloured):
        return Image.fromarray(np.ascontiguousarray(plain))
    if plain.dtype == np.uint16:
        raise BadImage("the array", "holds uint16 in colour, which is for grey ones: give uint8 or floats from 0 to 1")
    raise BadImage("the array", f"holds {plain.dtype}: {WANTED}")
