"""The search space of a cell: its types, its nodes and the order of its edges.

Alphas and mixing weights are [num_edges, num_ops]. Their rows are the edges in the order of `edge_list`. Nodes 0 and 1
are the cell's inputs, the outputs of the two cells before it. The intermediate nodes follow: 2, 3, ... (DARTS,
section 2.1). Where edges have weights of their own, those are [num_edges] and named by `EDGE_WEIGHTS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

CELL_TYPES = ("normal", "reduce")
EDGE_WEIGHTS = {kind: f"{kind}_edges" for kind in CELL_TYPES}  # the names of the edges' own weights, beside the ops'
NUM_INPUTS = 2
NUM_NODES = 4  # the intermediate nodes


def edge_list(num_nodes: int = NUM_NODES) -> list[tuple[int, int]]:
    """Every edge as (source, target), in the order of the rows: all edges into node 2, then into node 3, ..."""
    return [(source, target) for target in range(NUM_INPUTS, NUM_INPUTS + num_nodes) for source in range(target)]


def count_nodes(num_edges: int) -> int:
    """The number of intermediate nodes of a cell that has `num_edges` edges.

    Raises:
        ValueError: no cell has that many edges.
    """
    num_nodes = 0
    while len(edge_list(num_nodes)) < num_edges:
        num_nodes += 1
    if len(edge_list(num_nodes)) != num_edges:
        raise ValueError(f"no cell has {num_edges} edges")
    return num_nodes


def edges_into_nodes(num_nodes: int = NUM_NODES) -> list[list[int]]:
    """For each intermediate node, the rows of the edges that end in it; the row of the edge from node 0 is first."""
    edges = edge_list(num_nodes)
    return [
        [row for row, (_, target) in enumerate(edges) if target == node]
        for node in range(NUM_INPUTS, NUM_INPUTS + num_nodes)
    ]


def random_cell(numbers: np.random.Generator, num_ops: int, num_nodes: int = NUM_NODES) -> list[tuple[int, int, int]]:
    """A cell that is drawn uniformly from the space of DARTS: two different inputs a node, and any op on each edge.

    Returns:
        (source, target, number of the op) of each edge, ordered by target and source.
    """
    return [
        (int(source), node, int(numbers.integers(num_ops)))
        for node in range(NUM_INPUTS, NUM_INPUTS + num_nodes)
        for source in sorted(numbers.choice(node, 2, replace=False))
    ]
