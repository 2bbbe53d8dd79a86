"""Partial channels: the ops of a cell see 1 / K of the channels of a node, and the others pass by them.

Xu et al., PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture Search, ICLR 2020, section 3.2. An op
then takes about 1 / K of the memory and time. The channels that pass by an edge of stride 2 are halved by a max pool.
What an edge gives to a node is one after the other, shuffled, so that the next ops see other channels:

    edge(x) = edge weight * shuffle(concatenate(sum over ops of weight * op(first C / K channels of x), other channels))

All of it but the ops is linear, and the same for every edge from a node. So a node sums what comes through the ops and
what passes by them, and is then concatenated and shuffled once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def split(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """A map [N, C, H, W] as the channels that the ops see, the first C / K, and those that pass by them."""
    width = x.shape[1] // k
    seen, passing = x.split([width, x.shape[1] - width], dim=1)
    return seen, passing


def halve(passing: Tensor) -> Tensor:
    """Channels that pass by an edge of stride 2: [N, C, H, W] -> [N, C, H/2, W/2], rounded up as the ops round."""
    return F.max_pool2d(passing, 2, ceil_mode=True)


def join(seen: Tensor, passed: Tensor) -> Tensor:
    """A node's map [N, C, H, W] from the sums of the ops [N, C / K, H, W] and of what passed by them.

    They are concatenated and shuffled in K groups: of C / K groups of K channels, the first channel of each comes from
    the ops (channel_shuffle in model_search.py of yuhuixu1993/PC-DARTS).
    """
    width = seen.shape[1]
    groups = [part.permute(0, 2, 3, 1).unflatten(-1, (-1, width)).transpose(-1, -2) for part in (seen, passed)]
    return torch.cat(groups, dim=-1).flatten(-2).permute(0, 3, 1, 2)
