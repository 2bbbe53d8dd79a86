"""The order of a cell's edges, which alphas, mixing weights and genotypes share."""

from __future__ import annotations

import subprocess
import sys

import pytest

from registry.space import NUM_NODES, count_nodes, edge_list, edges_into_nodes


def test_edges_are_ordered_node_by_node():
    assert edge_list() == [
        *((0, 2), (1, 2)),
        *((0, 3), (1, 3), (2, 3)),
        *((0, 4), (1, 4), (2, 4), (3, 4)),
        *((0, 5), (1, 5), (2, 5), (3, 5), (4, 5)),
    ]


def test_rows_of_the_edges_into_each_node() -> None:
    assert edges_into_nodes(3) == [[0, 1], [2, 3, 4], [5, 6, 7, 8]]
    for rows, node in zip(edges_into_nodes(), range(2, 2 + NUM_NODES), strict=True):
        assert [edge_list()[row] for row in rows] == [(source, node) for source in range(node)]


@pytest.mark.parametrize("num_nodes", range(7))
def test_nodes_are_counted_from_edges(num_nodes: int) -> None:
    assert count_nodes(len(edge_list(num_nodes))) == num_nodes


def test_a_number_of_edges_that_no_cell_has_is_an_error() -> None:
    with pytest.raises(ValueError, match="no cell has 4 edges"):
        count_nodes(4)


def test_the_search_space_imports_no_torch() -> None:
    code = "import registry.space, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
