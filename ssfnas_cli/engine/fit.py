"""Fits a derived genotype into limits of weights and multiply-adds, with the least loss of mixing weight.

Every edge of the genotype may keep its ops, get others of the candidates in their place, or lose them; each node keeps
an input, so the network keeps its nodes. Of all genotypes that fit, the one is chosen whose ops have lost the least
mixing weight in total. Node by node and edge by edge only those beginnings are kept that no other beats in loss and
size (as for a knapsack whose items come in groups), so the result is exact.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from registry.space import EDGE_WEIGHTS, edge_list
from ssfnas_cli.artifacts.dataset import DataSet
from ssfnas_cli.artifacts.genotype import Cell, Edge, Genotype
from ssfnas_cli.artifacts.run import COST, RunFolder
from ssfnas_cli.console import log
from ssfnas_cli.engine.rules import Rule
from ssfnas_cli.errors import InputError
from ssfnas_cli.nets.parts import COUNTS, NetworkShape, Space, SpaceCosts, network_parts
from ssfnas_cli.settings import SearchSettings, show_amount

OpCosts = Mapping[str, np.ndarray]  # what ops cost, [num_edges, num_ops] by cell type


class Limits(NamedTuple):
    """The most that a derived network may have of each of COUNTS, and the size of the network that is meant."""

    most: dict[str, float]
    channels: int
    layers: int

    def of(self, run: RunFolder, settings: SearchSettings) -> FittingSpace:
        """The networks that are meant, of a search on its data set."""
        shape = NetworkShape(self.channels, self.layers, run.stem, **_images_of(run))  # type: ignore[arg-type]
        return FittingSpace(self, Space(shape, settings.ops, settings.op_options))


class FittingSpace(NamedTuple):
    """Limits, and the networks that they are meant of."""

    limits: Limits
    space: Space

    @property
    def names(self) -> list[str]:
        """What is limited."""
        return list(self.limits.most)

    def costs(self) -> dict[str, SpaceCosts]:
        """The costs of the space, by measure."""
        return {name: self.space.costs(COUNTS[name]) for name in self.names}

    def size_of(self, genotype: Genotype) -> tuple[float, ...]:
        """What a network has of each measure."""
        parts = network_parts(genotype, self.space.shape)
        return tuple(float(sum(map(COUNTS[name], parts))) for name in self.names)

    def fits(self, size: Sequence[float]) -> bool:
        """Whether a size is within the limits."""
        return all(value <= most for value, most in zip(size, self.limits.most.values(), strict=True))

    def provenance(self) -> dict[str, Any]:
        """What a genotype records of the limits."""
        return {f"max_{name}": most for name, most in self.limits.most.items()} | self.space.shape._asdict()

    def flags(self) -> str:
        """The limits, as flags."""
        return " ".join(f"--max-{name} {most:.15g}" for name, most in self.limits.most.items())

    def in_words(self, size: Sequence[float]) -> str:
        """A size in words."""
        return " and ".join(show_amount(value, name) for value, name in zip(size, self.names, strict=True))

    def where(self) -> str:
        """Of which network, in words."""
        return f"with {self.limits.channels} channels and {self.limits.layers} cells (--cost-channels, --cost-layers)"


def _images_of(run: RunFolder) -> dict[str, int]:
    """What a network is told of its images: those of the run's data set."""
    try:
        return DataSet.open(run.config["data"]["path"], splits=()).network_facts
    except InputError as error:
        found = {"num_classes": 10, "image_size": 32, "in_channels": 3}
        found |= {name: value for name, value in run.config.get(COST, {}).items() if name in found}
        log.warning("%s: counting with %s", error, ", ".join(f"{name} {value}" for name, value in found.items()))
        return found


class Option(NamedTuple):
    """The ops of an edge, and what choosing them loses and costs."""

    loss: float
    size: tuple[float, ...]
    place: tuple[str, int]  # cell type and edge
    ops: tuple[str, ...]


class Beginning(NamedTuple):
    """Chosen options of some edges: their total loss and size, and the last of them."""

    loss: float
    size: tuple[float, ...]
    before: Beginning | None = None
    last: Option | None = None

    def with_option(self, option: Option) -> Beginning:
        """The same, and an option of one more edge."""
        size = tuple(a + b for a, b in zip(self.size, option.size, strict=True))
        return Beginning(self.loss + option.loss, size, self, option)

    def options(self) -> Iterator[Option]:
        """Every chosen option."""
        if self.last is not None and self.before is not None:
            yield self.last
            yield from self.before.options()


def fit(genotype: Genotype, weights: Mapping[str, np.ndarray], rule: Rule, space: FittingSpace) -> Genotype:
    """The genotype itself if it fits, or what loses the least mixing weight so that it does. A warning says what.

    Args:
        genotype: as the rule derived it.
        weights: the mixing weights [num_edges, num_ops] that it was derived from; those of edges multiply them.

    Raises:
        InputError: no network on these edges is small enough. The message names the smallest.
    """
    size = space.size_of(genotype)
    if space.fits(size):
        return genotype
    costs = [one.ops for one in space.costs().values()]
    nodes = _options(genotype, weights, rule, space.space.ops, costs)
    taken = [_size_of_ops(genotype, kind, space.space.ops, costs) for kind in genotype.cells()]
    fixed = tuple(total - sum(parts) for total, parts in zip(size, zip(*taken, strict=True), strict=True))
    best = _least_loss(nodes, [m - f for m, f in zip(space.limits.most.values(), fixed, strict=True)])
    if best is None:
        smallest = [f + sum(least) for f, least in zip(fixed, zip(*map(_smallest, nodes), strict=True), strict=True)]
        raise InputError(
            f"{space.flags()}: no network on the edges of this genotype is so small: the least is "
            f"{space.in_words(smallest)} {space.where()}"
        )
    chosen = {option.place: option.ops for option in best.options()}
    fitted = _replace(genotype, chosen)
    log.warning(
        "%s: %s became %s %s: %s",
        *(space.flags(), space.in_words(size), space.in_words(space.size_of(fitted)), space.where()),
        "; ".join(_changes(genotype, chosen)),
    )
    return fitted


def _size_of_ops(genotype: Genotype, kind: str, ops: Sequence[str], costs: Sequence[OpCosts]) -> tuple[float, ...]:
    """What the live ops of a cell type have in all its cells."""
    rows = {edge: row for row, edge in enumerate(edge_list())}
    places = [(rows[edge.source, edge.target], ops.index(edge.op)) for edge in _live(genotype, kind)]
    return tuple(sum(one[kind][place] for place in places) for one in costs)


def _live(genotype: Genotype, kind: str) -> list[Edge]:
    return genotype.cells()[kind].pruned().edges


def _kept_ops(genotype: Genotype, kind: str) -> dict[tuple[int, int], list[str]]:
    """The ops of each live edge (from, to), ordered by node."""
    kept: dict[tuple[int, int], list[str]] = {}
    for edge in sorted(_live(genotype, kind), key=lambda edge: (edge.target, edge.source)):
        kept.setdefault((edge.source, edge.target), []).append(edge.op)
    return kept


def _options(
    genotype: Genotype, weights: Mapping[str, np.ndarray], rule: Rule, ops: Sequence[str], costs: Sequence[OpCosts]
) -> list[list[list[Option]]]:
    """For each node of both cells, for each of its edges, the options that no other beats in loss and size."""
    edges = edge_list()
    candidates, ones = [column for column, op in enumerate(ops) if op != "none"], np.ones(len(edges))
    nodes = []
    for kind in genotype.cells():
        by_node: dict[int, list[list[Option]]] = {}
        for edge, kept in _kept_ops(genotype, kind).items():
            row = edges.index(edge)
            values = weights[kind][row] * weights.get(EDGE_WEIGHTS[kind], ones)[row]
            live = [column for column in candidates if values[column] != 0]  # what a progressive search dropped has 0
            held = sum(values[ops.index(op)] for op in kept)
            nothing = values[ops.index("none")] if rule.none_competes and "none" in ops else 0.0
            options = []
            for number in range(len(kept), -1, -1):
                for columns in itertools.combinations(live, number):
                    gained = sum(values[list(columns)]) if columns else nothing
                    size = tuple(float(sum(one[kind][row, list(columns)])) for one in costs)
                    named = tuple(ops[column] for column in sorted(columns, key=lambda k: -values[k]))
                    options.append(Option(float(held - gained), size, (kind, row), named))
            by_node.setdefault(edge[1], []).append(_unbeaten(options))
        nodes += list(by_node.values())
    return nodes


def _unbeaten(items: Sequence[Any]) -> list[Any]:
    """Those items that none of at most the same loss beats in size, by loss; of equal ones the first.

    At most two sizes are compared.
    """
    firsts: list[float] = []  # ascending
    seconds: list[float] = []  # of the same items, descending
    kept = []
    for item in sorted(items, key=lambda item: (item.loss, item.size)):
        first, second = item.size[0], item.size[-1]
        place = bisect_right(firsts, first)
        if place and seconds[place - 1] <= second:
            continue
        end = place
        while end < len(seconds) and seconds[end] >= second:
            end += 1
        firsts[place:end], seconds[place:end] = [first], [second]
        kept.append(item)
    return kept


def _smallest(node: Sequence[Sequence[Option]]) -> tuple[float, ...]:
    """The least that a node can have of each measure: one op on one of its edges."""
    sizes = [option.size for options in node for option in options if option.ops]
    return tuple(min(values) for values in zip(*sizes, strict=True))


def _least_loss(nodes: Sequence[Sequence[Sequence[Option]]], budget: Sequence[float]) -> Beginning | None:
    """The options of all edges with the least total loss within the budget; None if there are none."""
    rest = [sum(least) for least in zip(*map(_smallest, nodes), strict=True)]
    beginnings = [Beginning(0.0, tuple(0.0 for _ in budget))]
    for node in nodes:
        rest = [left - least for left, least in zip(rest, _smallest(node), strict=True)]
        room = [most - left for most, left in zip(budget, rest, strict=True)]
        unfed: list[Beginning] = beginnings  # those in which the node has no op yet
        fed: list[Beginning] = []
        for options in node:
            unfed, fed = (
                [one.with_option(option) for one in unfed for option in options if not option.ops],
                [
                    one.with_option(option)
                    for some, needs_op in ((fed, False), (unfed, True))
                    for one in some
                    for option in options
                    if option.ops or not needs_op
                ],
            )
            unfed, fed = (
                _unbeaten([one for one in some if all(a <= b for a, b in zip(one.size, room, strict=True))])
                for some in (unfed, fed)
            )
        beginnings = fed
    return beginnings[0] if beginnings else None


def _replace(genotype: Genotype, chosen: Mapping[tuple[str, int], tuple[str, ...]]) -> Genotype:
    """The genotype with other ops on its live edges."""
    cells = {}
    for kind, cell in genotype.cells().items():
        dead = cell.pruned().dead_edges
        edges = [
            Edge(op=op, source=edge_list()[row][0], target=edge_list()[row][1])
            for (of, row), ops in sorted(chosen.items(), key=lambda pair: pair[0][1])
            if of == kind
            for op in ops
        ]
        cells[kind] = Cell(edges=(*edges, *dead), concat=cell.concat)
    return genotype.model_copy(update=cells)


def _changes(genotype: Genotype, chosen: Mapping[tuple[str, int], tuple[str, ...]]) -> Iterator[str]:
    """What changed, in words."""
    for kind in genotype.cells():
        for edge, kept in _kept_ops(genotype, kind).items():
            ops = chosen[kind, edge_list().index(edge)]
            if set(ops) != set(kept):
                before, after = " and ".join(kept), " and ".join(ops) or "nothing"
                yield f"{kind} {edge[0]}->{edge[1]} {before} -> {after}"
