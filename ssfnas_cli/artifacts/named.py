"""Genotypes that are known by a name: the published ones, and random ones by their seed.

A published one is a file of this package, with where it was read. `random-SEED` is drawn uniformly from the search
space of DARTS: two different inputs for each of the four nodes, and any of the paper's ops but `none` on each.
"""

from __future__ import annotations

import re
from importlib import resources
from typing import TYPE_CHECKING

from registry.space import NUM_INPUTS, NUM_NODES, random_cell
from ssfnas_cli.artifacts.genotype import Cell, Edge, Genotype, Provenance, parse_genotype
from ssfnas_cli.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

RANDOM = re.compile(r"random-(.*)")
RANDOM_OPS = (
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
MAX_SEED = 2**63


def published_names() -> list[str]:
    """The names of the published genotypes."""
    return sorted(name.removesuffix(".json") for name in _files() if name.endswith(".json"))


def named_genotype(name: str) -> Genotype | None:
    """The genotype of that name, or None: there is no such name.

    Raises:
        UsageError: `random-` without a seed.
    """
    if random := RANDOM.fullmatch(name):
        seed = random[1]
        if not seed.isascii() or not seed.isdigit() or len(seed) > 19 or int(seed) >= MAX_SEED:
            raise UsageError(f"{name}: a random genotype is named by its seed, a number such as random-3")
        return random_genotype(int(seed))
    if name not in published_names():
        return None
    file = resources.files("ssfnas_cli") / "genotypes" / f"{name}.json"
    return parse_genotype(file.read_bytes(), name)


def random_genotype(seed: int) -> Genotype:
    """A genotype drawn from a seed."""
    import numpy as np

    numbers = np.random.Generator(np.random.Philox(key=[seed, 5]))
    cells = {kind: _random_cell(numbers) for kind in ("normal", "reduce")}
    return Genotype(name=f"random-{seed}", provenance=Provenance(rule="random", seed=seed), **cells)


def _random_cell(numbers: np.random.Generator) -> Cell:
    edges = [
        Edge(op=RANDOM_OPS[op], source=source, target=target)
        for source, target, op in random_cell(numbers, len(RANDOM_OPS))
    ]
    return Cell(edges=tuple(edges), concat=tuple(range(NUM_INPUTS, NUM_INPUTS + NUM_NODES)))


def _files() -> list[str]:
    return [entry.name for entry in (resources.files("ssfnas_cli") / "genotypes").iterdir()]
