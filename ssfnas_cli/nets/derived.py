"""The network a genotype stands for, dense or sparse.

As in the supernet, a cell is run source by source, by compiled kernels where there are some and they know the op.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from registry import OPS
from ssfnas_cli.artifacts.genotype import Genotype
from ssfnas_cli.native.cells import CellKernels
from ssfnas_cli.nets.branches import Branch, recognise
from ssfnas_cli.nets.fanout import FanOut, Use
from ssfnas_cli.nets.projection import with_kernels
from ssfnas_cli.nets.skeleton import (
    AnyCell,
    CellInputs,
    CellSpec,
    build_cells,
    build_stem,
    concatenate,
    pool,
    reduction_layers,
)


class Encoded(NamedTuple):
    """`features` [N, F] pooled; `aux_map` [N, C, H, W] is the map the auxiliary head reads."""

    features: Tensor
    aux_map: Tensor


class DerivedEncoder(nn.Module):
    """Stem, cells, pooling. `drop_path` is the probability, set by the training loop as it rises."""

    def __init__(self, genotype: Genotype, in_channels: int, channels: int, layers: int):
        super().__init__()
        self.drop_path = 0.0
        self.stem = build_stem(in_channels, channels)
        cells = build_cells(layers, channels, lambda spec: DerivedCell(genotype, spec))
        self.cells = nn.ModuleList(cells)
        self.aux_layer = reduction_layers(layers)[1]
        self.aux_channels = cells[self.aux_layer].out_channels
        self.num_features = cells[-1].out_channels

    def compile_with(self, kernels: CellKernels | None) -> None:
        """Have compiled kernels run the ops they know; None: torch runs all of them."""
        for cell in self.cells:
            assert isinstance(cell, DerivedCell)
            cell.compile_with(kernels)

    def forward(self, images: Tensor) -> Encoded:
        """[N, C, H, W] -> pooled features and the map at two thirds of the depth."""
        older = newer = aux_map = self.stem(images)
        rate = self.drop_path if self.training else 0.0
        for layer, cell in enumerate(self.cells):
            older, newer = newer, cell(older, newer, rate)
            if layer == self.aux_layer:
                aux_map = newer
        return Encoded(pool(newer), aux_map)


class DerivedCell(AnyCell):
    """A cell of a derived network: only its live edges and nodes, its width that of the nodes that exist."""

    def __init__(self, genotype: Genotype, spec: CellSpec):
        super().__init__()
        live = (genotype.reduce if spec.reduction else genotype.normal).live()
        self.reduction = spec.reduction
        self.drop_node = genotype.drop_path == "node"
        self.nodes, self.concat = live.nodes, live.concat
        self.out_channels = len(live.concat) * spec.channels
        self.inputs = CellInputs(spec, affine=True)
        self.edges_into = {node: [k for k, edge in enumerate(live.edges) if edge.target == node] for node in live.nodes}
        self.ops = nn.ModuleList()
        self.exempt: list[bool] = []
        self.edges_from = {n: [k for k, edge in enumerate(live.edges) if edge.source == n] for n in (0, 1, *live.nodes)}
        self.targets = [edge.target for edge in live.edges]
        for edge in live.edges:
            stride = 2 if spec.reduction and edge.source < 2 else 1
            plugin = OPS.get(edge.op)
            op = plugin.factory(spec.channels, stride, True, plugin.parse_options(genotype.op_options.get(edge.op)))
            self.ops.append(op)
            self.exempt.append(plugin.facts.drop_path_exempt and stride == 1)
        self.compile_with(None)

    def compile_with(self, kernels: CellKernels | None) -> None:
        """Have compiled kernels run the ops they know; None: torch runs all of them."""
        self.inputs.compile_with(kernels)
        self.run = [with_kernels(op, kernels) for op in self.ops]
        self.fans: dict[int, NodeFan] = {}
        for source, edges in self.edges_from.items():
            branches = {k: branch for k in edges if kernels and (branch := recognise(self.ops[k])) is not None}
            if kernels and branches:
                stride = 2 if self.reduction and source < 2 else 1
                self.fans[source] = NodeFan(kernels, branches, self.targets, stride)

    def forward(self, older: Tensor, newer: Tensor, drop_rate: float) -> Tensor:
        """Two cells' outputs -> [N, len(concat) * C, H, W]; drop path per op (DARTS) or per node (FairDARTS)."""
        states: dict[int, Tensor] = dict(enumerate(self.inputs(older, newer)))
        edge_factors, node_factors = self._drop_factors(states[0], drop_rate)
        fused: dict[int, Tensor] = {}  # what compiled kernels add up in place
        plain: dict[int, Tensor] = {}
        for source, edges in self.edges_from.items():
            if source >= 2:
                states[source] = _node(fused.get(source), plain.get(source), node_factors.get(source))
            x, fan = states[source], self.fans.get(source)
            compiled = fan is not None and fan.add_to(fused, x, edge_factors)
            for k in edges:
                if compiled and fan is not None and k in fan.edges:
                    continue
                result, target = self.run[k](x), self.targets[k]
                if k in edge_factors:
                    result = result * edge_factors[k]
                plain[target] = plain[target] + result if target in plain else result
        return concatenate([states[node] for node in self.concat])

    def _drop_factors(self, x: Tensor, rate: float) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Drop path's factors [N, 1, 1, 1] by edge or by node, drawn in the nodes' order whatever computes them."""
        edges: dict[int, Tensor] = {}
        nodes: dict[int, Tensor] = {}
        for node in self.nodes if rate else []:
            if self.drop_node:
                nodes[node] = drop_path_factors(x, rate)
            else:
                edges |= {k: drop_path_factors(x, rate) for k in self.edges_into[node] if not self.exempt[k]}
        return edges, nodes


class NodeFan:
    """The edges from one node that compiled kernels run.

    Args:
        branches: by the edge's number.
        targets: of every edge of the cell.
    """

    def __init__(self, kernels: CellKernels, branches: dict[int, Branch], targets: list[int], stride: int):
        self.edges = list(branches)
        self.targets = sorted({targets[k] for k in branches})
        self.norms = [branch.norm for branch in branches.values()]
        uses = [Use(place, self.targets.index(targets[k])) for place, k in enumerate(branches)]
        self.fan = FanOut(kernels, list(branches.values()), uses, stride)

    def add_to(self, sums: dict[int, Tensor], x: Tensor, factors: dict[int, Tensor]) -> bool:
        """Add the edges' results on x [N, C, H, W] to their nodes' sums; false, and nothing added, if it cannot."""
        if not self.fan.can_run(x):
            return False
        one, zero = x.new_ones(x.shape[1]), x.new_zeros(x.shape[1])
        scale = torch.stack([one if norm is None else norm.weight for norm in self.norms])
        shift = torch.stack([zero if norm is None else norm.bias for norm in self.norms])
        all_kept = x.new_ones(x.shape[0])
        dropped = any(k in factors for k in self.edges)
        sample = (
            torch.stack([factors[k].flatten() if k in factors else all_kept for k in self.edges]) if dropped else None
        )
        sums.update(
            zip(self.targets, self.fan(x, [sums.get(t) for t in self.targets], scale, shift, sample), strict=True)
        )
        return True


def _node(fused: Tensor | None, plain: Tensor | None, factor: Tensor | None) -> Tensor:
    """A node's map from its two sums, dropped where asked."""
    total = fused if plain is None else plain if fused is None else fused + plain
    assert total is not None, "a live node has an edge"
    return total if factor is None else total * factor


def drop_path_factors(x: Tensor, rate: float) -> Tensor:
    """For every image of a batch [N, ...]: 0 with probability `rate`, else what keeps the mean, [N, 1, 1, 1]."""
    keep = 1.0 - rate
    return x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(keep) / keep
