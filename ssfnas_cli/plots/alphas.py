"""The mixing weights of a search over its epochs, as heat maps or as lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from registry.space import CELL_TYPES, EDGE_WEIGHTS, count_nodes, edge_list, edges_into_nodes
from ssfnas_cli.plots.figure import new_figure, series_looks, shown_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WHOLE_EDGE = "whole edge"
TITLE_LETTER = 0.08  # inches of a letter of the title
TITLES = {"normal": "Normal cell", "reduce": "Reduction cell"}


class Record(NamedTuple):
    """The mixing weights [epochs + 1, num_edges, num_ops] of a search by cell type; epoch 0 is the start.

    If edges have weights of their own [epochs + 1, num_edges], they are drawn as if of one more op, up to 1.
    """

    label: str
    ops: Sequence[str]
    weights: Mapping[str, NDArray[np.float64]]

    @property
    def names(self) -> list[str]:
        """What is drawn on every edge: the ops, and the edge's own weight."""
        return [*self.ops, *([WHOLE_EDGE] if self.has_edges else [])]

    @property
    def has_edges(self) -> bool:
        """Whether edges have weights of their own."""
        return all(name in self.weights for name in EDGE_WEIGHTS.values())

    def of(self, kind: str) -> NDArray[np.float64]:
        """The weights of all `names` in a cell type, [epochs + 1, num_edges, names]."""
        edges = self.weights.get(EDGE_WEIGHTS[kind])
        ops = self.weights[kind]
        return ops if edges is None else np.concatenate([ops, edges[..., None]], axis=-1)

    @property
    def highest(self) -> float:
        """The top of the ops' scale: 1, or less if all weights are far below, as those of a softmax are at first."""
        most = max(float(self.weights[kind].max()) for kind in CELL_TYPES)
        return 1.0 if most > 0.6 else float(np.ceil(most * 10) / 10)


def draw_heat(record: Record) -> Figure:
    """A map for each op of each cell: edges from top to bottom, epochs from left to right, dark where the weight is."""
    width = 1.15 * len(record.names) + 1.3
    figure = new_figure(width, 5.6)
    title = shown_name(f"Mixing weights: {record.label}", min(90, int(width / TITLE_LETTER)))
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    grid = figure.subplots(len(CELL_TYPES), len(record.names), squeeze=False, sharex=True, sharey=True)
    scaled = None  # of the ops' scale
    for kind, row in zip(CELL_TYPES, grid, strict=True):
        values = record.of(kind)
        for column, axes in enumerate(row):
            image = axes.imshow(
                values[:, :, column].T,
                cmap="Greys",
                vmin=0,
                vmax=record.highest if column < len(record.ops) else 1.0,
                aspect="auto",
                interpolation="nearest",
                extent=(-0.5, len(values) - 0.5, values.shape[1] - 0.5, -0.5),
            )
            scaled = scaled or image
            _frame_map(axes, values.shape[1], len(values) - 1)
            if kind == CELL_TYPES[0]:
                title = record.names[column] + (", to 1" if column == len(record.ops) else "")
                axes.set_title(shown_name(title, 16), fontsize=8, fontweight="normal", loc="center")
        row[0].set_ylabel(f"{TITLES[kind]}\nedge, from → to", fontsize=8.5)
    for axes in grid[-1]:
        axes.set_xlabel("epoch", fontsize=8)
    assert scaled is not None
    bar = figure.colorbar(scaled, ax=grid, shrink=0.5, aspect=30, pad=0.01)
    bar.set_label("mixing weight")
    return figure


def _frame_map(axes: Axes, num_edges: int, epochs: int) -> None:
    """Names of the edges, a line between the nodes that they lead to, and the first and the last epoch."""
    edges = edge_list(count_nodes(num_edges))
    axes.set_yticks(range(num_edges), [f"{source} → {target}" for source, target in edges], fontsize=6)
    axes.set_xticks([0, epochs] if epochs else [0])
    axes.tick_params(length=2, labelsize=6.5)
    axes.grid(False)
    for rows in edges_into_nodes(count_nodes(num_edges))[1:]:
        axes.axhline(rows[0] - 0.5, color="#56B4E9", linewidth=0.8)
    for spine in axes.spines.values():
        spine.set_visible(True)


def draw_lines(record: Record) -> Figure:
    """A panel for each edge of each cell, a line for each of its names. Edges into the same node are a row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.6, 6.1), facecolor="white")  # laid out by hand, which is many times faster
    figure.suptitle(shown_name(f"Mixing weights: {record.label}", 90), x=0.01, y=0.985, ha="left", fontsize=10)
    handles: list = []
    for kind, left in zip(CELL_TYPES, (0.045, 0.545), strict=True):
        figure.text(left, 0.92, TITLES[kind], fontsize=10)
        handles = _draw_edges(figure, left, record.of(kind), record)
    names = [shown_name(name, 20) for name in record.names]
    narrow = {"ncols": 9, "columnspacing": 1.0, "handletextpad": 0.4} if len(names) > 8 else {"ncols": len(names)}
    figure.legend(handles, names, loc="lower center", fontsize=8, handlelength=3.2, **narrow)
    return figure


def _draw_edges(figure: Figure, left: float, values: NDArray[np.float64], record: Record) -> list:
    nodes = edges_into_nodes(count_nodes(values.shape[1]))
    spaces = {"top": 0.875, "bottom": 0.115, "wspace": 0.14, "hspace": 0.52}
    grid = figure.add_gridspec(len(nodes), max(map(len, nodes)), left=left, right=left + 0.445, **spaces)
    edges = edge_list(len(nodes))
    handles: list = []
    for row, rows in enumerate(nodes):
        for column, edge in enumerate(rows):
            axes = figure.add_subplot(grid[row, column])
            handles = _draw_edge(axes, values[:, edge], 1.0 if record.has_edges else record.highest)
            axes.set_title(f"{edges[edge][0]} → {edges[edge][1]}", fontsize=7.5, fontweight="normal", pad=2)
            if column:
                axes.set_yticklabels([])
            if row == len(nodes) - 1 and not column:
                axes.set_xlabel("epoch", fontsize=8)
                axes.set_ylabel("weight", fontsize=8)
    return handles


def _draw_edge(axes: Axes, values: NDArray[np.float64], highest: float) -> list:
    """The lines of an edge; `values` are [epochs + 1, names]."""
    every = max(1, len(values) // 4)
    handles = [
        axes.plot(
            *(np.arange(len(values)), values[:, op]),
            **series_looks(op) | {"markersize": 3.2, "linewidth": 1.1},
            markevery=(op % every, every),
        )[0]
        for op in range(values.shape[1])
    ]
    axes.set_ylim(-0.03 * highest, 1.03 * highest)
    axes.set_yticks(np.linspace(0, highest, 3 if highest == 1 else round(10 * highest) + 1).round(2))
    axes.set_xticks([0, len(values) - 1] if len(values) > 1 else [0])
    axes.tick_params(labelsize=6.5, length=2)
    return handles
