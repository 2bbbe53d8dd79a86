"""The network a genotype stands for, dense or sparse."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from registry import OPS
from ssfnas_cli.artifacts.genotype import Genotype
from ssfnas_cli.nets.skeleton import AnyCell, CellInputs, CellSpec, build_cells, build_stem, pool, reduction_layers


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
        self.sources = [edge.source for edge in live.edges]
        self.edges_into = {node: [k for k, edge in enumerate(live.edges) if edge.target == node] for node in live.nodes}
        self.ops = nn.ModuleList()
        self.exempt: list[bool] = []
        for edge in live.edges:
            stride = 2 if spec.reduction and edge.source < 2 else 1
            plugin = OPS.get(edge.op)
            op = plugin.factory(spec.channels, stride, True, plugin.parse_options(genotype.op_options.get(edge.op)))
            self.ops.append(op)
            self.exempt.append(plugin.facts.drop_path_exempt and stride == 1)

    def forward(self, older: Tensor, newer: Tensor, drop_rate: float) -> Tensor:
        """Two cells' outputs -> [N, len(concat) * C, H, W]; drop path per op (DARTS) or per node (FairDARTS)."""
        first, second = self.inputs(older, newer)
        states: dict[int, Tensor] = {0: first, 1: second}
        for node in self.nodes:
            total: Tensor | None = None
            for k in self.edges_into[node]:
                result = self.ops[k](states[self.sources[k]])
                if drop_rate and not self.drop_node and not self.exempt[k]:
                    result = drop_path(result, drop_rate)
                total = result if total is None else total + result
            assert total is not None, "a live node has an edge"
            states[node] = drop_path(total, drop_rate) if drop_rate and self.drop_node else total
        return torch.cat([states[node] for node in self.concat], dim=1)


def drop_path(x: Tensor, rate: float) -> Tensor:
    """Zero whole samples of [N, C, H, W] with probability `rate`, scale the others up."""
    keep = 1.0 - rate
    mask = torch.empty(x.shape[0], 1, 1, 1, dtype=x.dtype, device=x.device).bernoulli_(keep)
    return x / keep * mask
