"""The DARTS supernet: every edge carries every candidate op, weighed by the relaxation.

A cell is run source by source: a node's map is complete when all nodes before it have added their ops to it. What
leaves a node goes through compiled kernels where there are some and they know the op (nets/fanout.py), else through
the op's own module. Either way an op without parameters is run once for all edges from a node, and `none` never.

What is fast where torch computes (benchmarks/search_step.py, cases `-torch`), beside registry/separable.py: the ReLU
that convolutions begin with is run once a node, an op's mixing weight rides on its BN, and no batch normalisation
meets the gradient of a concatenation, whose slices it is slow on (nets/skeleton.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from registry import OPS, Plugin
from registry.norm import BatchNorm
from registry.separable import SeparableConvs
from registry.space import NUM_NODES, edge_list
from ssfnas_cli.native.cells import CellKernels
from ssfnas_cli.nets.fanout import divide
from ssfnas_cli.nets.projection import with_kernels
from ssfnas_cli.nets.skeleton import AnyCell, CellInputs, CellSpec, Stem, build_cells, concatenate, pool


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
        self.stem = Stem(in_channels, channels)
        cells = build_cells(layers, channels, lambda spec: SearchCell(spec, plugins, options))
        self.cells = nn.ModuleList(cells)
        self.num_features = cells[-1].out_channels

    def compile_with(self, kernels: CellKernels | None) -> None:
        """Have compiled kernels run the ops they know; None: torch runs all of them."""
        for cell in self.cells:
            assert isinstance(cell, SearchCell)
            cell.inputs.compile_with(kernels)
            for fan in cell.leaving:
                fan.compile_with(kernels)

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
        self.leaving = [self._leaving(node, spec) for node in range(1 + NUM_NODES)]

    def _leaving(self, node: int, spec: CellSpec) -> Leaving:
        uses = [
            Candidate(edge, column, target, op)
            for edge, (source, target) in enumerate(edge_list())
            if source == node
            for home in (self.of_node[node], self.of_edge[edge])
            for column, op in _by_column(home).items()
        ]
        return Leaving(uses, stride=2 if spec.reduction and node < 2 else 1)

    def forward(self, older: Tensor, newer: Tensor, weights: Tensor) -> Tensor:
        """Two cells' outputs [N, C', H, W], weights [num_edges, num_ops] -> [N, 4C, H, W] (halved by a reduction)."""
        states: list[Tensor] = list(self.inputs(older, newer))
        sums: dict[int, Tensor] = {}  # by node
        for source, leaving in enumerate(self.leaving):
            if source >= 2:
                states.append(sums[source])
            leaving.add_to(sums, states[source], weights)
        return concatenate([sums[node] for node in range(2, 2 + NUM_NODES)])


class Candidate(NamedTuple):
    """An op's place on an edge: the alphas' row and column, and the node it adds to."""

    edge: int
    column: int
    target: int
    op: nn.Module


class Leaving:
    """The candidate ops on all edges that leave one node."""

    def __init__(self, candidates: Sequence[Candidate], stride: int):
        self.candidates, self.stride = list(candidates), stride
        self.compile_with(None)

    def compile_with(self, kernels: CellKernels | None) -> None:
        """Divide the candidates between compiled kernels and torch."""
        self.fan, known = divide(kernels, [(c.op, c.target) for c in self.candidates], self.stride, False)
        self.known = [self.candidates[place] for place in known]
        self.mixed = torch.tensor([c.edge for c in self.known]), torch.tensor([c.column for c in self.known])
        self.others = [c for place, c in enumerate(self.candidates) if place not in known]
        self.run = {candidate.op: with_kernels(candidate.op, kernels) for candidate in self.candidates}

    def add_to(self, sums: dict[int, Tensor], x: Tensor, weights: Tensor) -> None:
        """Add to the sums of the nodes behind what the ops make of x [N, C, H, W]."""
        others = self.candidates
        if self.fan is not None and self.fan.can_run(x):
            self.fan.add_to(sums, x, weights[self.mixed][:, None].to(x.dtype))
            others = self.others
        if others:
            self._add_by_torch(others, sums, x, weights)

    def _add_by_torch(
        self, candidates: Sequence[Candidate], sums: dict[int, Tensor], x: Tensor, weights: Tensor
    ) -> None:
        """Op by op; the ReLU that convolutions begin with, and an op that several edges share, are run once."""
        rectified = F.relu(x) if any(isinstance(c.op, SeparableConvs) for c in candidates) else x
        uses = Counter(c.op for c in candidates)
        shared = {op: self.run[op](x) for op, count in uses.items() if count > 1}
        for edge, column, target, op in candidates:
            weight = weights[edge, column]
            if isinstance(op, SeparableConvs):
                term = op.after_relu(rectified, weight)
            else:
                term = weight * (shared[op] if op in shared else self.run[op](x))
            sums[target] = sums[target].add_(term) if target in sums else term


def _candidate(plugin: Plugin, channels: int, stride: int, options: Any) -> nn.Module:
    op = plugin.factory(channels, stride, False, options)
    return nn.Sequential(op, BatchNorm(channels, affine=False)) if plugin.facts.supernet_bn else op


def _by_column(ops: nn.Module) -> dict[int, nn.Module]:
    """The ops of a node or edge, by their column of the alphas."""
    return {int(column): op for column, op in ops.items()}  # type: ignore[operator]
