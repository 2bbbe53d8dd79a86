"""A picture of a genotype's cells: SVG, PNG and PDF by matplotlib alone, or Graphviz DOT text.

Where things go is in cell_layout.py; here they get their looks. Ops are tinted by family (their names say the
same, so that print without colour loses nothing), the concatenation is grey, and what the derived network
would not build or not use is dashed. The same genotype gives the same bytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ssfnas_cli.artifacts.genotype import Cell, Genotype
from ssfnas_cli.plots import figure
from ssfnas_cli.plots.cell_graph import CellGraph
from ssfnas_cli.plots.cell_layout import (
    FONT_SIZE,
    MARGIN,
    NOTE_SIZE,
    Box,
    Layout,
    Wire,
    layout,
    text_width,
)
from ssfnas_cli.plots.figure import FAINT_INK, INK, shown_name, to_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.transforms import Transform

CELLS = ("normal", "reduce")
FORMATS = (*figure.FORMATS, "dot")
TITLES = {"normal": "Normal cell", "reduce": "Reduction cell"}
TITLE_HEIGHT, TITLE_SIZE, MAX_NAME = 0.34, 11.0, 60
CAPTION_PITCH = 0.17
CAPTION = (
    "$c_{k-2}$ and $c_{k-1}$ are the outputs of the two cells before this one, $c_k$ is its own.",
    "The network is a stack of normal cells, with a reduction cell, which halves the image, at one third and at two "
    "thirds of its depth.",
)

CONCAT, FAINT, WARNING = "#76818d", "#858e98", "#9c3d10"
NODE_FILL = "#e5e8ec"
DASHES = (0, (3, 2))
# Fill and outline by family, the first prefix that fits. Colour-blind eyes can tell them apart.
FAMILIES = {
    "sep_conv": ("#cfe3f5", "#2f6ea5"),
    "dil_conv": ("#fbd9b0", "#a85e14"),
    "conv": ("#e3d7f0", "#74529b"),
    "max_pool": ("#d3ecd7", "#38804a"),
    "avg_pool": ("#d3ecd7", "#38804a"),
    "skip_connect": ("#ffffff", "#4b5563"),
    "": ("#f3f0d6", "#6b6425"),
}


def render(genotype: Genotype, cells: Sequence[str], fmt: str) -> bytes:
    """One picture of the asked cells (`normal`, `reduce`), one above the other, as the bytes of a file.

    Raises:
        ValueError: an unknown format, an unknown cell, or no cell at all.
    """
    if fmt not in FORMATS:
        raise ValueError(f"unknown picture format '{fmt}'. Available: {', '.join(FORMATS)}")
    if not cells:
        raise ValueError(f"no cell to draw. Available: {', '.join(CELLS)}")
    for kind in cells:
        if kind not in CELLS:
            raise ValueError(f"unknown cell '{kind}'. Available: {', '.join(CELLS)}")
    asked = {kind: genotype.cells()[kind] for kind in CELLS if kind in cells}
    name = shown_name(genotype.name or "", MAX_NAME)
    return _dot(name, asked).encode() if fmt == "dot" else to_bytes(lambda: draw(name, asked), fmt)


def draw(name: str, cells: Mapping[str, Cell]) -> Figure:
    """The figure, sized to its content; `name` stands in the titles."""
    from matplotlib.figure import Figure
    from matplotlib.transforms import Affine2D

    layouts = {kind: layout(cell) for kind, cell in cells.items()}
    name_x = {kind: 3 * MARGIN + text_width(TITLES[kind], TITLE_SIZE, "bold") for kind in cells}
    width = max(one.width for one in layouts.values())
    width = max(width, max(name_x.values()) + text_width(name, FONT_SIZE) + MARGIN)
    caption = _wrapped(CAPTION, 0.92 * (width - 2 * MARGIN))  # a screen's letters are a little wider
    height = sum(TITLE_HEIGHT + one.height for one in layouts.values()) + CAPTION_PITCH * len(caption) + MARGIN
    figure = Figure(figsize=(width, height), facecolor="white")
    top = 0.0
    for kind, one in layouts.items():
        # Inches from the top left of the cell's part of the figure.
        place = Affine2D().scale(1, -1).translate(0, height - top) + figure.dpi_scale_trans
        line: dict[str, Any] = {"transform": place, "va": "baseline", "parse_math": False}
        figure.text(MARGIN, 0.26, TITLES[kind], size=TITLE_SIZE, weight="bold", color=INK, **line)
        figure.text(name_x[kind], 0.26, name, size=FONT_SIZE, color=FAINT_INK, **line)
        top += TITLE_HEIGHT
        place = Affine2D().scale(1, -1).translate(0, height - top) + figure.dpi_scale_trans
        _draw_wires(figure, one, place)
        for box in one.boxes:
            _draw_box(figure, box, place)
        top += one.height
    for number, text in enumerate(caption, start=1):
        y = height - top - CAPTION_PITCH * number
        figure.text(MARGIN, y, text, size=NOTE_SIZE, color=FAINT_INK, transform=figure.dpi_scale_trans, va="baseline")
    return figure


def _wrapped(sentences: Sequence[str], width: float) -> list[str]:
    """Lines no wider than `width` inches, if words allow that."""
    lines: list[str] = []
    for word in " ".join(sentences).split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer.replace("$", ""), NOTE_SIZE) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _draw_wires(figure: Figure, one: Layout, place: Transform) -> None:
    """Wires of one source as one path over a white rim, so that at a crossing one is seen to pass below."""
    from matplotlib.patches import PathPatch, Polygon
    from matplotlib.path import Path

    groups: dict[tuple[bool, bool, int], list[Wire]] = defaultdict(list)
    for wire in one.wires:
        is_edge, live = wire.kind in ("edge", "arrow"), wire.state == "live"
        groups[is_edge, live, wire.source if is_edge else -1].append(wire)
    for (is_edge, live, _), wires in sorted(groups.items()):
        colour = FAINT if not live else INK if is_edge else CONCAT
        points = [point for wire in wires for point in wire.control_points()]
        path = Path(points, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4] * len(wires))
        looks: dict[str, Any] = {"fill": False, "capstyle": "butt", "transform": place}
        figure.add_artist(PathPatch(path, edgecolor="white", linewidth=3.4, **looks))
        dashes = "solid" if live else DASHES
        figure.add_artist(PathPatch(path, edgecolor=colour, linewidth=1.1, linestyle=dashes, **looks))
        for x, y in (wire.end for wire in wires if wire.kind in ("arrow", "output")):
            tip = [(x, y), (x - 0.085, y - 0.042), (x - 0.085, y + 0.042)]
            figure.add_artist(Polygon(tip, facecolor=colour, edgecolor="none", transform=place))


def _draw_box(figure: Figure, box: Box, place: Transform) -> None:
    from matplotlib.patches import FancyBboxPatch, Rectangle

    corner, live = (box.x - box.width / 2, box.y - box.height / 2), box.state == "live"
    if box.kind == "tag":  # a gap in the wire
        rest = Rectangle(corner, box.width, box.height, facecolor="white", edgecolor="none", transform=place)
        figure.add_artist(rest)
    elif box.kind != "note":
        fill, line = ("white", FAINT) if not live else family(box.text) if box.kind == "op" else (NODE_FILL, INK)
        shape = FancyBboxPatch(
            corner, box.width, box.height, boxstyle="round,pad=0,rounding_size=0.05", transform=place
        )
        shape.set(facecolor=fill, edgecolor=line, linewidth=1.0, linestyle="solid" if live else DASHES)
        figure.add_artist(shape)
    size = NOTE_SIZE if box.kind in ("note", "tag") else FONT_SIZE
    colour = WARNING if box.kind == "note" else CONCAT if box.text == "concat" else INK if live else FAINT_INK
    weight = "bold" if box.kind in ("input", "node") else "normal"
    lines = box.text.split("\n")
    for index, text in enumerate(lines):
        # Capitals, not the box with descenders, are centred: names with and without an underscore stay level.
        y = box.y + (index - (len(lines) - 1) / 2) * 0.19 + 0.36 * size / 72
        is_math = text.startswith("$")
        style: dict[str, Any] = {"weight": weight, "color": colour, "parse_math": is_math}
        style["size"] = size + 1 if is_math else size
        figure.text(box.x, y, text, ha="center", va="baseline", transform=place, **style)


def family(op: str) -> tuple[str, str]:
    """Fill and outline of an op."""
    return next(colours for prefix, colours in FAMILIES.items() if op.startswith(prefix))


def _dot(name: str, cells: Mapping[str, Cell]) -> str:
    """Graphviz text with a cluster for each cell."""
    lines = [
        "digraph genotype {",
        "  rankdir=LR;",
        '  node [shape=box, style="rounded,filled", fillcolor="#e5e8ec", fontname="Helvetica"];',
        '  edge [fontname="Helvetica", fontsize=10];',
    ]
    for kind, cell in cells.items():
        title = f"{TITLES[kind]}: {name}" if name else TITLES[kind]
        lines += [
            f"  subgraph cluster_{kind} {{",
            f"    label={_quoted(title)};",
            *_dot_cell(kind, cell),
            "  }",
        ]
    caption = " ".join(CAPTION).replace("$", "")
    return "\n".join([*lines, f'  label={_quoted(caption)}; labelloc=b; fontname="Helvetica"; fontsize=10;', "}", ""])


def _dot_cell(kind: str, cell: Cell) -> list[str]:
    graph = CellGraph(cell)
    unbuilt = 'style="rounded,dashed", color=gray50, fontcolor=gray40'
    lines = []
    for node in (0, 1, *graph.nodes):
        label = f"c_{{k-{2 - node}}}" if node < 2 else str(node)
        if graph.state(node) == "live":
            lines.append(f"    {kind}_{node} [label={_quoted(label)}];")
        else:
            label = f"{label} ({graph.note(node)})"
            lines.append(f"    {kind}_{node} [label={_quoted(label)}, {unbuilt}];")
    lines.append(f'    {kind}_out [label="c_{{k}}"];')
    for edge in graph.edges:
        looks = f'color="{family(edge.op)[1]}"' if graph.edge_state(edge) == "live" else "style=dashed, color=gray50"
        lines.append(f"    {kind}_{edge.source} -> {kind}_{edge.target} [label={_quoted(edge.op)}, {looks}];")
    return lines + [f"    {kind}_{node} -> {kind}_out [color=gray60];" for node in graph.concat]


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
