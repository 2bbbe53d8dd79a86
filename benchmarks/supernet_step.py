"""What two speed decisions of the supernet are worth, in turn in one process: python benchmarks/supernet_step.py.

A training pass (forward and backward, batch 32) of the supernet as it is, against the same weights in the default
memory layout, and against one that computes parameter-free ops anew on every edge. Prints medians, spreads and the
median of the ratios pair by pair.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ssfnas_cli.artifacts.run import environment
from ssfnas_cli.nets import supernet
from ssfnas_cli.nets.supernet import SearchCell, Supernet
from ssfnas_cli.settings import PAPER_OPS

CHANNELS, LAYERS, BATCH, SIDE, ROUNDS = 8, 5, 32, 32, 5


class UnsharedCell(SearchCell):
    """A search cell that runs a node's parameter-free ops once for every edge, as the papers' code does."""

    def forward(self, older: Tensor, newer: Tensor, weights: Tensor) -> Tensor:
        states = list(self.inputs(older, newer))
        for target in range(2, 2 + supernet.NUM_NODES):
            terms = []
            for edge, (source, into) in enumerate(supernet.edge_list()):
                if into == target:
                    for ops in (self.of_node[source], self.of_edge[edge]):
                        results = supernet._apply_all(ops, states[source])
                        terms += [weights[edge, column] * result for column, result in results.items()]
            states.append(supernet._sum(terms))
        return torch.cat(states[2:], dim=1)


def timed_pass(net: nn.Module, images: Tensor, mixing: dict[str, Tensor]) -> float:
    """Seconds of a forward and a backward pass."""
    began = time.perf_counter()
    net(images, mixing).square().mean().backward()
    return time.perf_counter() - began


def main() -> None:
    """Time the three in turn."""
    torch.manual_seed(0)
    net = Supernet(3, CHANNELS, LAYERS, PAPER_OPS)
    images = torch.randn(BATCH, 3, SIDE, SIDE)
    mixing = {kind: torch.full((14, len(PAPER_OPS)), 0.5, requires_grad=True) for kind in ("normal", "reduce")}
    last = torch.channels_last

    def run(layout: torch.memory_format, cell: type[SearchCell]) -> Callable[[], float]:
        def once() -> float:
            for module in net.cells:
                module.__class__ = cell
            return timed_pass(net.to(memory_format=layout), images.contiguous(memory_format=layout), mixing)

        return once

    variants = {
        "as it is": run(last, SearchCell),
        "default memory layout": run(torch.contiguous_format, SearchCell),
        "parameter-free ops on every edge": run(last, UnsharedCell),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for round_number in range(ROUNDS + 1):
        for name, once in variants.items():
            duration = once()
            if round_number:  # the first round warms up
                seconds[name].append(duration)
    facts = environment()
    print(
        f"{facts['processor']}, {facts['threads']} threads, torch {facts['torch']}; "
        f"C={CHANNELS}, {LAYERS} cells, {SIDE}px, batch {BATCH}"
    )
    base = seconds["as it is"]
    for name, values in seconds.items():
        ratio = statistics.median(value / reference for value, reference in zip(values, base, strict=True))
        spread = f"{min(values):.2f} to {max(values):.2f}"
        print(f"{name:34s} median {statistics.median(values):.2f} s ({spread}), {ratio:.2f} x")


if __name__ == "__main__":
    main()
