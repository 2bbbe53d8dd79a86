"""Compare steps in float32 with steps whose cells have maps of bf16, both by the compiled kernels (make bench).

    python benchmarks/bf16.py                # measure and write the tables to docs/performance.md
    python benchmarks/bf16.py --quick        # check that the benchmark runs

Three questions: what a step takes; how far its losses and gradients are from those of float64, and torch's own in an
autocast to bf16; and whether searches of the embedded digits end in the same genotypes.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import paired
import report
import retrain_step
import search_step
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssfnas_cli.artifacts.genotype import Genotype, read_genotype
from ssfnas_cli.native import cells
from ssfnas_cli.nets.supernet import Supernet
from ssfnas_cli.settings import PAPER_OPS

PRECISIONS = ("fp32", "bf16")
SEARCHES = {name: search_step.CASES[name] for name in ("softmax-ce-1", "sigmoid-barlow-1", "softmax-ce-2")}
TRAININGS = {name: retrain_step.CASES[name] for name in ("DARTS_V2-16x8", "DARTS_V2-36x20")}
DISTANCES, GENOTYPES = "distances", "genotypes"
SEEDS = (0, 1, 2)


# The time and memory of a step


def build_training(folder: Path, name: str, flags: Mapping[str, Any]) -> paired.Step:
    """The step of a retraining, without its losses, which differ by more than rounding in float32."""
    step = retrain_step.build_product(folder, name, flags)

    def without_losses(number: int) -> dict[str, float]:
        step(number)
        return {}

    return without_losses


def flags_of(name: str, quick: bool) -> dict[str, Any]:
    """The settings of a case as command-line flags."""
    if name in SEARCHES:
        return search_step.flags_of(SEARCHES[name], quick)
    return retrain_step.flags_of(TRAININGS[name], quick)


def facts_of(name: str, quick: bool) -> dict[str, Any]:
    """The facts in which all rounds of a table must agree."""
    return {"machine": report.machine(), "name": name, "quick": quick}


def measure_step(name: str, options: argparse.Namespace, results: paired.Results) -> None:
    """Time the steps in both precisions alternately."""
    flags = flags_of(name, options.quick)
    with paired.scratch() as scratch:
        folder = Path(scratch)
        if name in SEARCHES:
            search_step.prepare(folder, flags, search_step.shape_of(options.quick)["image_size"])
            build, arguments = search_step.build_alone, (folder,)
        else:
            genotype = TRAININGS[name].genotype
            retrain_step.prepare(folder, genotype, flags)
            build, arguments = build_training, (folder, genotype)
        sides = {
            precision: paired.Side(build, (*arguments, {**flags, "precision": precision}), paired.OURS)
            for precision in PRECISIONS
        }
        paired.compare(name, facts_of(name, options.quick), sides, options.pairs, results)


# The distance from float64


def loss_and_gradients(supernet: nn.Module, weights: Tensor, images: Tensor, labels: Tensor) -> list[Tensor]:
    """The cross-entropy of ten of the pooled features, and the gradients of the mixing weights and of all weights."""
    weights = weights.clone().requires_grad_()
    features = supernet(images, {"normal": weights[0], "reduce": weights[1]})
    loss = F.cross_entropy(features.to(weights.dtype)[:, :10], labels)
    parameters = [parameter for parameter in supernet.parameters() if parameter.requires_grad]
    alphas, *others = torch.autograd.grad(loss, [weights, *parameters])
    return [loss.detach(), alphas, torch.cat([gradient.flatten() for gradient in others])]


def measure_distances(options: argparse.Namespace, results: paired.Results) -> None:
    """How far from float64 the loss and gradients of a supernet are: several draws, each way to compute them."""
    facts = facts_of(DISTANCES, options.quick)
    for seed in range(len(results.rounds(DISTANCES, facts)), options.pairs):
        torch.manual_seed(seed)
        shape = (4, 3) if options.quick else (16, 8)
        supernet = Supernet(3, *shape, PAPER_OPS)
        weights = torch.softmax(1e-3 * torch.randn(2, 14, len(PAPER_OPS)), -1)
        images, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
        truth = loss_and_gradients(copy.deepcopy(supernet).double(), weights.double(), images.double(), labels)
        taken = {}
        for way, reduced, by_kernels in (("float32, kernels", 0, 1), ("bf16, kernels", 1, 1), ("bf16, torch", 1, 0)):
            net = copy.deepcopy(supernet)
            net.compile_with(cells.load(reduced=True) if by_kernels else None)
            with torch.autocast("cpu", torch.bfloat16, enabled=bool(reduced)):
                found = loss_and_gradients(net, weights, images, labels)
            parts = zip(("loss", "alphas", "weights"), found, truth, strict=True)
            taken[way] = {part: float((got.double() - true).norm() / true.norm()) for part, got, true in parts}
        results.add(DISTANCES, facts, taken)


# Genotypes


def search(folder: Path, seed: int, flags: list[str]) -> Genotype:
    """The genotype of a short search on the embedded digits."""
    command = [
        sys.executable,
        "-m",
        "ssfnas_cli",
        "search",
        "--preset",
        "quick",
        "--seed",
        str(seed),
        "--quiet",
        *flags,
    ]
    subprocess.run([*command, "-o", str(folder)], check=True, stdout=subprocess.DEVNULL)
    return read_genotype(folder / "genotype.json")


def edges(genotype: Genotype) -> Counter:
    """How often each op is on each edge of each cell type."""
    return Counter(
        (kind, edge.op, edge.source, edge.target) for kind, cell in genotype.cells().items() for edge in cell.edges
    )


def measure_genotypes(options: argparse.Namespace, results: paired.Results) -> None:
    """Search in both precisions, and count the ops that both genotypes have on the same edges."""
    facts = facts_of(GENOTYPES, options.quick)
    for seed in SEEDS[len(results.rounds(GENOTYPES, facts)) : min(options.pairs, len(SEEDS))]:
        with paired.scratch() as scratch:
            flags = ["--channels", "4", "--layers", "3", "--epochs", "1"] if options.quick else []
            arms = {"fp32": [], "bf16": ["--precision", "bf16"], "fp32, other batches": ["--set", "flip=true"]}
            found = {
                arm: edges(search(Path(scratch, str(number)), seed, [*flags, *added]))
                for number, (arm, added) in enumerate(arms.items())
            }
        counts = {arm: {"same": (found["fp32"] & ops).total(), "of": ops.total()} for arm, ops in found.items()}
        results.add(GENOTYPES, facts, counts)


# The tables


def render(options: argparse.Namespace, results: paired.Results) -> str:
    """The tables of all measurements so far, as Markdown."""
    lines, timed = [], []
    for name in (*SEARCHES, *TRAININGS):
        rounds = results.rounds(name, facts_of(name, options.quick))[: options.pairs]
        timed.append(rounds)
        flags = flags_of(name, options.quick)
        what = f"search, {flags['loss']}, order {flags['order']}" if name in SEARCHES else "retraining, DARTS_V2"
        shape = search_step.shape_of(options.quick) | flags
        title = [what, f"C={shape['channels']}, {shape['layers']} cells", str(shape["batch_size"])]
        for precision in PRECISIONS if rounds else ():
            lines.append([*title, precision, *paired.row(rounds, precision, "fp32")])
    text = [
        f"`python benchmarks/bf16.py`, {report.machine()}. 32x32 images, compiled kernels; {options.pairs} pairs in "
        f"turn. {paired.disturbance(timed)}",
        report.table(["step", "network", "batch", "precision", *paired.HEADER], lines),
    ]
    if rounds := results.rounds(DISTANCES, facts_of(DISTANCES, options.quick)):
        rows = [
            [way, *(report.spread([100 * taken[way][part] for taken in rounds], 3) for part in of_way)]
            for way, of_way in rounds[0].items()
        ]
        text += [
            f"Distances from float64 in percent, of an untrained supernet in {len(rounds)} draws (C=16, 8 cells, batch "
            "8; softmax, cross-entropy):",
            report.table(["computed in", "loss", "gradient of the alphas", "gradient of the weights"], rows),
        ]
    if rounds := results.rounds(GENOTYPES, facts_of(GENOTYPES, options.quick)):
        rows = [
            [arm, *(f"{taken[arm]['same']} of {taken[arm]['of']}" for taken in rounds)]
            for arm in rounds[0]
            if arm != "fp32"
        ]
        seeds = [f"seed {seed}" for seed in SEEDS[: len(rounds)]]
        text += [
            "Ops of the genotype that the search in float32 has on the same edge, of short searches on the embedded "
            "digits (`ssfnas search --preset quick`):",
            report.table(["search", *seeds], rows),
        ]
    return "\n\n".join(text)


def measure(name: str, options: argparse.Namespace, results: paired.Results) -> None:
    """Measure a case."""
    if name == DISTANCES:
        measure_distances(options, results)
    elif name == GENOTYPES:
        measure_genotypes(options, results)
    else:
        measure_step(name, options, results)


if __name__ == "__main__":
    paired.run(__doc__, "bf16", [*SEARCHES, *TRAININGS, DISTANCES, GENOTYPES], measure, render)
