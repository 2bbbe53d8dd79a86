"""Weights of whole edges, which are learned beside the alphas.

Every edge has a number, and its weight is the softmax of the numbers of all edges into its node: the inputs of a node
compete, as the ops of an edge do (Xu et al., PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture
Search, ICLR 2020, section 3.3: edge normalisation; its code calls the numbers betas). They are meant for partial
channels, where alphas are learned on a part of each map, but go without them as well.
"""

from __future__ import annotations

import torch
from torch import Tensor

from registry.gpu import columns
from registry.space import CELL_TYPES, EDGE_WEIGHTS, count_nodes, edge_list, edges_into_nodes

INIT_STD = 1e-3  # as of the alphas (yuhuixu1993/PC-DARTS, model_search.py)


def initial_edges(generator: torch.Generator) -> dict[str, Tensor]:
    """The numbers of all edges [num_edges] at the start of a search, by the name of the weights."""
    return {EDGE_WEIGHTS[kind]: INIT_STD * torch.randn(len(edge_list()), generator=generator) for kind in CELL_TYPES}


def weights_of_edges(numbers: Tensor) -> Tensor:
    """The weights of edges [..., num_edges] from their numbers: a softmax over the edges into each node."""
    nodes = edges_into_nodes(count_nodes(numbers.shape[-1]))
    return torch.cat([torch.softmax(columns(numbers, rows), dim=-1) for rows in nodes], dim=-1)
