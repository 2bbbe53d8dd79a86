"""The network that a genotype describes, dense or sparse.

As in the supernet, a cell is computed source by source, by the compiled kernels if there are some and they support the
op.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from registry import OPS, collective
from registry.networks import Encoded, Encoder
from registry.stages import run_together, stages_of, waits_for_ranks
from registry.trials import build_op
from ssfnas_cli.artifacts.genotype import Genotype
from ssfnas_cli.native.cells import CellKernels
from ssfnas_cli.nets.compiled.fanout import FanOut, split_ops
from ssfnas_cli.nets.compiled.projection import with_kernels
from ssfnas_cli.nets.skeleton import (
    AnyCell,
    CellInputs,
    CellSpec,
    build_cells,
    concatenate,
    pool,
    reduction_layers,
)
from ssfnas_cli.nets.stems import STEMS, StemName


class DerivedEncoder(Encoder):
    """Stem, cells, pooling.

    Args:
        drop_path: the probability of drop path at the end of a training; it rises with `set_progress`.
    """

    def __init__(
        self,
        genotype: Genotype,
        in_channels: int,
        channels: int,
        layers: int,
        drop_path: float = 0.0,
        stem: StemName = "cifar",
    ):
        super().__init__()
        self.max_drop_path, self.drop_path = drop_path, 0.0
        self.stem = STEMS[stem](in_channels, channels)
        cells = build_cells(self.stem, layers, channels, lambda spec: DerivedCell(genotype, spec))
        self.cells = nn.ModuleList(cells)
        self.aux_layer = reduction_layers(layers)[1]
        self.aux_channels = cells[self.aux_layer].out_channels
        self.num_features = cells[-1].out_channels

    def set_progress(self, progress: float) -> None:
        """Drop path rises in a straight line."""
        self.drop_path = self.max_drop_path * progress

    def compile_with(self, kernels: CellKernels | None) -> None:
        """Have the compiled kernels compute the ops that they support; None: torch computes all of them."""
        for cell in self.cells:
            assert isinstance(cell, DerivedCell)
            cell.compile_with(kernels)

    def count_compiled(self) -> tuple[int, int]:
        """How many ops the compiled kernels compute, and how many there are."""
        cells = [cell for cell in self.cells if isinstance(cell, DerivedCell)]
        compiled = sum(len(edges) for cell in cells for _, edges in cell.fans.values())
        return compiled, sum(len(cell.ops) for cell in cells)

    def forward(self, images: Tensor) -> Encoded:
        """Images [N, C, H, W] -> the pooled features and the map at two thirds of the depth."""
        older, newer = self.stem(images)
        aux_map = newer
        rate = self.drop_path if self.training else 0.0
        for layer, cell in enumerate(self.cells):
            older, newer = newer, cell(older, newer, rate)
            if layer == self.aux_layer:
                aux_map = newer
        return Encoded(pool(newer), aux_map)


class DerivedCell(AnyCell):
    """A cell of a derived network. It has only the live edges and nodes, and concatenates the nodes that exist."""

    def __init__(self, genotype: Genotype, spec: CellSpec):
        super().__init__()
        live = (genotype.reduce if spec.reduction else genotype.normal).pruned()
        self.reduction = spec.reduction
        self.drop_node = genotype.drop_path == "node"
        self.edges, self.nodes, self.concat = live.edges, live.nodes, live.concat
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
            op = build_op(plugin, spec.channels, stride, True, plugin.parse_options(genotype.op_options.get(edge.op)))
            self.ops.append(op)
            self.exempt.append(plugin.facts.drop_path_exempt and stride == 1)
        self.compile_with(None)

    def compile_with(self, kernels: CellKernels | None) -> None:
        """Have the compiled kernels compute the ops that they support; None: torch computes all of them."""
        self.inputs.compile_with(kernels)
        self.run = [with_kernels(op, kernels) for op in self.ops]
        self.fans: dict[int, tuple[FanOut, list[int]]] = {}  # by source: the fan, and the edges that it computes
        for source, edges in self.edges_from.items():
            stride = 2 if self.reduction and source < 2 else 1
            fan, supported = split_ops(kernels, [(self.ops[k], self.targets[k]) for k in edges], stride, True)
            if fan is not None:
                self.fans[source] = fan, [edges[index] for index in supported]

    def forward(self, older: Tensor, newer: Tensor, drop_rate: float) -> Tensor:
        """Two cells' outputs -> [N, len(concat) * C, H, W]; drop path acts per op (DARTS) or per node (FairDARTS)."""
        states: dict[int, Tensor] = dict(enumerate(self.inputs(older, newer)))
        edge_factors, node_factors = self._drop_factors(states[0], drop_rate)
        fused: dict[int, Tensor] = {}  # by node, the sums that the compiled kernels add to in place
        plain: dict[int, Tensor] = {}  # by node, the sums of the ops that torch computes
        for source, edges in self.edges_from.items():
            if source >= 2:
                states[source] = _node(fused.get(source), plain.get(source), node_factors.get(source))
            x = states[source]
            compiled = self._add_compiled(source, fused, x, edge_factors)
            by_torch = [k for k in edges if k not in compiled]
            for k, result in self._results(by_torch, x):
                target = self.targets[k]
                if k in edge_factors:
                    result = result * edge_factors[k].to(result.dtype)
                plain[target] = plain[target] + result if target in plain else result
        return concatenate([states[node] for node in self.concat])

    def _results(self, edges: list[int], x: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The results of a node's edges, one by one, or together where they wait for other ranks."""
        if edges and waits_for_ranks(self):
            yield from zip(edges, run_together([stages_of(self.ops[k], x) for k in edges]), strict=True)
        else:
            yield from ((k, self.run[k](x)) for k in edges)

    def _add_compiled(self, source: int, sums: dict[int, Tensor], x: Tensor, factors: dict[int, Tensor]) -> list[int]:
        """Have the compiled kernels add a node's edges to the sums; returns the edges that they computed."""
        fan, edges = self.fans.get(source, (None, []))
        if fan is None or not fan.can_run(x):
            return []
        ones = torch.ones(max(x.shape[:2]), dtype=fan.kernels.dtype)
        one, all_kept = ones[: x.shape[1]], ones[: x.shape[0]]
        zero = torch.zeros_like(one)
        norms = [fan.norms[k] for k in fan.last_map]
        scale = torch.stack([norm.weight if norm is not None and norm.affine else one for norm in norms])
        shift = torch.stack([norm.bias if norm is not None and norm.affine else zero for norm in norms])
        sample = None
        if any(k in factors for k in edges):
            sample = torch.stack([factors[k].flatten() if k in factors else all_kept for k in edges])
        fan.add_to(sums, x, scale, shift, sample)
        return edges

    def _drop_factors(self, x: Tensor, rate: float) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Drop path's factors [N, 1, 1, 1] by edge or by node, drawn in the same order whatever computes the ops."""
        edges: dict[int, Tensor] = {}
        nodes: dict[int, Tensor] = {}
        for node in self.nodes if rate else []:
            if self.drop_node:
                nodes[node] = drop_path_factors(x, rate)
            else:
                edges |= {k: drop_path_factors(x, rate) for k in self.edges_into[node] if not self.exempt[k]}
        return edges, nodes


def _node(fused: Tensor | None, plain: Tensor | None, factor: Tensor | None) -> Tensor:
    """A node's map: the total of its two sums, times its drop-path factor if it has one."""
    total = fused if plain is None else plain if fused is None else fused + plain
    assert total is not None, "a live node has an edge"
    return total if factor is None else total * factor.to(total.dtype)


def drop_path_factors(x: Tensor, rate: float) -> Tensor:
    """A factor for every image of x [N, ...], as [N, 1, 1, 1]: 0 with probability `rate`, else 1 / (1 - rate).

    It is in float32 at least, in which bf16 would have rounded it.
    """
    keep, dtype = 1.0 - rate, torch.promote_types(x.dtype, torch.float32)
    return collective.per_image(len(x), lambda num: x.new_empty(num, 1, 1, 1, dtype=dtype).bernoulli_(keep)) / keep
