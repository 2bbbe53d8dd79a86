"""A picture of a genotype's cells, by matplotlib alone: SVG, PNG, PDF; or Graphviz DOT text.

The geometry is in cell_layout.py. The same genotype gives the same bytes.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ssfnas_cli.artifacts.genotype import Cell, Genotype
from ssfnas_cli.plots.cell_layout import FONT_SIZE, MARGIN, NOTE_SIZE, Box, Layout, Wire, layout

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.transforms import Transform

CELLS = ("normal", "reduce")
FORMATS = ("svg", "png", "pdf", "dot")
PNG_DPI = 200
MAX_PNG_PIXELS = 50_000_000
TITLES = {"normal": "Normal cell", "reduce": "Reduction cell"}
TITLE_HEIGHT = 0.34

INK, FAINT, CONCAT = "#1f2933", "#8a929b", "#9aa3ad"
# Fill and outline of an op by its family: distinct to colour-blind eyes, and of different lightness in print.
FAMILIES = {
    "sep_conv": ("#cfe3f5", "#2f6ea5"),
    "dil_conv": ("#fbd9b0", "#b3671b"),
    "conv": ("#e3d7f0", "#74529b"),
    "max_pool": ("#d3ecd7", "#38804a"),
    "avg_pool": ("#d3ecd7", "#38804a"),
    "skip_connect": ("#ffffff", "#4b5563"),
}
OTHER = ("#eceff2", "#4b5563")


def render(genotype: Genotype, cells: Sequence[str], fmt: str) -> bytes:
    """One picture of the asked cells, one above the other.

    Raises:
        ValueError: an unknown cell or format, or no cell.
    """
    if fmt not in FORMATS:
        raise ValueError(f"unknown picture format '{fmt}'. Available: {', '.join(FORMATS)}")
    unknown = [cell for cell in cells if cell not in CELLS]
    if unknown or not cells:
        raise ValueError(f"unknown cell '{unknown[0] if unknown else ''}'. Available: {', '.join(CELLS)}")
    asked = {kind: genotype.cells()[kind] for kind in CELLS if kind in cells}
    if fmt == "dot":
        return _dot(asked).encode()
    return _picture(genotype.name, asked, fmt)


def _picture(name, cells, fmt):
    import matplotlib
    import matplotlib.style
    from matplotlib.figure import Figure
    with warnings.catch_warnings(), matplotlib.style.context("default"):
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "ssfnas", "pdf.fonttype": 42, "mathtext.fontset": "dejavusans", "font.family": "DejaVu Sans"})
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = draw(name, cells)
        out = io.BytesIO()
        metadata = {"svg": {"Date": None, "Creator": None}, "pdf": {"CreationDate": None, "Creator": None, "Producer": None}, "png": {"Software": None}}[fmt]
        w, h = figure.get_size_inches()
        dpi = min(PNG_DPI, (MAX_PNG_PIXELS / (w * h)) ** 0.5)
        figure.savefig(out, format=fmt, dpi=dpi if fmt == "png" else 72, metadata=metadata)
        return out.getvalue()


def draw(name, cells):
    from matplotlib.figure import Figure
    from matplotlib.transforms import Affine2D
    layouts = {kind: layout(cell) for kind, cell in cells.items()}
    width = max(l.width for l in layouts.values())
    height = sum(l.height + TITLE_HEIGHT for l in layouts.values())
    figure = Figure(figsize=(width, height), facecolor="white")
    top = 0.0
    for kind, one in layouts.items():
        tr = Affine2D().scale(1, -1).translate(0, height - top) + figure.dpi_scale_trans
        figure.text(MARGIN, 0.22, TITLES[kind], transform=tr, fontsize=11, fontweight="bold", color=INK, va="center")
        tr = Affine2D().scale(1, -1).translate(0, height - top - TITLE_HEIGHT) + figure.dpi_scale_trans
        for w in one.wires:
            draw_wire(figure, w, tr)
        for b in one.boxes:
            draw_box(figure, b, tr)
        top += one.height + TITLE_HEIGHT
    return figure


def family(op):
    for prefix, c in FAMILIES.items():
        if op.startswith(prefix): return c
    return OTHER


def draw_wire(figure, wire, tr):
    from matplotlib.patches import PathPatch, Polygon
    from matplotlib.path import Path
    live = wire.state == "live"
    color = (INK if wire.kind in ("edge", "arrow") else CONCAT) if live else FAINT
    p = PathPatch(Path(wire.control_points(), [Path.MOVETO] + [Path.CURVE4] * 3), fill=False, transform=tr,
        edgecolor=color, linewidth=1.1, linestyle="-" if live else (0, (3, 2)), capstyle="butt")
    figure.add_artist(p)
    if wire.kind in ("arrow", "output"):
        x, y = wire.end
        figure.add_artist(Polygon([(x, y), (x - .085, y - .042), (x - .085, y + .042)], closed=True, facecolor=color, edgecolor="none", transform=tr))


def draw_box(figure, box, tr):
    from matplotlib.patches import FancyBboxPatch
    live = box.state == "live"
    size = FONT_SIZE
    weight = "normal"
    tc = INK if live else "#5b6570"
    if box.kind == "note":
        size = NOTE_SIZE
        fill = None
    else:
        if box.kind == "op":
            fill, line = family(box.text)
        else:
            fill, line = ("#e5e8ec", INK)
            weight = "bold"
        if not live: fill, line = "white", FAINT
        r = .05
        figure.add_artist(FancyBboxPatch((box.x - box.width / 2, box.y - box.height / 2), box.width, box.height,
          boxstyle=f"round,pad=0,rounding_size={r}", facecolor=fill, edgecolor=line, linewidth=1 if live else 1.1, linestyle="-" if live else (0, (3, 2)), transform=tr))
    figure.text(box.x, box.y, box.text, transform=tr, fontsize=size, fontweight=weight, color=tc, ha="center", va="center_baseline" if 0 else "center", parse_math=box.kind in ("input", "output"), style="italic" if box.kind == "note" else "normal")
