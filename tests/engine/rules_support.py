"""Mixing weights that are written down op by op, for derivation rules."""

import re

import numpy as np

from registry.space import edge_list

OPS = ("none", "skip", "conv", "pool")  # what the ops do does not matter here...
NAMES = dict(zip(OPS, ("none", "skip_connect", "sep_conv_3x3", "max_pool_3x3"), strict=True))
REAL = tuple(NAMES.values())  # ...but a genotype wants known names
EDGES = edge_list()


def matrix(default=0.0, **entries):
    """Weights [14, 4] with `e0_2_conv=0.9` (from 0 to 2) over a default."""
    weights = np.full((14, 4), default)
    for key, value in entries.items():
        source, target, op = re.fullmatch(r"e(\d)_(\d)_(\w+)", key).groups()
        weights[EDGES.index((int(source), int(target))), OPS.index(op)] = value
    return weights
