"""The networks of DARTS and FairDARTS written directly from the papers: what the fast ones are judged by.

Every edge stands alone and every op computes for itself, `none` and each op's own ReLU included; convolutions, batch
normalisations and pools are torch's own in the default memory layout, and mixing weights are multiplied in and
summed by Python's `sum`. Slow and plain on purpose; float32 or float64.

The oracle takes the product's weights: `load_product(module, state)` for a whole model, an encoder, a cell or an op,
`product_gradients(module)` for the way back. `direct_gradients` does both for a supernet.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.oracle.parts import OPS, Cell, OpBuilder, candidate, make_stem, run_stem, stack

NUM_NODES = 4
EDGES = [(source, target) for target in range(2, 2 + NUM_NODES) for source in range(target)]
Mixing = Mapping[str, Tensor]  # {"normal", "reduce"} -> [num_edges, num_ops]
Plan = tuple[Sequence[tuple[str, int, int]], Sequence[int]]  # a derived cell: edges (op, from, to), nodes of the output


# The supernet (DARTS, Eq. 2; with sigmoids for mixing weights FairDARTS, Eq. 5)


class MixedEdge(nn.ModuleList):
    """Every candidate op of one edge: sum_o w_o o(x), [N, C, H, W] -> [N, C, H/s, W/s]."""

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(weight * op(x) for weight, op in zip(weights, self, strict=True))  # type: ignore[return-value]


class SearchCell(Cell):
    """Nodes 2 to 5 are sums over their incoming edges; the output [N, 4C, H, W] concatenates them."""

    def __init__(
        self,
        older: int,
        newer: int,
        channels: int,
        reduction: bool,
        after_reduction: bool,
        ops: Sequence[str],
        more_ops: Mapping[str, OpBuilder] | None = None,
    ):
        super().__init__(older, newer, channels, reduction, after_reduction, affine=False)
        self.width = NUM_NODES * channels
        self.edges = nn.ModuleList()
        for source, _ in EDGES:
            stride = 2 if reduction and source < 2 else 1
            self.edges.append(MixedEdge([candidate(name, channels, stride, more_ops) for name in ops]))

    def forward(self, older: Tensor, newer: Tensor, weights: Tensor) -> Tensor:
        nodes = [self.preprocess0(older), self.preprocess1(newer)]
        for node in range(2, 2 + NUM_NODES):
            rows = [row for row, (_, target) in enumerate(EDGES) if target == node]
            nodes.append(sum(self.edges[row](nodes[EDGES[row][0]], weights[row]) for row in rows))
        return torch.cat(nodes[2:], dim=1)


class Supernet(nn.Module):
    """Images [N, C, H, W] and mixing weights -> pooled features [N, num_features]."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        layers: int,
        ops: Sequence[str],
        more_ops: Mapping[str, OpBuilder] | None = None,
        large: bool = False,
    ):
        super().__init__()
        self.stem = make_stem(large, in_channels, channels)
        self.cells = stack(channels, layers, lambda *place: SearchCell(*place, ops, more_ops), large)
        self.num_features: int = self.cells[-1].width

    def forward(self, images: Tensor, mixing: Mixing) -> Tensor:
        older, newer = run_stem(self.stem, images)
        for cell in self.cells:
            older, newer = newer, cell(older, newer, mixing["reduce" if cell.reduction else "normal"])
        return newer.mean((2, 3))


# Heads and losses


def projector(num_features: int, width: int) -> nn.Module:
    """Barlow Twins, section 2.2: linear, BN, ReLU, twice; linear. No biases."""
    layers: list[nn.Module] = []
    for inputs in (num_features, width):
        layers += [nn.Linear(inputs, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, width, bias=False))


def barlow_loss(first: Tensor, second: Tensor, off_diagonal: float = 0.0051) -> Tensor:
    """Barlow Twins, Eq. 1 and 2: projections [N, D] of two views, each dimension standardised over the batch."""
    one, other = [(z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt() for z in (first, second)]
    correlation = one.T @ other / len(one)
    identity = torch.eye(len(correlation), dtype=correlation.dtype)
    factors = identity + off_diagonal * (1 - identity)
    return (factors * (correlation - identity) ** 2).sum()


class SearchModel(nn.Module):
    """A supernet and the head of its loss: a linear classifier for `ce`, a projector for `barlow`."""

    def __init__(self, encoder: Supernet, head: nn.Module):
        super().__init__()
        self.encoder, self.head = encoder, head

    def loss(self, views: Sequence[Tensor], labels: Tensor | None, mixing: Mixing) -> Tensor:
        """Cross-entropy of one view, Barlow's loss of two, which pass one after the other."""
        outputs = [self.head(self.encoder(view, mixing)) for view in views]
        if len(views) == 2:
            return barlow_loss(*outputs)
        assert labels is not None, "cross-entropy needs labels"
        return F.cross_entropy(outputs[0], labels)


def search_model(
    state: Mapping[str, Tensor],
    ops: Sequence[str],
    dtype: torch.dtype | None = None,
    more_ops: Mapping[str, OpBuilder] | None = None,
) -> SearchModel:
    """The oracle of a product's search model, from its state dict alone; a probe is left out.

    Args:
        ops: in the order of the alphas' columns.
        dtype: of the computation; by default that of the weights.
    """
    stem_weight = state["encoder.stem.0.weight"]
    layers = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.cells."))
    encoder = Supernet(stem_weight.shape[1], stem_weight.shape[0] // 3, layers, ops, more_ops)
    if "head.weight" in state:
        head: nn.Module = nn.Linear(encoder.num_features, len(state["head.weight"]))
    else:
        head = projector(encoder.num_features, len(state["head.0.weight"]))
    model = SearchModel(encoder, head).to(dtype or stem_weight.dtype)
    load_product(model, {name: value for name, value in state.items() if name.startswith(("encoder.", "head."))})
    return model


# The derived network (DARTS, section 2.4 and appendix; FairDARTS's sparse cells)


def drop_path(x: Tensor, rate: float) -> Tensor:
    """Zero whole samples of [N, C, H, W] with probability `rate`, scale the others up."""
    kept = torch.empty(len(x), 1, 1, 1, dtype=x.dtype).bernoulli_(1 - rate)
    return x / (1 - rate) * kept


class DerivedCell(Cell):
    """A cell of fixed ops: `edges` are (op, from, to), `concat` the nodes of the output.

    A node exists if an edge from an existing node leads to it; what leaves a node that does not exist is not there.
    `drop` says what drop path falls on: `op` (identities exempt) or `node`.
    """

    def __init__(
        self,
        older: int,
        newer: int,
        channels: int,
        reduction: bool,
        after_reduction: bool,
        edges: Sequence[tuple[str, int, int]],
        concat: Sequence[int],
        drop: str,
    ):
        super().__init__(older, newer, channels, reduction, after_reduction, affine=True)
        self.plan, exists = [], {0, 1}  # edges in the order of their target, then of their source
        for op, source, target in sorted(edges, key=lambda edge: (edge[2], edge[1])):
            if op != "none" and source in exists:
                exists.add(target)
                self.plan.append((op, source, target))
        strides = [2 if reduction and source < 2 else 1 for _, source, _ in self.plan]
        self.ops = nn.ModuleList(
            OPS[op](channels, stride, True) for (op, _, _), stride in zip(self.plan, strides, strict=True)
        )
        self.exempt = [
            op == "skip_connect" and stride == 1 for (op, _, _), stride in zip(self.plan, strides, strict=True)
        ]
        self.concat = [node for node in concat if node in exists]
        self.width, self.drop = channels * len(self.concat), drop

    def forward(self, older: Tensor, newer: Tensor, rate: float) -> Tensor:
        nodes = {0: self.preprocess0(older), 1: self.preprocess1(newer)}
        for node in sorted({target for _, _, target in self.plan}):
            results = []
            for (_, source, target), op, exempt in zip(self.plan, self.ops, self.exempt, strict=True):
                if target == node:
                    result = op(nodes[source])
                    results.append(drop_path(result, rate) if rate and self.drop == "op" and not exempt else result)
            total = sum(results)
            nodes[node] = drop_path(total, rate) if rate and self.drop == "node" else total
        return torch.cat([nodes[node] for node in self.concat], dim=1)


class AuxiliaryHead(nn.Module):
    """On the maps [N, C, 8, 8] at two thirds of the depth: [N, num_classes]. Other sizes are pooled to the same 2x2.

    `large`: as DARTS has it for ImageNet, on maps of 7x7.
    """

    def __init__(self, channels: int, num_classes: int, large: bool = False):
        super().__init__()
        self.side, self.stride = (7, 2) if large else (8, 3)
        last = [nn.Conv2d(128, 768, 2, bias=False), nn.BatchNorm2d(768), nn.ReLU()]
        self.features = nn.Sequential(
            *(nn.Conv2d(channels, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU()),
            *(part for part in last if not large or not isinstance(part, nn.BatchNorm2d)),
        )
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, maps: Tensor) -> Tensor:
        maps = F.relu(maps)
        if maps.shape[2:] == (self.side, self.side):
            maps = F.avg_pool2d(maps, 5, self.stride, count_include_pad=False)
        else:
            maps = F.adaptive_avg_pool2d(maps, 2)
        return self.classifier(self.features(maps).flatten(1))


class DerivedEncoder(nn.Module):
    """Images [N, C, H, W] -> pooled features, and the maps that the auxiliary head reads.

    Args:
        genotype: {"normal", "reduce"} -> (edges, concat), see `DerivedCell`.
        drop: `op` for DARTS, `node` for FairDARTS.
        large: with the stem for large images.
    """

    def __init__(
        self,
        genotype: Mapping[str, Plan],
        drop: str,
        in_channels: int,
        channels: int,
        layers: int,
        large: bool = False,
    ):
        super().__init__()
        self.stem, self.drop_path = make_stem(large, in_channels, channels), 0.0
        make = lambda *place: DerivedCell(*place, *genotype["reduce" if place[3] else "normal"], drop)
        self.cells = stack(channels, layers, make, large)
        self.aux_layer = 2 * layers // 3

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        outputs = run_stem(self.stem, images)
        for cell in self.cells:
            outputs = [*outputs, cell(*outputs[-2:], self.drop_path if self.training else 0.0)]
        return outputs[-1].mean((2, 3)), outputs[2 + self.aux_layer]


class Classifier(nn.Module):
    """A derived network with its classifier and, if trained with one, the auxiliary head."""

    def __init__(
        self,
        genotype: Mapping[str, Plan],
        drop: str,
        in_channels: int,
        channels: int,
        layers: int,
        num_classes: int,
        aux: bool = True,
        large: bool = False,
    ):
        super().__init__()
        self.encoder = DerivedEncoder(genotype, drop, in_channels, channels, layers, large)
        cells = self.encoder.cells
        self.head = nn.Linear(cells[-1].width, num_classes)
        self.aux = AuxiliaryHead(cells[self.encoder.aux_layer].width, num_classes, large) if aux else None

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(images)[0])

    def loss(self, images: Tensor, labels: Tensor, aux_weight: float = 0.4) -> Tensor:
        """Cross-entropy, plus the auxiliary head's share of it."""
        features, maps = self.encoder(images)
        loss = F.cross_entropy(self.head(features), labels)
        return loss if self.aux is None else loss + aux_weight * F.cross_entropy(self.aux(maps), labels)


class Pretraining(nn.Module):
    """A derived network with a projector, as a pretraining with Barlow Twins has it."""

    def __init__(self, encoder: DerivedEncoder, width: int):
        super().__init__()
        self.encoder, self.head = encoder, projector(encoder.cells[-1].width, width)

    def loss(self, views: Sequence[Tensor]) -> Tensor:
        """Barlow's loss of two views [N, C, H, W], which pass one after the other."""
        first, second = (self.head(self.encoder(view)[0]) for view in views)
        return barlow_loss(first, second)


# The product's weights. Its parameter-free ops live with their source node, here every edge has its own.


LARGE_STEM = {  # the product's three convolutions and norms are the oracle's two parts
    f"stem.{kind}.{number}.": f"stem.{place}."
    for kind, places in (
        ("convolutions", ("stem0.0", "stem0.3", "stem1.1")),
        ("norms", ("stem0.1", "stem0.4", "stem1.2")),
    )
    for number, place in enumerate(places)
}


def oracle_names(name: str) -> list[str]:
    """Where the oracle keeps what the product calls `name`: several places for what the edges from a node share."""
    name = name.replace("inputs.preprocess", "preprocess").replace("of_edge.", "edges.")
    for mine, theirs in LARGE_STEM.items():
        name = name.replace(mine, theirs)
    shared = re.search(r"of_node\.(\d+)\.", name)
    if shared is None:
        return [name]
    mine = [row for row, (source, _) in enumerate(EDGES) if source == int(shared[1])]
    return [name.replace(shared[0], f"edges.{row}.") for row in mine]


def product_name(name: str) -> str:
    """What the product calls the oracle's parameter `name`."""
    for mine, theirs in LARGE_STEM.items():
        name = name.replace(theirs, mine)
    return re.sub(r"(?<!\w)edges\.", "of_edge.", name).replace("preprocess", "inputs.preprocess")


def load_product(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give an oracle (model, network, cell) the weights and statistics of the product's counterpart; all must fit."""
    module.load_state_dict({oracle: value for name, value in state.items() for oracle in oracle_names(name)})


def product_gradients(module: nn.Module) -> dict[str, Tensor]:
    """The gradients of an oracle's parameters under the product's names; zeros where none arrived."""
    return {
        product_name(name): torch.zeros_like(value) if value.grad is None else value.grad
        for name, value in module.named_parameters()
    }


def direct_gradients(
    state: Mapping[str, Tensor],
    ops: Sequence[str],
    views: Sequence[Tensor],
    labels: Tensor | None,
    mixing: Mixing,
    dtype: torch.dtype | None = None,
    more_ops: Mapping[str, OpBuilder] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of a search model and its gradients, by `loss.backward()` on everything, in training mode.

    Args:
        state: the product's `SearchModel.state_dict()`; its head says which loss it is (`search_model`).
        views: one batch [N, C, H, W] with `labels` [N] for `ce`, two for `barlow`.
        mixing: {"normal", "reduce"} -> mixing weights [num_edges, num_ops], taken as they are.
        dtype: of the computation; by default that of the weights.

    Returns:
        The loss, and gradients by the product's names; those of the mixing weights are `mixing.normal`, `.reduce`.
    """
    model = search_model(state, ops, dtype, more_ops).train()
    kind = next(model.parameters()).dtype
    leaves = {cell: weights.detach().to(kind, copy=True).requires_grad_() for cell, weights in mixing.items()}
    loss = model.loss([view.detach().to(kind).contiguous() for view in views], labels, leaves)
    loss.backward()
    gradients = product_gradients(model)
    return loss.detach(), gradients | {f"mixing.{cell}": weights.grad for cell, weights in leaves.items()}
