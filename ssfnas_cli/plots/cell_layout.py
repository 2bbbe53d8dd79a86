"""Where everything in a cell's picture goes: plain geometry, in inches, x to the right and y downwards.

The cell flows from left to right in columns. Column 0 holds the two inputs; an intermediate node stands one
column after its last source, with its incoming ops stacked at its left as boxes. What has to pass a column (a
node's output on its way further right, or to the concatenation) gets a lane of its own there. Boxes and lanes
of a column are stacked without overlap and wires bend only between columns, so that no wire crosses a label
or a node, whatever the cell. Columns are ordered to have few crossings (Sugiyama's method, on tiny graphs).
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from ssfnas_cli.artifacts.genotype import Cell, Edge

FONT_SIZE = 10.5  # points, of ops and nodes
NOTE_SIZE = 9.0  # points, of notes ("no input", "unused") and of the tags on lanes
OP_HEIGHT, OP_PITCH, OP_PADDING = 0.24, 0.29, 0.15
NODE_WIDTH, INPUT_WIDTH, INPUT_HEIGHT, ARROW = 0.29, 0.46, 0.46, 0.2
NOTE_HEIGHT, TAG_HEIGHT = 0.19, 0.14
BLOCK_GAP, LANE_GAP = 0.2, 0.17  # least distance of two nodes, and of a lane from its neighbours
MIN_BEND, MAX_BEND, BEND_SLOPE = 0.38, 1.2, 0.27  # space between columns, by how far wires climb in it
PORT = 0.06  # how far beside its edges a node's way to the concatenation leaves
MARGIN = 0.12
MAX_LINKS_TO_UNTANGLE = 400  # beyond it, only the fast ordering


class Item(NamedTuple):
    """What is stacked in a column: a `node` with its ops, the `lane` of a node, the `bus` to the output."""

    kind: str
    node: int = -1


@dataclass(frozen=True)
class Box:
    """A node, an op or a text; (x, y) is its centre. `state`: live, dead (no input) or unused (no way out)."""

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
    """A line from left to right, level at both ends."""

    kind: (
        str  # edge: to an op or a lane; arrow: from an op into its node; concat; output: concat's last piece
    )
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
    columns = _order(graph)
    centres = _stack(graph, columns)
    return _draw(graph, columns, centres)


@lru_cache(maxsize=4096)
def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Width in inches of a text in the font of the pictures; `$...$` is mathematics."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family="DejaVu Sans", size=size, weight=weight)
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=text.startswith("$"))
    return float(width) / 72


class CellGraph:
    """The cell as items in columns and the links between neighbouring columns."""

    def __init__(self, cell: Cell):
        live = cell.live()
        self.edges = [edge for edge in cell.edges if edge.op != "none"]
        # A node that is only read from, and never fed, is named by no edge's target: it is dead, too.
        self.nodes = sorted({*live.nodes, *live.dead_nodes, *(e.source for e in self.edges)} - {0, 1})
        self.dead = set(self.nodes) - set(live.nodes)
        self.concat = live.concat
        self.used = _reaching(live.edges, live.concat)
        self.ops: dict[int, list[Edge]] = {node: [] for node in self.nodes}
        for edge in self.edges:
            self.ops[edge.target].append(edge)
        self.column = {0: 0, 1: 0}
        for node in self.nodes:
            self.column[node] = 1 + max((self.column[edge.source] for edge in self.ops[node]), default=0)
        self.last = 1 + max(self.column.values())  # the output's column
        self.links = self._links()

    def _links(self) -> list[dict[tuple[Item, Item], float]]:
        """For each column, how strongly its items hang on those of the column before."""
        links: list[dict[tuple[Item, Item], float]] = [defaultdict(float) for _ in range(self.last + 1)]
        for edge in self.edges:
            item = Item("node", edge.source)
            for column in range(self.column[edge.source] + 1, self.column[edge.target]):
                lane = Item("lane", edge.source)
                links[column][item, lane] = 4  # long wires should be straight
                item = lane
            links[self.column[edge.target]][item, Item("node", edge.target)] += 1
        for node in self.concat:
            item = Item("node", node)
            for column in range(self.column[node] + 1, self.last):
                links[column][item, Item("bus")] = 4 if item.kind == "bus" else 0.5
                item = Item("bus")
            links[self.last][item, Item("output")] = 1
        return links

    def state(self, node: int) -> str:
        """Whether a node is live, dead or unused."""
        return "dead" if node in self.dead else "live" if node in self.used else "unused"

    def edge_state(self, edge: Edge) -> str:
        """An edge is dead as its source is, and unused as its target is."""
        return "dead" if edge.source in self.dead else self.state(edge.target)

    def note(self, node: int) -> str:
        """What is written at a node that is not live."""
        return {"dead": "no input", "unused": "unused", "live": ""}[self.state(node)]

    def height(self, item: Item) -> float:
        """Room an item takes in its column."""
        if item.kind in ("lane", "bus"):
            return 0.0
        if item.kind == "output":
            return max(INPUT_HEIGHT, 0.15 * len(self.links[self.last]))
        note = NOTE_HEIGHT if self.state(item.node) == "unused" else 0.0
        return note + (INPUT_HEIGHT if item.node < 2 else OP_PITCH * max(1, len(self.ops[item.node])))


def _reaching(edges: list[Edge], concat: list[int]) -> set[int]:
    """Nodes from which a concatenated node is reached."""
    reaching = set(concat)
    for edge in sorted(edges, key=lambda edge: -edge.target):
        if edge.target in reaching:
            reaching.add(edge.source)
    return reaching


def _order(graph: CellGraph) -> list[list[Item]]:
    """The items of each column from top to bottom, with few crossings of wires. The inputs stay 0 over 1."""
    columns: list[list[Item]] = [[Item("node", 0), Item("node", 1)]]
    for column in range(1, graph.last + 1):
        named = {target for _, target in graph.links[column]}
        named |= {Item("node", node) for node in graph.nodes if graph.column[node] == column}
        place = {item: index for index, item in enumerate(columns[-1])}
        pulls: dict[Item, list[tuple[int, float]]] = defaultdict(list)
        for (source, target), weight in graph.links[column].items():
            pulls[target].append((place[source], weight))
        centre = {item: _mean(pulls[item], default=len(place) / 2) for item in named}
        columns.append(sorted(named, key=lambda item: (centre[item], item.node, item.kind)))
    if sum(len(links) for links in graph.links) <= MAX_LINKS_TO_UNTANGLE:
        _untangle(graph, columns)
    return columns


def _untangle(graph: CellGraph, columns: list[list[Item]]) -> None:
    """Move single items within their column while that saves crossings or, failing that, sorts nodes."""

    def cost(column: int) -> float:
        nodes = [item.node for item in columns[column] if item.kind == "node"]
        unsorted = sum(a > b for index, b in enumerate(nodes) for a in nodes[:index])
        crossings = sum(
            _crossings(graph, columns, index) for index in (column, column + 1) if index <= graph.last
        )
        return crossings + 0.01 * unsorted

    improved, rounds = True, 0
    while improved and rounds < 8:
        improved, rounds = False, rounds + 1
        for column in range(1, graph.last):
            best, best_order = cost(column), columns[column]
            for item in list(best_order):
                rest = [other for other in best_order if other != item]
                for index in range(len(best_order)):
                    columns[column] = [*rest[:index], item, *rest[index:]]
                    now = cost(column)
                    if now < best:
                        best, best_order, improved = now, columns[column], True
                        rest = [other for other in best_order if other != item]
            columns[column] = best_order


def _crossings(graph: CellGraph, columns: list[list[Item]], column: int) -> float:
    """Crossings of wires between a column and the one before it."""
    left = {item: index for index, item in enumerate(columns[column - 1])}
    right = {item: index for index, item in enumerate(columns[column])}
    ends = [(left[a], right[b], weight) for (a, b), weight in graph.links[column].items()]
    return sum(
        w * v for index, (a, b, w) in enumerate(ends) for c, d, v in ends[:index] if (a - c) * (b - d) < 0
    )


def _stack(graph: CellGraph, columns: list[list[Item]]) -> list[dict[Item, float]]:
    """The y of each item's centre: near what it is linked to, without overlap in its column."""
    centres: list[dict[Item, float]] = []
    for items in columns:
        wanted = [(0.0, 1.0)] * len(items)
        centres.append(_separate(graph, items, wanted))
    ahead = list(range(len(columns)))
    for sweep in range(24):
        for column in ahead if sweep % 2 == 0 else reversed(ahead):
            pulls: dict[Item, list[tuple[float, float]]] = defaultdict(list)
            for (source, target), weight in graph.links[column].items():
                pulls[target].append((centres[column - 1][source], weight))
            if column < graph.last:
                for (source, target), weight in graph.links[column + 1].items():
                    pulls[source].append((centres[column + 1][target], weight))
            wanted = [
                (_mean(pulls[item], default=centres[column][item]), sum(w for _, w in pulls[item]) or 0.1)
                for item in columns[column]
            ]
            centres[column] = _separate(graph, columns[column], wanted)
    return centres


def _mean(pulls: Iterable[tuple[float, float]], default: float) -> float:
    """The weighted mean of (value, weight) pairs."""
    pairs = list(pulls)
    total = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / total if total else default


def _separate(graph: CellGraph, items: list[Item], wanted: list[tuple[float, float]]) -> dict[Item, float]:
    """The centres nearest to the wanted ones (least squares) that keep order and distance."""
    offsets = [0.0]
    for above, below in itertools.pairwise(items):
        boxes = above.kind == below.kind == "node"
        gap = BLOCK_GAP if boxes else LANE_GAP
        offsets.append(offsets[-1] + (graph.height(above) + graph.height(below)) / 2 + gap)
    # Without the offsets the centres only have to be in order: isotonic regression, by pooling violators.
    pools: list[tuple[float, float, int]] = []
    for (value, weight), offset in zip(wanted, offsets, strict=True):
        pool = (value - offset, weight, 1)
        while pools and pools[-1][0] >= pool[0]:
            mean, total, count = pools.pop()
            joint = total + pool[1]
            pool = ((mean * total + pool[0] * pool[1]) / joint, joint, count + pool[2])
        pools.append(pool)
    level = [mean for mean, _, count in pools for _ in range(count)]
    return {item: y + offset for item, y, offset in zip(items, level, offsets, strict=True)}


def _draw(graph: CellGraph, columns: list[list[Item]], centres: list[dict[Item, float]]) -> Layout:
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
        texts = [(edge.op, FONT_SIZE) for row in rows.values() for edge, _ in row] or [
            ("no input", NOTE_SIZE)
        ]
        return max(text_width(text, size) for text, size in texts) + OP_PADDING

    def _rows(self, node: int, centre: float) -> list[tuple[Edge, float]]:
        """A node's ops with the y of each, in the order in which their sources come in."""

        def source_y(edge: Edge) -> float:
            return self.outlets.get(
                Item("lane", edge.source), self.outlets.get(Item("node", edge.source), 0.0)
            )

        edges = sorted(self.graph.ops.get(node, []), key=source_y)
        top = centre - self.graph.height(Item("node", node)) / 2 + OP_PITCH / 2
        return [(edge, top + OP_PITCH * index) for index, edge in enumerate(edges)]

    def _inlets(
        self, column: int, centres: dict[Item, float], rows: dict[int, list[tuple[Edge, float]]]
    ) -> list[tuple[Item, float, str, str]]:
        """What comes into a column: from which item, at which y, as which kind of wire, in which state."""
        graph, inlets = self.graph, []
        for row in rows.values():
            for edge, y in row:
                lane, node = Item("lane", edge.source), Item("node", edge.source)
                inlets.append((lane if lane in self.outlets else node, y, "edge", graph.edge_state(edge)))
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
        readers = [edge for edge in self.graph.edges if edge.source == node]
        states = {self.graph.edge_state(edge) for edge in readers if self.graph.column[edge.target] > column}
        return "live" if "live" in states else "dead" if "dead" in states else "unused"

    def _add_node(self, node: int, centre: float, row: list[tuple[Edge, float]], left: float) -> None:
        graph, state = self.graph, self.graph.state(node)
        width = INPUT_WIDTH if node < 2 else NODE_WIDTH
        note_height = NOTE_HEIGHT if state == "unused" else 0.0
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
            if state == "unused":
                place = (x, y + height / 2 + NOTE_HEIGHT / 2)
            else:
                place = (x - width / 2 - size / 2 - 0.08, y)
            self.boxes.append(Box("note", note, *place, size, NOTE_HEIGHT - 0.03, state))
        ops_right = self.right - NODE_WIDTH - ARROW
        for edge, op_y in row:
            edge_state = graph.edge_state(edge)
            op_x = (left + ops_right) / 2
            self.boxes.append(Box("op", edge.op, op_x, op_y, ops_right - left, OP_HEIGHT, edge_state, edge))
            self.wires.append(
                Wire("arrow", edge.source, (ops_right, op_y), (ops_right + ARROW, op_y), edge_state)
            )
