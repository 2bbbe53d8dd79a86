"""The search step against one written directly from the papers, same weights, alphas, batches: make bench.

    python benchmarks/search_step.py                # all of it, the table into docs/performance.md
    python benchmarks/search_step.py --quick        # does it run?
    python benchmarks/search_step.py --only softmax-ce-1 --pairs 5

A step is an alpha step and a weight step (DARTS, Algorithm 1) on prepared batches. The direct one (tests/oracle) works
in the default memory layout, edge by edge, and calls `backward` on everything; the product's is
`SearchPhase.step` as `ssfnas search` calls it, in the cases that end in `-torch` without its compiled kernels.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import paired
import report
import torch

from ssfnas_cli.artifacts.dataset import DataSet
from ssfnas_cli.artifacts.tensors import load_tensors, save_tensors
from ssfnas_cli.data.batches import Batch
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.loop import cosine, load_module, module_tensors
from ssfnas_cli.engine.search_phase import SearchPhase
from ssfnas_cli.settings import SearchSettings, load_settings
from tests.oracle import direct, steps

NUM_BATCHES = 2  # used in turn


class Case(NamedTuple):
    """A search to step through."""

    relax: str
    loss: str
    order: int
    batch_size: int
    kernels: str = "compiled"


CASES = {  # Barlow Twins at 32: two views of 64 images need 20 GB in the direct one
    "softmax-ce-1": Case("softmax", "ce", 1, 64),
    "sigmoid-ce-1": Case("sigmoid", "ce", 1, 64),
    "softmax-barlow-1": Case("softmax", "barlow", 1, 32),
    "sigmoid-barlow-1": Case("sigmoid", "barlow", 1, 32),
    "softmax-ce-2": Case("softmax", "ce", 2, 64),
}
# Against the direct one again, for three processes at once may not fit the memory; a softmax is enough to know.
CASES |= {f"{name}-torch": case._replace(kernels="torch") for name, case in CASES.items() if case.relax == "softmax"}
FULL = {"channels": 16, "layers": 8, "image_size": 32}
QUICK = {"channels": 4, "layers": 3, "image_size": 16}
START_UP, SMALL_BATCH = "start-up", Case("softmax", "ce", 1, 8)


# The two sides


def make_phase(folder: Path, flags: Mapping[str, Any]) -> SearchPhase:
    """A search on the folder's data set."""
    settings = load_settings(SearchSettings, flags=flags).resolve_plugins()
    data = DataSet.open(folder / "data")
    return SearchPhase(settings, data, Device.from_settings(settings))


def prepare(folder: Path, flags: Mapping[str, Any], image_size: int) -> int:
    """Write data and the starting point: weights, alphas, and batches augmented as in a search. Steps of an epoch."""
    paired.random_images(folder, 2 * NUM_BATCHES * flags["batch_size"], image_size)
    phase = make_phase(folder, flags)
    tensors = module_tensors("model", phase.model)
    tensors |= {f"alphas.{kind}": values for kind, values in phase.strategy.alphas.items()}
    for number, halves in enumerate(phase.batches(0, 0)):
        for half, batch in zip(("train", "val"), halves, strict=True):
            tensors |= {f"batch.{number}.{half}.view{k}": view for k, view in enumerate(batch.views)}
            tensors[f"batch.{number}.{half}.labels"] = batch.labels
    save_tensors(folder / "start.safetensors", tensors)
    return phase.num_steps(0)


def read_batch(tensors: Mapping[str, torch.Tensor], number: int, half: str) -> Batch:
    """A batch as `prepare` wrote it."""
    parts = paired.part(tensors, f"batch.{number}.{half}.")
    return Batch(tuple(parts[name] for name in sorted(parts) if name != "labels"), parts["labels"])


def build_product(folder: Path, flags: Mapping[str, Any]) -> paired.Step:
    """The product's step."""
    phase, tensors = make_phase(folder, flags), load_tensors(folder / "start.safetensors")
    paired.check_kernels(phase.device, flags["kernels"])
    load_module("model", phase.model, tensors)
    for kind, alphas in phase.strategy.alphas.items():
        alphas.data.copy_(tensors[f"alphas.{kind}"])
    batches = [
        tuple(phase.device.move(read_batch(tensors, number, half)) for half in ("train", "val"))
        for number in range(NUM_BATCHES)
    ]

    def step(number: int) -> dict[str, float]:
        values = phase.step(0, number, batches[number % NUM_BATCHES])
        return {name: values[name] for name in ("alpha_loss", "weight_loss")}

    return step


def build_direct(folder: Path, flags: Mapping[str, Any], num_steps: int) -> paired.Step:
    """The direct step; `num_steps` are those of an epoch, on which the learning rate depends."""
    settings = load_settings(SearchSettings, flags=flags)
    tensors = load_tensors(folder / "start.safetensors")
    model = direct.search_model(paired.part(tensors, "model."), settings.ops)
    alphas = {kind: tensors[f"alphas.{kind}"].clone().requires_grad_() for kind in ("normal", "reduce")}
    adam = {"softmax": (3e-4, (0.5, 0.999)), "sigmoid": (3e-3, (0.9, 0.999))}[settings.relax.name]
    search = steps.DirectSearch(model, alphas, settings.relax.name, settings.order, *adam)
    batches = [tuple(read_batch(tensors, number, half) for half in ("train", "val")) for number in range(NUM_BATCHES)]

    def step(number: int) -> dict[str, float]:
        lr = cosine(settings.lr, settings.lr_min, number / num_steps / settings.epochs)
        return search.step(*batches[number % NUM_BATCHES], lr)

    return step


# The run


def shape_of(quick: bool) -> dict[str, int]:
    """Width, depth and image size."""
    return QUICK if quick else FULL


def flags_of(case: Case, quick: bool) -> dict[str, Any]:
    """Settings of a search as the command line would give them; the paper's where nothing is said."""
    flags = {name: value for name, value in shape_of(quick).items() if name != "image_size"} | case._asdict()
    return flags | ({"batch_size": min(8, case.batch_size)} if quick else {})


def facts_of(case: Case, quick: bool) -> dict[str, Any]:
    """What rounds must share to stand in one table."""
    return {"machine": report.machine(), **shape_of(quick), **flags_of(case, quick)}


def measure(name: str, options: argparse.Namespace, results: paired.Results) -> None:
    """Time a case."""
    case = CASES[name]
    flags = flags_of(case, options.quick)
    with paired.scratch() as scratch:
        folder = Path(scratch)
        num_steps = prepare(folder, flags, shape_of(options.quick)["image_size"])
        sides = {
            "direct": paired.Side(build_direct, (folder, flags, num_steps)),
            "ssfnas": paired.Side(build_product, (folder, flags), paired.OURS),
        }
        paired.compare(name, facts_of(case, options.quick), sides, options.pairs, results)


def measure_start_up(options: argparse.Namespace, results: paired.Results) -> None:
    """What a search's first step costs beyond a later one, building included: with cold caches, then with warm ones."""
    facts, flags = facts_of(SMALL_BATCH, options.quick), flags_of(SMALL_BATCH, options.quick)
    if results.rounds(START_UP, facts):
        return
    taken = {}
    with paired.scratch() as scratch:
        folder = Path(scratch)
        prepare(folder, flags, shape_of(options.quick)["image_size"])
        caches = {"XDG_CACHE_HOME": str(folder / "cache"), "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
        for state in ("cold", "warm"):
            worker = paired.Worker(paired.Side(build_product, (folder, flags), paired.OURS | caches))
            first, *later = [worker.step(number) for number in range(4)]
            worker.close()
            beyond = first["build_seconds"] + first["seconds"] - min(step["seconds"] for step in later)
            taken[state] = {"seconds": beyond}
    results.add(START_UP, facts, taken)


# The table


def render(options: argparse.Namespace, results: paired.Results) -> str:
    """What is measured so far, as Markdown."""
    lines, timed = [], []
    for name, case in CASES.items():
        rounds = results.rounds(name, facts_of(case, options.quick))[: options.pairs]
        timed.append(rounds)
        title = [case.relax, case.loss, str(case.order), str(flags_of(case, options.quick)["batch_size"])]
        for side in rounds[0] if rounds else ():
            label = side if case.kernels == "compiled" or side == "direct" else f"{side}, no compiled kernels"
            lines.append([*title, label, *paired.row(rounds, side, "direct")])
    shape = shape_of(options.quick)
    text = [
        f"`python benchmarks/search_step.py`, {report.machine()}. C={shape['channels']}, {shape['layers']} cells, "
        f"{shape['image_size']}x{shape['image_size']} images, float32; {options.pairs} pairs in turn. "
        f"{paired.disturbance(timed)}",
        report.table(["relaxation", "loss", "order", "batch", "step", *paired.HEADER], lines),
    ]
    for taken in results.rounds(START_UP, facts_of(SMALL_BATCH, options.quick)):
        text.append(
            "Building a search, and what its first step takes beyond a later one: "
            f"{taken['cold']['seconds']:.1f} s with cold caches (kernels compiled), "
            f"{taken['warm']['seconds']:.1f} s with warm ones."
        )
    return "\n\n".join(text)


def main() -> None:
    """Measure what is missing, then write the table."""
    options = paired.parse_arguments(__doc__.splitlines()[0], "search_step", [*CASES, START_UP])
    results = paired.Results(options.out)
    if not options.render:
        for name in options.only:
            measure_start_up(options, results) if name == START_UP else measure(name, options, results)
    paired.publish("search_step", options, render(options, results))


if __name__ == "__main__":
    main()
