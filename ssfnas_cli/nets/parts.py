"""The parts of a derived network, each with the shape of its input, and what a network costs as the sum of its parts.

The parts are the stem, the two projections of each cell's inputs, the ops of the edges, the concatenation of each
cell's nodes, and the classifier. Their weights and multiply-adds add up exactly to those of the network.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from registry import OPS
from registry.ops import FactorizedReduce, ReLUConvBN
from registry.space import CELL_TYPES, NUM_INPUTS, NUM_NODES, edge_list
from registry.trials import build_op
from ssfnas_cli.artifacts.genotype import Genotype
from ssfnas_cli.nets.count import count_macs, count_params
from ssfnas_cli.nets.skeleton import AnyCell, CellSpec, build_cells, pool
from ssfnas_cli.nets.stems import STEMS, StemName


class NetworkShape(NamedTuple):
    """What decides the size of a derived network beside its genotype."""

    channels: int
    layers: int
    stem: StemName
    num_classes: int
    image_size: int
    in_channels: int


PartKind = Literal["stem", "projection", "reduction", "op", "concatenation", "classifier"]


class Part(NamedTuple):
    """A part of a network, for an input [N, in_channels, side, side].

    `name` is that of the op or the stem; `options` are those of the op, as JSON. The `out_channels` of a stem are the
    width of the first cells.
    """

    kind: PartKind
    name: str
    options: str
    in_channels: int
    out_channels: int
    side: int
    stride: int

    def build(self) -> nn.Module:
        """Its module, with new weights."""
        if self.kind == "op":
            plugin = OPS.get(self.name)
            options = plugin.parse_options(json.loads(self.options))
            return build_op(plugin, self.in_channels, self.stride, True, options)
        if self.kind == "stem":
            return STEMS[self.name](self.in_channels, self.out_channels)  # type: ignore[index]
        if self.kind == "classifier":
            return _Classifier(self.in_channels, self.out_channels)
        if self.kind == "concatenation":
            return _Concatenation(self.out_channels // self.in_channels)
        return (FactorizedReduce if self.kind == "reduction" else ReLUConvBN)(
            self.in_channels, self.out_channels, affine=True
        )


class _Classifier(nn.Module):
    """Global average pooling and a linear layer."""

    def __init__(self, num_features: int, num_classes: int):
        super().__init__()
        self.linear = nn.Linear(num_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(pool(x))


class _Concatenation(nn.Module):
    """As many nodes as a cell concatenates, which are all the same map here."""

    def __init__(self, num_nodes: int):
        super().__init__()
        self.num_nodes = num_nodes

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x] * self.num_nodes, dim=1)


PartCost = Callable[[Part], float]


@functools.cache
def _counts(part: Part) -> tuple[int, int]:
    with torch.device("meta"):
        module = part.build()
    return count_params(module), count_macs(module, part.in_channels, part.side)


def part_params(part: Part) -> int:
    """The weights of a part."""
    return _counts(part)[0]


def part_macs(part: Part) -> int:
    """The multiply-adds of a part for one image."""
    return _counts(part)[1]


COUNTS: dict[str, PartCost] = {"params": part_params, "macs": part_macs}


class CellPlace(NamedTuple):
    """A cell's place in a network: its type and width, and the sides of its inputs before they are projected."""

    kind: str
    spec: CellSpec
    older_side: int
    side: int

    def op_part(self, source: int, name: str, options: str) -> Part:
        """An op on an edge that leaves `source`."""
        reduces = self.kind == "reduce"
        stride = 2 if reduces and source < NUM_INPUTS else 1
        side = -(-self.side // 2) if reduces and source >= NUM_INPUTS else self.side
        return Part("op", name, options, self.spec.channels, self.spec.channels, side, stride)

    def fixed_parts(self, width: int) -> tuple[Part, ...]:
        """What brings both inputs to the cell's width and side, and what concatenates `width` nodes."""
        spec = self.spec
        older = Part("projection", "", "{}", spec.prev_prev_channels, spec.channels, self.older_side, 1)
        if spec.reduction_prev:
            older = older._replace(kind="reduction", stride=2)
        newer = Part("projection", "", "{}", spec.prev_channels, spec.channels, self.side, 1)
        side = -(-self.side // 2) if spec.reduction else self.side
        return older, newer, Part("concatenation", "", "{}", spec.channels, width * spec.channels, side, 1)


class _Outline(AnyCell):
    """A cell of which nothing but its width is known."""

    def __init__(self, out_channels: int, reduction: bool):
        super().__init__()
        self.out_channels, self.reduction = out_channels, reduction


@functools.lru_cache(maxsize=64)
def _outline(shape: NetworkShape, widths: tuple[int, int]) -> tuple[tuple[CellPlace, ...], int, int]:
    """The cells of a network, and the width and side of what the last one gives.

    Args:
        widths: how many nodes a normal and a reduction cell concatenate.
    """
    with torch.device("meta"):
        stem = STEMS[shape.stem](shape.in_channels, shape.channels).eval()
        older, newer = (x.shape[2] for x in stem(torch.empty(1, shape.in_channels, *[shape.image_size] * 2)))
    specs: list[CellSpec] = []

    def outline(spec: CellSpec) -> AnyCell:
        specs.append(spec)
        return _Outline(widths[spec.reduction] * spec.channels, spec.reduction)

    cells = build_cells(stem, shape.layers, shape.channels, outline)
    places = []
    for spec in specs:
        places.append(CellPlace(CELL_TYPES[spec.reduction], spec, older, newer))
        older, newer = newer, -(-newer // 2) if spec.reduction else newer
    return tuple(places), cells[-1].out_channels, newer


def _fixed_parts(shape: NetworkShape, widths: tuple[int, int]) -> Iterator[Part]:
    places, num_features, side = _outline(shape, widths)
    yield Part("stem", shape.stem, "{}", shape.in_channels, shape.channels, shape.image_size, 1)
    for place in places:
        yield from place.fixed_parts(widths[place.spec.reduction])
    yield Part("classifier", "", "{}", num_features, shape.num_classes, side, 1)


def network_parts(genotype: Genotype, shape: NetworkShape) -> list[Part]:
    """All parts of a genotype's network, with a linear head and without an auxiliary one."""
    live = {kind: cell.pruned() for kind, cell in genotype.cells().items()}
    widths = len(live["normal"].concat), len(live["reduce"].concat)
    ops = [
        place.op_part(edge.source, edge.op, _options_of(edge.op, genotype.op_options))
        for place in _outline(shape, widths)[0]
        for edge in live[place.kind].edges
    ]
    return [*_fixed_parts(shape, widths), *ops]


class SpaceCosts(NamedTuple):
    """The costs of all networks of a space whose nodes all have an input.

    `ops` are float64 [num_edges, num_ops] by cell type, over all cells of that type; `fixed` is everything else.
    """

    ops: dict[str, NDArray[np.float64]]
    fixed: float


class Space(NamedTuple):
    """The derived networks that a search chooses from: their shape, and the candidate ops with their options."""

    shape: NetworkShape
    ops: Sequence[str]
    op_options: Mapping[str, Mapping[str, Any]]
    num_nodes: int = NUM_NODES

    def costs(self, cost_of: PartCost) -> SpaceCosts:
        """The costs of its networks, from those of the parts. `none` costs nothing."""
        widths = self.num_nodes, self.num_nodes
        edges = edge_list(self.num_nodes)
        ops = {kind: np.zeros((len(edges), len(self.ops))) for kind in CELL_TYPES}
        for place, row, column, part in self._op_parts(widths):
            ops[place.kind][row, column] += cost_of(part)
        return SpaceCosts(ops, float(sum(map(cost_of, _fixed_parts(self.shape, widths)))))

    def parts(self) -> list[Part]:
        """Every part that some network of the space has, once."""
        widths = self.num_nodes, self.num_nodes
        ops = (part for *_, part in self._op_parts(widths))
        return list(dict.fromkeys([*_fixed_parts(self.shape, widths), *ops]))

    def _op_parts(self, widths: tuple[int, int]) -> Iterator[tuple[CellPlace, int, int, Part]]:
        named = [
            (column, name, _options_of(name, self.op_options))
            for column, name in enumerate(self.ops)
            if not OPS.get(name).facts.is_none
        ]
        for place in _outline(self.shape, widths)[0]:
            for row, (source, _) in enumerate(edge_list(self.num_nodes)):
                for column, name, options in named:
                    yield place, row, column, place.op_part(source, name, options)


def _options_of(op: str, given: Mapping[str, Mapping[str, Any]]) -> str:
    """All options of an op, of which some are given, as JSON."""
    options = OPS.get(op).parse_options(given.get(op)).model_dump(by_alias=True, mode="json")
    return json.dumps(options, sort_keys=True)
