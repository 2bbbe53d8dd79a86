"""Helpers of the tests of sources: settings to a source, image files, and a PNG with a false size."""

import struct
import zlib

from PIL import Image

from ssfnas_cli.data.sources.base import open_source
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
