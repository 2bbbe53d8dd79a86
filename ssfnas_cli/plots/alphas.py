"""The mixing weights of a search over its epochs, as heat maps or as lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from registry.space import CELL_TYPES, count_nodes, edge_list, edges_into_nodes
from ssfnas_cli.plots.figure import new_figure, series_looks, shown_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

TITLES = {"normal": "Normal cell", "reduce": "Reduction cell"}


class Record(NamedTuple):
    """The mixing weights [epochs + 1, num_edges, num_ops] of a search by cell type; epoch 0 is the start."""

    label: str
    ops: Sequence[str]
    weights: Mapping[str, NDArray[np.float64]]

    @property
    def highest(self) -> float:
        """The top of the scale: 1, or less if all weights are far below, as those of a softmax are at first."""
        most = max(float(values.max()) for values in self.weights.values())
        return 1.0 if most > 0.6 else float(np.ceil(most * 10) / 10)


def draw_heat(record: Record) -> Figure:
    """A map for each op of each cell: edges from top to bottom, epochs from left to right, dark where the weight is."""
    figure = new_figure(1.15 * len(record.ops) + 1.3, 5.6)
    figure.suptitle(shown_name(f"Mixing weights: {record.label}", 90), x=0.01, ha="left", fontsize=10)
    grid = figure.subplots(len(CELL_TYPES), len(record.ops), squeeze=False, sharex=True, sharey=True)
    image = None
    for kind, row in zip(CELL_TYPES, grid, strict=True):
        values = record.weights[kind]
        for column, axes in enumerate(row):
            image = axes.imshow(
                values[:, :, column].T,
                cmap="Greys",
                vmin=0,
                vmax=record.highest,
                aspect="auto",
                interpolation="nearest",
                extent=(-0.5, len(values) - 0.5, values.shape[1] - 0.5, -0.5),
            )
            _frame_map(axes, values.shape[1], len(values) - 1)
            if kind == CELL_TYPES[0]:
                axes.set_title(shown_name(record.ops[column], 16), fontsize=8, fontweight="normal", loc="center")
        row[0].set_ylabel(f"{TITLES[kind]}\nedge, from → to", fontsize=8.5)
    for axes in grid[-1]:
        axes.set_xlabel("epoch", fontsize=8)
    assert image is not None
    bar = figure.colorbar(image, ax=grid, shrink=0.5, aspect=30, pad=0.01)
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
    """A panel for each edge of each cell, a line for each op. Edges into the same node are a row."""
    figure = new_figure(11.6, 5.9)
    grid = figure.add_gridspec(1, len(CELL_TYPES))
    parts = [figure.add_subfigure(grid[0, column]) for column in range(len(CELL_TYPES))]
    figure.suptitle(shown_name(f"Mixing weights: {record.label}", 90), x=0.01, ha="left", fontsize=10)
    handles: list = []
    for kind, part in zip(CELL_TYPES, parts, strict=True):
        part.suptitle(TITLES[kind], fontsize=10)
        handles = _draw_edges(part, record.weights[kind], record)
    names = [shown_name(op, 20) for op in record.ops]
    figure.legend(handles, names, loc="outside lower center", ncols=min(8, len(names)), fontsize=8, handlelength=3.2)
    return figure


def _draw_edges(part: SubFigure, values: NDArray[np.float64], record: Record) -> list:
    nodes = edges_into_nodes(count_nodes(values.shape[1]))
    grid = part.subplots(len(nodes), max(map(len, nodes)), squeeze=False, sharex=True, sharey=True)
    edges, epochs = edge_list(len(nodes)), np.arange(len(values))
    handles: list = []
    for rows, line in zip(nodes, grid, strict=True):
        for edge, axes in zip(rows, line, strict=False):
            every = max(1, len(values) // 4)
            handles = [
                axes.plot(
                    *(epochs, values[:, edge, op]),
                    **series_looks(op) | {"markersize": 3.2, "linewidth": 1.1},
                    markevery=(op % every, every),
                )[0]
                for op in range(values.shape[2])
            ]
            axes.set_title(f"{edges[edge][0]} → {edges[edge][1]}", fontsize=7.5, fontweight="normal", pad=2)
            axes.set_ylim(-0.03 * record.highest, 1.03 * record.highest)
            axes.tick_params(labelsize=6.5, length=2, labelbottom=True)
            axes.set_xticks([0, len(values) - 1] if len(values) > 1 else [0])
        for axes in line[len(rows) :]:
            axes.remove()
    grid[-1][0].set_xlabel("epoch", fontsize=8)
    grid[-1][0].set_ylabel("weight", fontsize=8)
    return handles
