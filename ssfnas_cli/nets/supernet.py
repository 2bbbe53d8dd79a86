"""The DARTS supernet: every edge carries every candidate op, and the relaxation weighs them.

A cell is computed source by source: a node's map is complete when all earlier nodes have added their ops to it. The ops
that leave a node are computed by the compiled kernels if there are some and they support the op (nets/compiled), else
by the op's own module. Either way an op without parameters is computed once for all edges that leave a node, and
`none` never.

A candidate whose mixing weight is exactly zero is neither computed nor stored. Sampled paths, single architectures and
masked candidates are therefore just mixing weights, and cost only the ops that they use.

With partial channels (nets/partial.py) the ops see a part of a node's channels. The others pass by them to the same
targets, as if by one more candidate on each edge, the identity, whose weight is that of the edge.

Without compiled kernels three things make a pass fast (benchmarks/search_step.py, cases `-torch`), beside
registry/separable.py: the ReLU that convolutions begin with is computed once for each node, an op's mixing weight is
folded into its BN, and no BN gets a slice of a concatenation's gradient, on which it is slow (nets/skeleton.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from registry import OPS, Plugin, gpu
from registry.norm import BatchNorm
from registry.separable import SeparableConvs
from registry.space import CELL_TYPES, EDGE_WEIGHTS, NUM_INPUTS, NUM_NODES, edge_list
from registry.stages import run_together, stages_of, waits_for_ranks
from registry.trials import build_op
from ssfnas_cli.native.cells import CellKernels
from ssfnas_cli.nets import partial
from ssfnas_cli.nets.compiled.fanout import FanOut, split_ops
from ssfnas_cli.nets.compiled.projection import with_kernels
from ssfnas_cli.nets.skeleton import AnyCell, CellInputs, CellSpec, build_cells, concatenate, pool
from ssfnas_cli.nets.stems import STEMS, StemName


class Supernet(nn.Module):
    """Encoder of a search: images [N, C, H, W] and mixing weights -> pooled features [N, num_features].

    Args:
        in_channels: of the images.
        channels: width of the first cells (C).
        layers: number of cells.
        ops: names of the candidate ops, in the order of the alphas' columns.
        op_options: options of ops that have some.
        stem: makes the first cell's inputs.
        partial_channels: K, of which the ops of every cell see one channel in K; it divides `channels`.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        layers: int,
        ops: Sequence[str],
        op_options: Mapping[str, Mapping[str, Any]] | None = None,
        stem: StemName = "cifar",
        partial_channels: int = 1,
    ):
        super().__init__()
        plugins = [OPS.get(name) for name in ops]
        options = {
            name: plugin.parse_options((op_options or {}).get(name)) for name, plugin in zip(ops, plugins, strict=True)
        }
        self.stem = STEMS[stem](in_channels, channels)
        make_cell = lambda spec: SearchCell(spec, plugins, options, partial_channels)
        cells = build_cells(self.stem, layers, channels, make_cell)
        self.partial_channels = partial_channels
        self.cells = nn.ModuleList(cells)
        self.num_features = cells[-1].out_channels

    def compile_with(self, kernels: CellKernels | None) -> None:
        """Have the compiled kernels compute the ops that they support; None: torch computes all of them."""
        for cell in self._cells():
            cell.inputs.compile_with(kernels)
            for ops in [*cell.outgoing, *cell.passing]:
                ops.compile_with(kernels)

    def count_compiled(self) -> tuple[int, int]:
        """How many candidates the compiled kernels compute, and how many there are."""
        outgoing = [ops for cell in self._cells() for ops in cell.outgoing]
        return sum(len(ops.in_fan) for ops in outgoing), sum(len(ops.candidates) for ops in outgoing)

    def forward(self, images: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """Images [N, C, H, W] and mixing weights [num_edges, num_ops] by cell type -> features [N, num_features].

        Beside them there may be weights of whole edges [num_edges], by the names of EDGE_WEIGHTS. A candidate whose
        weight is exactly zero, or whose edge's is, is skipped: its gradient and its weight's gradient are zero, and its
        running statistics do not move. Which ones are skipped is read once for each cell type, before the first cell.
        """
        given = {name: values.to(images.dtype) for name, values in weights.items()}
        with_passing = self.partial_channels > 1
        mixing = {kind: Mixing.of(given[kind], given.get(EDGE_WEIGHTS[kind]), with_passing) for kind in CELL_TYPES}
        older, newer = self.stem(images)
        for cell in self._cells():
            older, newer = newer, cell(older, newer, mixing["reduce" if cell.reduction else "normal"])
        return pool(newer)

    def _cells(self) -> Iterator[SearchCell]:
        for cell in self.cells:
            assert isinstance(cell, SearchCell)
            yield cell


class Mixing(NamedTuple):
    """The mixing weights of one cell type [num_edges, num_ops], times those of its edges.

    `zeros` are the places (edge, column) of the weights that are exactly zero, read from the device once. `passing` are
    the weights [num_edges, 1] of the channels that pass by the ops, if there are such.
    """

    weights: Tensor
    zeros: frozenset[tuple[int, int]]
    passing: Mixing | None = None

    @classmethod
    def of(cls, weights: Tensor, edges: Tensor | None = None, with_passing: bool = False) -> Mixing:
        """Find the zeros; weights on the meta device have no values and count as different from zero.

        Args:
            weights: of the ops [num_edges, num_ops].
            edges: of whole edges [num_edges]. None means 1 for each, and that an edge without ops is not there.
            with_passing: whether there are channels that pass by the ops.
        """
        times_edges = weights if edges is None else _times_edges(weights, edges)
        mixing = cls(times_edges, _zeros_of(times_edges))
        if not with_passing:
            return mixing
        if edges is None:
            edges = (weights != 0).any(dim=1).to(weights)
            if not (weights.is_cpu or weights.is_meta):
                edges = gpu.with_zeros(edges, gpu.find_zeros(weights).all(dim=1))
        passing = edges[:, None]
        if (zeros := gpu.known_zeros(edges)) is not None:
            passing = gpu.with_zeros(passing, zeros[:, None])
        return mixing._replace(passing=cls(passing, _zeros_of(passing)))


def _times_edges(weights: Tensor, edges: Tensor) -> Tensor:
    """The weights of ops times those of their edges; where they are zero is known if it is known of both."""
    product = weights * edges[:, None]
    zeros, of_edges = gpu.known_zeros(weights), gpu.known_zeros(edges)
    return product if zeros is None or of_edges is None else gpu.with_zeros(product, zeros | of_edges[:, None])


def _zeros_of(weights: Tensor) -> frozenset[tuple[int, int]]:
    if weights.is_meta:
        return frozenset()
    return frozenset((edge, column) for edge, column in gpu.find_zeros(weights).nonzero().tolist())


class SearchCell(AnyCell):
    """A cell of the supernet. Its output concatenates the intermediate nodes.

    Its ops see one channel in K. Of each node, `outgoing` are the ops that leave it, `passing` what lets the other
    channels pass by them, if there are others.
    """

    def __init__(self, spec: CellSpec, plugins: Sequence[Plugin], options: Mapping[str, Any], k: int = 1):
        super().__init__()
        self.reduction, self.k = spec.reduction, k
        self.out_channels = NUM_NODES * spec.channels
        self.inputs = CellInputs(spec, affine=False)
        # An op without parameters gives all edges from a node the same result, so it belongs to the node.
        of_node = [nn.ModuleDict() for _ in range(1 + NUM_NODES)]
        of_edge = [nn.ModuleDict() for _ in edge_list()]
        for edge, (source, _) in enumerate(edge_list()):
            stride = 2 if spec.reduction and source < 2 else 1
            for column, plugin in enumerate(plugins):
                if plugin.facts.is_none:
                    continue  # it adds nothing: its weight only takes part in a softmax
                op = _candidate(plugin, spec.channels // k, stride, options[plugin.name])
                shared = plugin.facts.parameter_free and not any(True for _ in op.parameters())
                home = of_node[source] if shared else of_edge[edge]
                if str(column) not in home:
                    home[str(column)] = op
        self.of_node, self.of_edge = nn.ModuleList(of_node), nn.ModuleList(of_edge)
        self.outgoing = [self._outgoing_ops(node, spec) for node in range(1 + NUM_NODES)]
        self.passing = [_passing_by(node) for node in range(1 + NUM_NODES)] if k > 1 else []

    def _outgoing_ops(self, node: int, spec: CellSpec) -> OutgoingOps:
        candidates = [
            Candidate(edge, column, target, op)
            for edge, (source, target) in enumerate(edge_list())
            if source == node
            for home in (self.of_node[node], self.of_edge[edge])
            for column, op in _by_column(home).items()
        ]
        return OutgoingOps(candidates, stride=2 if spec.reduction and node < 2 else 1, narrow=self.k > 1)

    def forward(self, older: Tensor, newer: Tensor, mixing: Mixing) -> Tensor:
        """Two cells' outputs [N, C', H, W] -> [N, 4C, H, W]; a reduction cell halves H and W, rounded up.

        A node that receives nothing, because all candidates into it have weight zero, is a map of zeros.
        """
        states: list[Tensor] = list(self.inputs(older, newer))
        sums: dict[int, Tensor] = {}  # by node
        passed: dict[int, Tensor] = {}  # of the channels that pass by the ops
        for source in range(1 + NUM_NODES):
            if source >= NUM_INPUTS:
                states.append(self._node(source, sums, passed, states[0]))
            self._leave(source, sums, passed, states[source], mixing)
        states.append(self._node(len(states), sums, passed, states[0]))
        return concatenate(states[NUM_INPUTS:])

    def _leave(
        self, source: int, sums: dict[int, Tensor], passed: dict[int, Tensor], x: Tensor, mixing: Mixing
    ) -> None:
        """Add what leaves a node, whose map is x, to the sums of later nodes."""
        if mixing.passing is None:
            return self.outgoing[source].add_to(sums, x, mixing)
        seen, passing = partial.split(x, self.k)
        self.outgoing[source].add_to(sums, seen, mixing)
        halved = self.outgoing[source].stride == 2
        self.passing[source].add_to(passed, partial.halve(passing) if halved else passing, mixing.passing)

    def _node(self, node: int, sums: dict[int, Tensor], passed: dict[int, Tensor], first: Tensor) -> Tensor:
        """A node's map: the sum of what it received, or zeros of the same shape if it received nothing."""
        num, channels, *sides = first.shape
        height, width = (-(-side // 2) if self.reduction else side for side in sides)

        def total(of: dict[int, Tensor], channels: int) -> Tensor:
            if node in of:
                return of[node]
            return first.new_zeros(num, channels, height, width).contiguous(memory_format=torch.channels_last)

        if self.k == 1:
            return total(sums, channels)
        seen = channels // self.k
        return partial.join(total(sums, seen), total(passed, channels - seen))


class Candidate(NamedTuple):
    """An op on an edge: the row and column of its mixing weight, the node that it is added to, and its module."""

    edge: int
    column: int
    target: int
    op: nn.Module


def _places(candidates: Sequence[Candidate]) -> tuple[Tensor, Tensor]:
    """The rows and columns of the candidates' mixing weights."""
    places = torch.tensor([(c.edge, c.column) for c in candidates], dtype=torch.long).view(-1, 2)
    return places[:, 0], places[:, 1]


class OutgoingOps:
    """The candidate ops on all edges that leave one node.

    `narrow` says that they see so few channels that images may lie side by side (nets/compiled/side_by_side.py).
    """

    def __init__(self, candidates: Sequence[Candidate], stride: int, narrow: bool = False):
        self.candidates, self.stride, self.narrow = list(candidates), stride, narrow
        self.compile_with(None)

    def compile_with(self, kernels: CellKernels | None) -> None:
        """Split the candidates between the compiled kernels and torch."""
        ops = [(candidate.op, candidate.target) for candidate in self.candidates]
        self.fan, supported = split_ops(kernels, ops, self.stride, affine=False, side_by_side=self.narrow)
        self.in_fan = [self.candidates[index] for index in supported]
        self.places_in_fan = _places(self.in_fan)
        self.not_in_fan = [c for index, c in enumerate(self.candidates) if index not in supported]
        self.run = {candidate.op: with_kernels(candidate.op, kernels) for candidate in self.candidates}

    def add_to(self, sums: dict[int, Tensor], x: Tensor, mixing: Mixing) -> None:
        """Add the results of the ops on x [N, C, H, W] to the sums of later nodes."""
        by_torch = self.candidates
        if self.fan is not None and self.fan.can_run(x):
            self._add_by_kernels(self.fan, sums, x, mixing)
            by_torch = self.not_in_fan
        live = [c for c in by_torch if (c.edge, c.column) not in mixing.zeros]
        if live:
            self._add_by_torch(live, sums, x, mixing.weights)

    def _add_by_kernels(self, fan: FanOut, sums: dict[int, Tensor], x: Tensor, mixing: Mixing) -> None:
        """Add the live candidates of the fan."""
        if not mixing.zeros:
            return fan.add_to(sums, x, mixing.weights[self.places_in_fan][:, None].to(fan.kernels.dtype))
        live = [k for k, c in enumerate(self.in_fan) if (c.edge, c.column) not in mixing.zeros]
        if live:
            places = _places([self.in_fan[k] for k in live])
            fan.subset(live).add_to(sums, x, mixing.weights[places][:, None].to(fan.kernels.dtype))

    def _add_by_torch(
        self, candidates: Sequence[Candidate], sums: dict[int, Tensor], x: Tensor, weights: Tensor
    ) -> None:
        """Add op by op; the convolutions' first ReLU, and an op that several edges share, are computed once."""
        rectified = F.relu(x) if any(isinstance(c.op, SeparableConvs) for c in candidates) else x
        if waits_for_ranks(candidates[0].op):
            shared = self._together(candidates, x, rectified, weights)
        else:
            uses = Counter(c.op for c in candidates)
            shared = {op: self.run[op](x) for op, count in uses.items() if count > 1}
        for edge, column, target, op in candidates:
            weight = weights[edge, column]
            if isinstance(op, SeparableConvs):
                term = shared[op] if op in shared else op.after_relu(rectified, weight)
            else:
                term = weight * (shared[op] if op in shared else self.run[op](x))
            sums[target] = sums[target].add_(term) if target in sums else term

    def _together(
        self, candidates: Sequence[Candidate], x: Tensor, rectified: Tensor, weights: Tensor
    ) -> dict[nn.Module, Tensor]:
        """The result of every op, computed in stages; that of separable convolutions is times its weight."""
        stages = {
            op: op.stages_after_relu(rectified, weights[edge, column])
            if isinstance(op, SeparableConvs)
            else stages_of(op, x)
            for edge, column, _, op in candidates
        }
        return dict(zip(stages, run_together(list(stages.values())), strict=True))


def _passing_by(node: int) -> OutgoingOps:
    """What lets channels pass by the ops on all edges that leave a node: there is one such column."""
    same = nn.Identity()
    targets = [(edge, target) for edge, (source, target) in enumerate(edge_list()) if source == node]
    return OutgoingOps([Candidate(edge, 0, target, same) for edge, target in targets], stride=1)


def _candidate(plugin: Plugin, channels: int, stride: int, options: Any) -> nn.Module:
    op = build_op(plugin, channels, stride, False, options)
    return nn.Sequential(op, BatchNorm(channels, affine=False)) if plugin.facts.supernet_bn else op


def _by_column(ops: nn.Module) -> dict[int, nn.Module]:
    """The ops of a node or an edge, by their column of the mixing weights."""
    return {int(column): op for column, op in ops.items()}  # type: ignore[operator]
