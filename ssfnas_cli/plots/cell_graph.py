"""How a cell is laid out: the column of each node, the order within columns, and how high everything stands.

See cell_layout.py for the picture this makes.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from ssfnas_cli.artifacts.genotype import Cell, Edge

INPUT_HEIGHT, OP_PITCH, NOTE_HEIGHT = 0.46, 0.29, 0.19  # inches
BLOCK_GAP, LANE_GAP = 0.2, 0.17  # least distance of two nodes, and of a lane from its neighbours
MAX_LINKS_TO_UNTANGLE = 400  # beyond it, only the fast ordering


class Item(NamedTuple):
    """What is stacked in a column: a `node` with its ops, the `lane` of a node, the `bus` to the output."""

    kind: str
    node: int = -1


class CellGraph:
    """The cell as items in columns and the links between neighbouring columns."""

    def __init__(self, cell: Cell):
        live = cell.pruned()
        self.edges = [edge for edge in cell.edges if edge.op != "none"]
        self.nodes = sorted([*live.nodes, *live.dead_nodes])
        self.dead = set(live.dead_nodes)
        self.concat = live.concat
        self.used = _reaching(live.edges, live.concat)
        self.ops: dict[int, list[Edge]] = {node: [] for node in self.nodes}
        self.readers: dict[int, list[Edge]] = defaultdict(list)
        for edge in self.edges:
            self.ops[edge.target].append(edge)
            self.readers[edge.source].append(edge)
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

    def has_note_below(self, node: int) -> bool:
        """Whether the note goes below the node, not where its ops would be."""
        return self.state(node) == "unused" or (self.state(node) == "dead" and bool(self.ops[node]))

    def height(self, item: Item) -> float:
        """Room an item takes in its column."""
        if item.kind in ("lane", "bus"):
            return 0.0
        if item.kind == "output":
            return max(INPUT_HEIGHT, 0.15 * len(self.links[self.last]))
        note = NOTE_HEIGHT if self.has_note_below(item.node) else 0.0
        return note + (INPUT_HEIGHT if item.node < 2 else OP_PITCH * max(1, len(self.ops[item.node])))


def _reaching(edges: list[Edge], concat: list[int]) -> set[int]:
    """Nodes from which a concatenated node is reached."""
    reaching = set(concat)
    for edge in sorted(edges, key=lambda edge: -edge.target):
        if edge.target in reaching:
            reaching.add(edge.source)
    return reaching


def order_columns(graph: CellGraph) -> list[list[Item]]:
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
        crossings = sum(_crossings(graph, columns, index) for index in (column, column + 1) if index <= graph.last)
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
    return sum(w * v for index, (a, b, w) in enumerate(ends) for c, d, v in ends[:index] if (a - c) * (b - d) < 0)


def stack_columns(graph: CellGraph, columns: list[list[Item]]) -> list[dict[Item, float]]:
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
            middle = sum(centres[column].values()) / len(columns[column])  # for what is linked to nothing
            wanted = [
                (_mean(pulls[item], default=middle), sum(w for _, w in pulls[item]) or 0.01) for item in columns[column]
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
