"""What all pictures share: looks that print in grey and suit the colour-blind, and files of stable bytes.

A series has a colour, a kind of line and a marker, so that any one of them is enough to tell it. The same picture gives
the same bytes, whatever the user's matplotlibrc says.
"""

from __future__ import annotations

import contextlib
import io
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ssfnas_cli.console import log, printable

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("svg", "png", "pdf")
PNG_DPI, MAX_PNG_PIXELS, MAX_PNG_SIDE = 200, 50_000_000, 60_000
INK, FAINT_INK, GRID = "#1f2933", "#5b6570", "#dfe3e8"
STYLE: dict[str, Any] = {
    "font.family": ["sans-serif"],  # DejaVu Sans, which comes with matplotlib; an SVG names substitutes
    "mathtext.fontset": "dejavusans",
    "svg.fonttype": "none",  # text stays text: it can be searched, and is small; fallback fonts are narrower
    "svg.hashsalt": "ssfnas",
    "pdf.fonttype": 42,
}
CHART_STYLE: dict[str, Any] = {
    "text.parse_math": False,  # a name may hold a $
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT_INK,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": FAINT_INK,
    "ytick.color": FAINT_INK,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.0,
}
# Fonts with the scripts that DejaVu Sans lacks, as the usual systems call them. Only those that are there are asked.
FALLBACK_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Noto Sans JP", "Noto Sans KR", "Source Han Sans SC"),
    *("WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback", "IPAGothic", "VL Gothic", "NanumGothic"),
    *("PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Arial Unicode MS"),
    *("Microsoft YaHei", "SimHei", "Yu Gothic", "Meiryo", "MS Gothic", "Malgun Gothic", "Nirmala UI"),
    *("Noto Sans Devanagari", "Noto Sans Thai", "Noto Sans Hebrew", "Noto Sans Arabic", "Unifont"),
)
MISSING_GLYPH = re.compile(r"Glyph (\d+) .*missing from")  # matplotlib's warning
LEGEND_LETTER = 0.075  # inches of a letter of a legend
METADATA: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
}
# Okabe and Ito's colours, from dark to light and back, so that neighbours differ in grey as well
COLOURS = ("#0072B2", "#E69F00", "#1f2933", "#D55E00", "#56B4E9", "#009E73", "#CC79A7", "#8a7a00")
LINES = ("-", (0, (5, 2)), (0, (1, 1.3)), (0, (6, 2, 1, 2)), (0, (3, 1.5)), (0, (8, 2)), (0, (4, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "h")


def to_bytes(draw: Callable[[], Figure], fmt: str, chart: bool = False) -> bytes:
    """A picture as the bytes of a file.

    Args:
        draw: makes the figure; it runs within the style.
        fmt: one of FORMATS.
        chart: whether the figure has axes.
    """
    import matplotlib.style

    looks = STYLE | (CHART_STYLE if chart else {}) | ({"font.family": _families()} if fmt == "png" else {})
    style: list[str | dict[str, Any]] = ["default", looks]
    # The user's matplotlibrc must not change the bytes, nor this the user's settings.
    with matplotlib.style.context(style), _told_of_missing_letters(fmt):
        figure = draw()
        width, height = figure.get_size_inches()
        dpi = min(PNG_DPI, (MAX_PNG_PIXELS / (width * height)) ** 0.5, MAX_PNG_SIDE / max(width, height))
        figure.draw_without_rendering()  # the layout settles with the second drawing
        file = io.BytesIO()
        figure.savefig(file, format=fmt, dpi=dpi if fmt == "png" else 72, metadata=METADATA[fmt])
    return file.getvalue()


def _families() -> list[str]:
    """The families whose glyphs a PNG takes, the first that has a letter; matplotlib complains of an absent one.

    An SVG names no more than DejaVu Sans, whatever the machine has: its viewer finds the others itself.
    """
    from matplotlib.font_manager import fontManager

    there = set(fontManager.get_font_names())
    return [*STYLE["font.family"], *(name for name in FALLBACK_FONTS if name in there)]


@contextlib.contextmanager
def _told_of_missing_letters(fmt: str) -> Iterator[None]:
    """One warning instead of one for each letter that no font has; none for an SVG, whose viewer has fonts."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    missing: dict[str, None] = {}
    for one in caught:
        if glyph := MISSING_GLYPH.match(str(one.message)):
            missing[chr(int(glyph[1]))] = None
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    if missing and fmt != "svg":
        letters = printable("".join(list(missing)[:3]))
        remedy = "install a font that has them, such as Noto Sans CJK, or " if fmt == "png" else ""
        log.warning(
            "no font here has the letters '%s', so boxes stand for them: %sname an .svg with -o", letters, remedy
        )


def text_width(text: str) -> int:
    """The width of a text in letters, of which those of East Asia count twice."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def shown_name(name: str, length: int = 60) -> str:
    """A name on one line, without what XML forbids, cut to a width in letters (`text_width`)."""
    name = "".join(letter for letter in " ".join(name.split()) if letter.isprintable())
    if text_width(name) <= length:
        return name
    while text_width(name) > length - 1:
        name = name[:-1]
    return name + "…"


def series_looks(number: int) -> dict[str, Any]:
    """Colour, line and marker of a series; no two of the first 504 look the same."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": LINES[number % len(LINES)],
        "marker": MARKERS[number % len(MARKERS)],
        "markeredgecolor": "white",
        "markeredgewidth": 0.6,
    }


def new_figure(width: float, height: float) -> Figure:
    """An empty figure in inches, whose axes make room for each other's labels."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    return Figure(figsize=(width, height), facecolor="white", layout=layout)


def panels(number: int, width: float, height: float, columns: int, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure with a grid of panels, each of a size in inches."""
    columns = min(columns, number)
    rows = -(-number // columns)
    figure = new_figure(columns * width, rows * height)
    grid = figure.subplots(rows, columns, squeeze=False, **options)
    for axes in list(grid.flat)[number:]:
        axes.remove()
    return figure, list(grid.flat)[:number]


def _cut_before_note(label: str, length: int) -> str:
    """A label cut to a width in letters; what stands in brackets at its end, such as the number of seeds, stays."""
    if text_width(label) <= length:
        return label
    name, bracket, note = label.rpartition(" (")
    if not bracket or not label.endswith(")"):
        return shown_name(label, length)
    note = bracket + note
    return shown_name(name, max(1, length - text_width(note))) + note


def add_legend(figure: Figure, series: Sequence[Artist], note: str = "") -> None:
    """A legend below the figure, which grows by its height.

    Args:
        figure: the figure.
        series: what has a label, in the order of the legend.
        note: a line above the legend, such as what a band means.
    """
    if not series:
        return
    room = int((figure.get_size_inches()[0] - 0.9) / LEGEND_LETTER)
    labels = [_cut_before_note(str(one.get_label()), room) for one in series]
    widest = max(map(text_width, labels)) * LEGEND_LETTER + 0.6  # inches
    columns = max(1, int((figure.get_size_inches()[0] - 0.3) / widest))
    columns = min(columns, len(labels), 4)
    rows = -(-len(labels) // columns)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.19 * (rows + bool(note)) + 0.12)
    looks: dict[str, Any] = {"handlelength": 3.6, "fontsize": 8.5, "title_fontsize": 8.0}
    figure.legend(series, labels, loc="outside lower center", ncols=columns, title=note or None, **looks)
