"""Where everything in a cell's picture goes: plain geometry, in inches, x to the right and y downwards.

The cell flows from left to right in columns. Column 0 holds the two inputs; an intermediate node stands one
column after its last source, with its incoming ops stacked at its left as boxes. What has to pass a column (a
node's output on its way further right, or to the concatenation) gets a lane of its own there. Boxes and lanes
of a column are stacked without overlap and wires bend only between columns, so that no wire crosses a label
or a node, whatever the cell. Columns are ordered to have few crossings (Sugiyama's method, on tiny graphs).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from ssfnas_cli.artifacts.genotype import Cell, Edge
from ssfnas_cli.plots.cell_graph import (
    NOTE_HEIGHT,
    OP_PITCH,
    CellGraph,
    Item,
    order_columns,
    stack_columns,
)

FONT_SIZE = 10.5  # points, of ops and nodes
NOTE_SIZE = 9.0  # points, of notes ("no input", "unused") and of the tags on lanes
OP_HEIGHT, OP_PADDING, TAG_HEIGHT = 0.24, 0.15, 0.14
NODE_WIDTH, INPUT_WIDTH, ARROW = 0.29, 0.5, 0.2
MIN_BEND, MAX_BEND, BEND_SLOPE = 0.38, 1.2, 0.27  # space between columns, by how far wires climb in it
PORT = 0.06  # how far beside its edges a node's way to the concatenation leaves
MARGIN = 0.12


@dataclass(frozen=True)
class Box:
    """A node, an op or a text; (x, y) is its centre. `state`: live, dead (no input), unused (no way out)."""

    kind: str  # input, node, output, op; note: what is wrong with a node; tag: whose lane it is, on its wire
    text: str
    x: float
    y: float
    width: float
    height: float
    state: str = "live"
    edge: Edge | None = None  # of an op


@dataclass(frozen=True)
class Wire:
    """A line from left to right, level at both ends.

    `kind` is edge (to an op, or along a lane), arrow (from an op into its node), concat (along the way to the
    output) or output (its last piece).
    """

    kind: str
    source: int
    start: tuple[float, float]
    end: tuple[float, float]
    state: str = "live"

    def moved(self, dy: float) -> Wire:
        """The same, further down."""
        (x0, y0), (x1, y1) = self.start, self.end
        return replace(self, start=(x0, y0 + dy), end=(x1, y1 + dy))

    def control_points(self) -> list[tuple[float, float]]:
        """The four points of its cubic Bezier curve."""
        (x0, y0), (x1, y1) = self.start, self.end
        middle = (x0 + x1) / 2
        return [(x0, y0), (middle, y0), (middle, y1), (x1, y1)]


@dataclass(frozen=True)
class Layout:
    """A cell's boxes and wires within (0, 0) and (width, height)."""

    boxes: list[Box]
    wires: list[Wire]
    width: float
    height: float


def layout(cell: Cell) -> Layout:
    """Place everything a cell's picture shows. `none` edges carry nothing and are left out."""
    graph = CellGraph(cell)
    columns = order_columns(graph)
    centres = stack_columns(graph, columns)
    return _place(graph, columns, centres)


@lru_cache(maxsize=4096)
def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Width in inches of a text in the font of the pictures; `$...$` is mathematics."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family="DejaVu Sans", size=size, weight=weight)
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=text.startswith("$"))
    return float(width) / 72


def _place(graph: CellGraph, columns: list[list[Item]], centres: list[dict[Item, float]]) -> Layout:
    """Boxes and wires, from the items' centres."""
    painter = _Painter(graph)
    for column in range(len(columns)):
        painter.add(column, centres[column])
    extents = [(box.y - box.height / 2, box.y + box.height / 2) for box in painter.boxes]
    extents += [wire.start[1:] * 2 for wire in painter.wires]
    top = min(start for start, _ in extents) - MARGIN
    bottom = max(end for _, end in extents) + MARGIN
    boxes = [replace(box, y=box.y - top) for box in painter.boxes]
    wires = [wire.moved(-top) for wire in painter.wires]
    return Layout(boxes, wires, painter.right + MARGIN, bottom - top)


class _Painter:
    """Turns columns of items into boxes and wires, from left to right."""

    def __init__(self, graph: CellGraph):
        self.graph = graph
        self.boxes: list[Box] = []
        self.wires: list[Wire] = []
        self.right = MARGIN  # where the last column ends
        self.outlets: dict[Item, float] = {}  # the y at which its items go on

    def add(self, column: int, centres: dict[Item, float]) -> None:
        """Place a column's boxes, the wires that lead to it and the lanes through it."""
        before, start = self.outlets, self.right
        rows = {item.node: self._rows(item.node, y) for item, y in centres.items() if item.kind == "node"}
        inlets = self._inlets(column, centres, rows)
        climb = max((abs(y - before[source]) for source, y, _, _ in inlets), default=0.0)
        left = start + (min(MAX_BEND, MIN_BEND + BEND_SLOPE * climb) if column else 0.0)
        sources = {source for source, _, kind, _ in inlets if kind == "edge"}
        for source, y, kind, state in inlets:
            y0 = before[source]
            if kind == "concat" and source in sources:  # leaves beside the edges, not under them
                y0 += math.copysign(PORT, y - y0)
            self.wires.append(Wire(kind, source.node, (start, y0), (left, y), state))
        self.right, self.outlets = left + self._column_width(rows), {}
        for item, y in centres.items():
            self.outlets[item] = y
            if item.kind == "node":
                self._add_node(item.node, y, rows[item.node], left)
            elif item.kind == "output":
                height = self.graph.height(item)
                self.right = left + INPUT_WIDTH
                self.boxes.append(Box("output", "$c_{k}$", left + INPUT_WIDTH / 2, y, INPUT_WIDTH, height))
            else:
                self._add_lane(item, column, left, y)

    def _add_lane(self, item: Item, column: int, left: float, y: float) -> None:
        """A level wire through the column, tagged with its source so that nobody need trace it back."""
        lane = item.kind == "lane"
        kind, state = ("edge", self._lane_state(item.node, column)) if lane else ("concat", "live")
        self.wires.append(Wire(kind, item.node, (left, y), (self.right, y), state))
        text = str(item.node) if lane else "concat"
        width = text_width(text, NOTE_SIZE) + 0.08
        self.boxes.append(Box("tag", text, (left + self.right) / 2, y, width, TAG_HEIGHT, state))

    def _column_width(self, rows: dict[int, list[tuple[Edge, float]]]) -> float:
        if 0 in rows:
            return INPUT_WIDTH
        return self._op_width(rows) + ARROW + NODE_WIDTH if rows else 0.0

    def _op_width(self, rows: dict[int, list[tuple[Edge, float]]]) -> float:
        widths = [text_width(edge.op, FONT_SIZE) for row in rows.values() for edge, _ in row]
        widths += [text_width(self.graph.note(node), NOTE_SIZE) for node, row in rows.items() if not row]
        return max(widths) + OP_PADDING

    def _rows(self, node: int, centre: float) -> list[tuple[Edge, float]]:
        """A node's ops with the y of each, in the order in which their sources come in."""

        def source_y(edge: Edge) -> float:
            return self.outlets[self._outlet(edge.source)]

        edges = sorted(self.graph.ops.get(node, []), key=source_y)
        top = centre - self.graph.height(Item("node", node)) / 2 + OP_PITCH / 2
        return [(edge, top + OP_PITCH * index) for index, edge in enumerate(edges)]

    def _outlet(self, node: int) -> Item:
        """As what a node's output leaves the last column: the node itself, or its lane."""
        lane = Item("lane", node)
        return lane if lane in self.outlets else Item("node", node)

    def _inlets(
        self, column: int, centres: dict[Item, float], rows: dict[int, list[tuple[Edge, float]]]
    ) -> list[tuple[Item, float, str, str]]:
        """What comes into a column: from which item, at which y, as which kind of wire, in which state."""
        graph = self.graph
        inlets: list[tuple[Item, float, str, str]] = []
        for row in rows.values():
            for edge, y in row:
                inlets.append((self._outlet(edge.source), y, "edge", graph.edge_state(edge)))
        links = graph.links[column] if column else {}
        for source, target in links:
            if target.kind == "lane":
                inlets.append((source, centres[target], "edge", self._lane_state(target.node, column)))
            elif target.kind == "bus":
                inlets.append((source, centres[target], "concat", "live"))
        feeds = sorted((self.outlets[source], source) for source, target in links if target.kind == "output")
        for index, (_, source) in enumerate(feeds):
            output = Item("output")
            step = graph.height(output) / len(feeds)
            y = centres[output] + step * (index + 0.5 - len(feeds) / 2)
            inlets.append((source, y, "output", "live"))
        return inlets

    def _lane_state(self, node: int, column: int) -> str:
        """Live if something live further right reads it."""
        graph = self.graph
        states = {graph.edge_state(edge) for edge in graph.readers[node] if graph.column[edge.target] > column}
        return "live" if "live" in states else "dead" if "dead" in states else "unused"

    def _add_node(self, node: int, centre: float, row: list[tuple[Edge, float]], left: float) -> None:
        graph, state = self.graph, self.graph.state(node)
        width = INPUT_WIDTH if node < 2 else NODE_WIDTH
        note_height = NOTE_HEIGHT if graph.has_note_below(node) else 0.0
        y, height = centre - note_height / 2, graph.height(Item("node", node)) - note_height
        x = self.right - width / 2
        self.outlets[Item("node", node)] = y
        kind, text = ("input", f"{node}\n$c_{{k-{2 - node}}}$") if node < 2 else ("node", str(node))
        if node >= 2:
            height -= OP_PITCH - OP_HEIGHT
        self.boxes.append(Box(kind, text, x, y, width, height, state))
        note = graph.note(node)
        if note:
            size = text_width(note, NOTE_SIZE)
            if note_height:
                place = (self.right - size / 2, y + height / 2 + NOTE_HEIGHT / 2)
            else:
                place = (x - width / 2 - size / 2 - 0.08, y)
            self.boxes.append(Box("note", note, *place, size, NOTE_HEIGHT - 0.03, state))
        ops_right = self.right - NODE_WIDTH - ARROW
        for edge, op_y in row:
            edge_state = graph.edge_state(edge)
            op_x = (left + ops_right) / 2
            self.boxes.append(Box("op", edge.op, op_x, op_y, ops_right - left, OP_HEIGHT, edge_state, edge))
            ends = (ops_right, op_y), (ops_right + ARROW, op_y)
            self.wires.append(Wire("arrow", edge.source, *ends, edge_state))
