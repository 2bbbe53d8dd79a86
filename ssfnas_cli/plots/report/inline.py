"""SVG files and images as parts of a page, which must ask for nothing from outside."""

from __future__ import annotations

import base64
import io
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from markupsafe import Markup

from ssfnas_cli.plots.figure import COLOURS, FAINT_INK, GRID, INK

if TYPE_CHECKING:
    from numpy.typing import NDArray

PIXELS_PER_POINT = 96 / 72
SHRINKS_TO = 0.7  # of its size, on a narrow screen; below that letters are too small, and it scrolls
MAX_THUMBNAIL = 96  # pixels of a side
# The colours of charts that follow the page's, as its style sheet names them
THEME = {INK: "var(--ink)", FAINT_INK: "var(--faint)", GRID: "var(--grid)", "#ffffff": "var(--paper)"}
THEME[COLOURS[0].lower()] = "var(--first)"
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_COLOUR = re.compile("|".join(THEME), re.IGNORECASE)


def inline_svg(svg: bytes, prefix: str, alt: str, themed: bool) -> Markup:
    """An SVG file of matplotlib as an element of an HTML page.

    Args:
        svg: the file.
        prefix: makes its ids differ from those of the page's other pictures.
        alt: the text for those who cannot see it.
        themed: let its ink, its grid and its background follow the page's.
    """
    root = ElementTree.fromstring(svg)
    for parent in root.iter():
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):  # a style sheet in it would be the whole page's
                parent.remove(child)
    used = set(_REFERENCE.findall(" ".join(value for element in root.iter() for value in element.attrib.values())))
    used |= {value[1:] for element in root.iter() for name, value in element.attrib.items() if name.endswith("}href")}
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = _attributes(element.attrib, prefix, used, themed)
    points = float(root.attrib.pop("width").removesuffix("pt"))
    root.attrib.pop("height")
    width = points * PIXELS_PER_POINT
    root.attrib |= {"role": "img", "aria-label": alt}
    root.attrib["style"] = f"width: {width:.0f}px; min-width: {SHRINKS_TO * width:.0f}px"
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _attributes(attributes: dict[str, str], prefix: str, used: set[str], themed: bool) -> dict[str, str]:
    """The attributes of an element: without namespaces, which HTML lacks, and with ids of this picture alone."""
    kept = {}
    for name, value in attributes.items():
        name = name.rpartition("}")[2]
        if name == "id":
            if value not in used:
                continue
            value = f"{prefix}-{value}"
        elif name == "href" and value.startswith("#"):
            value = f"#{prefix}-{value[1:]}"
        else:
            value = _REFERENCE.sub(rf"url(#{prefix}-\1)", value)
        if name == "style" and themed:
            value = _COLOUR.sub(lambda found: THEME[found[0].lower()], value)
        kept[name] = value
    return kept


def thumbnail(image: NDArray) -> str:
    """An image uint8 [H, W, C] as the data URI of a PNG, at most MAX_THUMBNAIL pixels high and wide."""
    from PIL import Image

    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    picture.thumbnail((MAX_THUMBNAIL, MAX_THUMBNAIL))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
