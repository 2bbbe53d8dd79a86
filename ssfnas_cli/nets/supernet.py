"""The DARTS supernet: every edge carries every candidate op, weighed by the relaxation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from registry import OPS, Plugin
from registry.norm import BatchNorm
from ssfnas_cli.nets.skeleton import AnyCell, CellInputs, CellSpec, build_cells, build_stem, pool

NUM_NODES = 4


def edge_list(num_nodes: int = NUM_NODES) -> list[tuple[int, int]]:
    """(from, to) of every edge in the order of the alphas' rows: all edges into node 2, then into node 3, ..."""
    return [(source, target) for target in range(2, 2 + num_nodes) for source in range(target)]


class Supernet(nn.Module):
    """Encoder of a search: images [N, C, H, W] and mixing weights -> pooled features [N, num_features].

    Args:
        in_channels: of the images.
        channels: width of the first cells (C).
        layers: number of cells.
        ops: names of the candidate ops, in the order of the alphas' columns.
        op_options: options of ops that have some.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        layers: int,
        ops: Sequence[str],
        op_options: Mapping[str, Mapping[str, Any]] | None = None,
    ):
        super().__init__()
        plugins = [OPS.get(name) for name in ops]
        options = {
            name: plugin.parse_options((op_options or {}).get(name)) for name, plugin in zip(ops, plugins, strict=True)
        }
        self.stem = build_stem(in_channels, channels)
        cells = build_cells(layers, channels, lambda spec: SearchCell(spec, plugins, options))
        self.cells = nn.ModuleList(cells)
        self.num_features = cells[-1].out_channels

    def forward(self, images: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        older = newer = self.stem(images)
        for cell in self.cells:
            older, newer = newer, cell(older, newer, weights["reduce" if cell.reduction else "normal"])
        return pool(newer)


class SearchCell(AnyCell):
    """A cell of the supernet. Its output concatenates the intermediate nodes."""

    def __init__(self, spec: CellSpec, plugins: Sequence[Plugin], options: Mapping[str, Any]):
        super().__init__()
        self.reduction = spec.reduction
        self.out_channels = NUM_NODES * spec.channels
        self.inputs = CellInputs(spec, affine=False)
        # An op without parameters gives all edges from a node the same result: it lives with the node.
        of_node = [nn.ModuleDict() for _ in range(1 + NUM_NODES)]
        of_edge = [nn.ModuleDict() for _ in edge_list()]
        for edge, (source, _) in enumerate(edge_list()):
            stride = 2 if spec.reduction and source < 2 else 1
            for column, plugin in enumerate(plugins):
                if plugin.facts.is_none:
                    continue  # adds nothing; its weight only takes part in a softmax
                op = _candidate(plugin, spec.channels, stride, options[plugin.name])
                shared = plugin.facts.parameter_free and not any(True for _ in op.parameters())
                home = of_node[source] if shared else of_edge[edge]
                if str(column) not in home:
                    home[str(column)] = op
        self.of_node, self.of_edge = nn.ModuleList(of_node), nn.ModuleList(of_edge)

    def forward(self, older: Tensor, newer: Tensor, weights: Tensor) -> Tensor:
        """Two cells' outputs [N, C', H, W], weights [num_edges, num_ops] -> [N, 4C, H, W] (halved by a reduction)."""
        states = list(self.inputs(older, newer))
        node_results = [_apply_all(self.of_node[node], states[node]) for node in (0, 1)]
        edge = 0
        for target in range(2, 2 + NUM_NODES):
            terms = []
            for source in range(target):
                results = {**node_results[source], **_apply_all(self.of_edge[edge], states[source])}
                terms += [weights[edge, column] * result for column, result in results.items()]
                edge += 1
            states.append(_sum(terms))
            if target < 1 + NUM_NODES:
                node_results.append(_apply_all(self.of_node[target], states[target]))
        return torch.cat(states[2:], dim=1)


def _candidate(plugin: Plugin, channels: int, stride: int, options: Any) -> nn.Module:
    op = plugin.factory(channels, stride, False, options)
    return nn.Sequential(op, BatchNorm(channels, affine=False)) if plugin.facts.supernet_bn else op


def _apply_all(ops: nn.Module, x: Tensor) -> dict[int, Tensor]:
    """Every op of a node or edge on its input, by its column of the alphas."""
    return {int(column): op(x) for column, op in ops.items()}  # type: ignore[operator]


def _sum(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
