"""The weights of a supernet as the initialisation of a network that was derived from it: `retrain --init-from RUN`.

A cell of the network begins with the weights of the supernet's cell at the same place: as far behind the last reduction
as that one, after as many reductions. Its stem, its projections and the op of each edge take what has the same shape.
What the supernet does not have keeps its own initial values: the scales and shifts of batch normalisations (those of
the supernet's cells have none), the head and the auxiliary head. Running averages are not taken, either, because those
of a supernet are of all ops together.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from registry import OPS
from registry.space import edge_list
from registry.state import under
from ssfnas_cli.artifacts.tensors import sha256_of
from ssfnas_cli.engine.finished_search import FinishedSearch, Start
from ssfnas_cli.errors import UsageError, naming
from ssfnas_cli.nets.derived import DerivedCell, DerivedEncoder
from ssfnas_cli.nets.skeleton import reduction_layers


class Inherited(NamedTuple):
    """How much of an encoder was taken from a supernet: tensors and weights, each of how many."""

    tensors: int
    of_tensors: int
    weights: int
    of_weights: int

    def __str__(self) -> str:
        return (
            f"{self.tensors} of the encoder's {self.of_tensors} tensors, with {self.weights:,} of its "
            f"{self.of_weights:,} weights"
        )


def find_supernet(init_from: str) -> Start | None:
    """The supernet that a setting `init_from` names; None if it is empty.

    Raises:
        InputError: it names no finished search.
    """
    if not init_from:
        return None
    with naming("--init-from"):
        source = FinishedSearch.open(Path(init_from))
    return Start(source, sha256_of(under("encoder", source.supernet)))


@torch.no_grad()
def inherit(encoder: DerivedEncoder, start: Start) -> Inherited:
    """Copy into an encoder the weights of the supernet that have their place and shape in it.

    Raises:
        UsageError: none has. The message says how the widths differ.
    """
    supernet, settings = under("encoder", start.source.supernet), start.source.settings
    named = dict(encoder.named_parameters())
    pairs = [(name, supernet.get(origin)) for name, origin in _origins(encoder, settings.ops, start.source.layers)]
    fitting = {name: given for name, given in pairs if given is not None and given.shape == named[name].shape}
    if not fitting:
        raise UsageError(
            f"--init-from {start.source.run.path}: none of its weights has a place in this network: the supernet is of "
            f"{settings.channels} channels and has the stem '{start.source.run.stem}': give --channels "
            f"{settings.channels} --stem {start.source.run.stem}"
        )
    for name, given in fitting.items():
        named[name].copy_(given)
    count = lambda tensors: sum(tensor.numel() for tensor in tensors)
    return Inherited(len(fitting), len(named), count(fitting.values()), count(named.values()))


def _origins(encoder: DerivedEncoder, ops: tuple[str, ...], layers: int) -> Iterator[tuple[str, str]]:
    """The name of each weight of an encoder that a supernet may have, and its name there.

    Args:
        ops: of the supernet.
        layers: of the supernet.
    """
    yield from ((f"stem.{name}", f"stem.{name}") for name, _ in encoder.stem.named_parameters())
    theirs = {place: layer for layer, place in enumerate(_places(layers))}
    rows = {edge: row for row, edge in enumerate(edge_list())}
    for layer, place in enumerate(_places(len(encoder.cells))):
        cell = encoder.cells[layer]
        assert isinstance(cell, DerivedCell)
        if place not in theirs:
            continue
        here, there = f"cells.{layer}", f"cells.{theirs[place]}"
        yield from ((f"{here}.inputs.{name}", f"{there}.inputs.{name}") for name, _ in cell.inputs.named_parameters())
        for number, (edge, op) in enumerate(zip(cell.edges, cell.ops, strict=True)):
            row = rows.get((edge.source, edge.target))
            if row is None or edge.op not in ops:
                continue
            origin = f"{there}.of_edge.{row}.{ops.index(edge.op)}"
            if OPS.get(edge.op).facts.supernet_bn:  # there it stands before a BN of the supernet's
                origin += ".0"
            yield from ((f"{here}.ops.{number}.{name}", f"{origin}.{name}") for name, _ in op.named_parameters())


def _places(layers: int) -> list[tuple[int, int]]:
    """Where each of so many cells stands: how many reductions came up to it, and how far behind the last one it is."""
    places: list[tuple[int, int]] = []
    for layer in range(layers):
        reductions, behind = places[-1] if places else (0, -1)
        places.append((reductions + 1, 0) if layer in reduction_layers(layers) else (reductions, behind + 1))
    return places
