"""The supernet of PC-DARTS written directly from the paper and its code: every edge by itself, as in direct.py.

Each edge splits its input, lets the rest pass by, concatenates, shuffles and multiplies by its own weight, though most
of that is the same for all edges of a node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.oracle.direct import EDGES, NUM_NODES, MixedEdge
from tests.oracle.parts import Cell, candidate, make_stem, run_stem, stack


class PartialEdge(MixedEdge):
    """[N, C, H, W] -> [N, C, H/s, W/s]: C / K channels through the ops, the others past them."""

    def __init__(self, k: int, stride: int, ops: Sequence[nn.Module]):
        super().__init__(ops)
        self.k, self.stride = k, stride

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        seen = x.shape[1] // self.k
        rest = x[:, seen:]
        if self.k == 1:
            return super().forward(x, weights)
        if self.stride == 2:
            rest = F.max_pool2d(F.pad(rest, (0, rest.shape[3] % 2, 0, rest.shape[2] % 2), value=-torch.inf), 2)
        both = torch.cat([super().forward(x[:, :seen], weights), rest], dim=1)
        return F.channel_shuffle(both, self.k)


class SearchCell(Cell):
    """As direct.SearchCell; an edge is multiplied by its weight."""

    def __init__(self, older: int, newer: int, channels: int, reduction: bool, after: bool, ops: Sequence[str], k: int):
        super().__init__(older, newer, channels, reduction, after, affine=False)
        self.width = NUM_NODES * channels
        self.edges = nn.ModuleList()
        for source, _ in EDGES:
            stride = 2 if reduction and source < 2 else 1
            self.edges.append(PartialEdge(k, stride, [candidate(name, channels // k, stride) for name in ops]))

    def forward(self, older: Tensor, newer: Tensor, weights: Tensor, edge_weights: Tensor) -> Tensor:
        nodes = [self.preprocess0(older), self.preprocess1(newer)]
        for node in range(2, 2 + NUM_NODES):
            rows = [row for row, (_, target) in enumerate(EDGES) if target == node]
            nodes.append(sum(edge_weights[row] * self.edges[row](nodes[EDGES[row][0]], weights[row]) for row in rows))
        return torch.cat(nodes[2:], dim=1)


class Supernet(nn.Module):
    """Images [N, C, H, W], mixing weights and the weights of edges -> pooled features [N, num_features]."""

    def __init__(self, in_channels: int, channels: int, layers: int, ops: Sequence[str], k: int):
        super().__init__()
        self.stem = make_stem(False, in_channels, channels)
        self.cells = stack(channels, layers, lambda *place: SearchCell(*place, ops, k))
        self.num_features: int = self.cells[-1].width

    def forward(self, images: Tensor, mixing: Mapping[str, Tensor]) -> Tensor:
        older, newer = run_stem(self.stem, images)
        for cell in self.cells:
            kind = "reduce" if cell.reduction else "normal"
            older, newer = newer, cell(older, newer, mixing[kind], mixing[f"{kind}_edges"])
        return newer.mean((2, 3))
