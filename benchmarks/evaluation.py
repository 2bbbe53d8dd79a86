"""What each part of a fast evaluation brings: python benchmarks/evaluation.py.

Untrained networks, whose time is that of trained ones, compute batches in memory on one thread, in every way in turn.
"As before" is the network with folded batch normalisations, computed by its modules in batches of 64. The times are of
the processor, so that other work on the machine counts little. `--quick` checks that it runs.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

from ssfnas_cli.main import SPIN_LIMIT

os.environ.setdefault(*SPIN_LIMIT)  # the program sets it, too, before torch is imported

import report
import torch
from torch import Tensor
from untrained import untrained

from ssfnas_cli.artifacts.model import DerivedNetwork, Part
from ssfnas_cli.artifacts.named import named_genotype
from ssfnas_cli.engine.device import Device
from ssfnas_cli.machine import multiplies_bf16
from ssfnas_cli.nets.evaluation import BATCHES_BEFORE, Evaluated
from ssfnas_cli.nets.folding import fold

ROUNDS, BATCH = 5, 64
CASES = {
    "ResNet-32, 32x32": ("resnet32", 32),
    "DARTS_V2, C=16, 8 cells, 32x32": ("DARTS_V2", 32),
    "mobilenet_v2, 96x96": ("mobilenet_v2", 96),
}
BEFORE = "as before"


def ways(name: str, side: int, batch: int) -> dict[str, Callable[[], Any]]:
    """What computes a batch of a network, by name of the way; every one of them has warmed up."""
    genotype = named_genotype(name)
    shape = {"channels": 16, "layers": 8}
    network = Part(name=name) if genotype is None else DerivedNetwork(genotype=genotype, **shape)
    module = untrained(network, side).module
    images = torch.randn(batch, 3, side, side).to(memory_format=torch.channels_last)
    folded, half, quarter = fold(module, images[:2]), images[: batch // 2], images[: batch // 4]
    found: dict[str, Callable[[], Any]] = {
        BEFORE: lambda: folded(images),
        "inference mode": lambda: in_inference_mode(folded, images),
        "half a batch": lambda: [folded(half) for _ in range(2)],
        "a quarter": lambda: [folded(quarter) for _ in range(4)],
        "recorded": recorded(module, images, reduced=False),
    }
    if multiplies_bf16():
        by_modules = Evaluated(module, images[:2], reduced=True)._reduced
        assert by_modules is not None
        found |= {"bf16": lambda: by_modules(images), "recorded, bf16": recorded(module, images, reduced=True)}
    return found


def in_inference_mode(network: Any, images: Tensor) -> Any:
    """Compute a batch in inference mode."""
    with torch.inference_mode():
        return network(images)


def recorded(module: Any, images: Tensor, reduced: bool) -> Callable[[], Any]:
    """What computes a batch by recorded operations."""
    evaluated = Evaluated(module, images[:2], reduced)
    for _ in range(BATCHES_BEFORE + 1):
        evaluated(images)
    assert None not in evaluated._programs.values(), "it is recorded"
    return lambda: evaluated(images)


def differences(found: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """How far the logits are from those before, over the largest of these, by way."""
    wanted = found[BEFORE]()
    return {
        way: float((act() - wanted).abs().max() / wanted.abs().max())
        for way, act in found.items()
        if "recorded" in way or way == "bf16"
    }


@torch.no_grad()
def measure(rounds: int, batch: int) -> tuple[dict[str, dict[str, list[float]]], dict[str, dict[str, float]]]:
    """Milliseconds an image, by network and way, and how far the logits are from those before."""
    times: dict[str, dict[str, list[float]]] = {}
    apart = {}
    for title, (name, side) in CASES.items():
        found = ways(name, side, batch)
        apart[title] = differences(found)
        times[title] = {way: [] for way in found}
        for _ in range(rounds):
            for way, act in found.items():
                began = time.process_time()
                act()
                times[title][way].append(1e3 * (time.process_time() - began) / batch)
    return times, apart


def text(times: dict[str, dict[str, list[float]]], apart: dict[str, dict[str, float]], rounds: int) -> str:
    """The section of docs/performance.md."""
    names = list(next(iter(times.values())))
    rows = []
    for title, of_ways in times.items():
        row = [title, report.spread(of_ways[BEFORE])]
        for way in names[1:]:
            faster = report.spread([a / b for a, b in zip(of_ways[BEFORE], of_ways[way], strict=True)])
            far = f"; {apart[title][way]:.1g}" if way in apart[title] else ""
            row.append(f"{faster}{far}")
        rows.append(row)
    header = ["network", f"{BEFORE}, ms an image", *names[1:]]
    return f"""`python benchmarks/evaluation.py`, {report.machine()}. Batches of {BATCH}, one thread, processor time; \
{rounds} rounds in turn. How many times
faster each way is than "{BEFORE}"; behind it, how far its logits are from those, over the largest logit.

{report.table(header, rows)}"""


def main() -> None:
    """Measure all networks and write the section."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    Device("cpu", 1)  # threads and memory as the program has them
    rounds = 1 if quick else ROUNDS
    section = text(*measure(rounds, 4 if quick else BATCH), rounds)
    if quick:
        print(section)
    else:
        report.write_section("evaluation", section)


if __name__ == "__main__":
    main()
