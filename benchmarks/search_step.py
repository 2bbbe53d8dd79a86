"""Compare the step of a search with an implementation that follows the papers directly (make bench).

    python benchmarks/search_step.py                # measure all cases and write the table to docs/performance.md
    python benchmarks/search_step.py --quick        # check that the benchmark runs
    python benchmarks/search_step.py --only softmax-ce-1 --pairs 5

A step consists of an alpha step and a weight step (DARTS, Algorithm 1) on prepared batches. Both sides have the same
weights, alphas and batches. The direct step (tests/oracle) computes edge by edge in the default memory layout and calls
`backward` on everything. The product's step is `SearchPhase.step`, which `ssfnas search` calls. Cases that end in
`-torch` do not use its compiled kernels. Cases with `-partial` compare the product's step with partial channels (and
weights of edges) with its step on all channels.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import paired
import report

from registry.state import load_module, module_tensors
from ssfnas_cli.artifacts.dataset import DataSet
from ssfnas_cli.artifacts.tensors import load_tensors, save_tensors
from ssfnas_cli.data.batches import SearchBatch
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.loop import cosine
from ssfnas_cli.engine.search_phase import SearchPhase
from ssfnas_cli.settings import SearchSettings, load_settings
from tests.oracle import direct, steps

NUM_BATCHES = 2  # used in turn


class Case(NamedTuple):
    """A search whose steps are timed."""

    relax: str
    loss: str
    order: int
    batch_size: int
    kernels: str = "compiled"
    partial_channels: int = 1


CASES = {  # Barlow Twins has batches of 32, because the direct step needs 20 GB for two views of 64 images
    "softmax-ce-1": Case("softmax", "ce", 1, 64),
    "sigmoid-ce-1": Case("sigmoid", "ce", 1, 64),
    "softmax-barlow-1": Case("softmax", "barlow", 1, 32),
    "sigmoid-barlow-1": Case("sigmoid", "barlow", 1, 32),
    "softmax-ce-2": Case("softmax", "ce", 2, 64),
    "softmax-ce-1-partial": Case("softmax", "ce", 1, 64, partial_channels=4),
}
# These cases time the direct step again, because three processes at once may need too much memory.
CASES |= {f"{name}-torch": case._replace(kernels="torch") for name, case in CASES.items() if case.relax == "softmax"}
FULL = {"channels": 16, "layers": 8, "image_size": 32}
QUICK = {"channels": 4, "layers": 3, "image_size": 16}
START_UP, SMALL_BATCH = "start-up", Case("softmax", "ce", 1, 8)


# The two sides


def make_phase(folder: Path, flags: Mapping[str, Any]) -> SearchPhase:
    """Build a search on the data set in `folder`."""
    settings = load_settings(SearchSettings, flags=flags).resolve_plugins()
    data = DataSet.open(folder / "data")
    return SearchPhase(settings, data, Device.from_settings(settings))


def prepare(folder: Path, flags: Mapping[str, Any], image_size: int) -> int:
    """Write data, initial weights and alphas, and batches augmented as in a search. Return the steps of an epoch."""
    paired.random_images(folder, 2 * NUM_BATCHES * flags["batch_size"], image_size)
    phase = make_phase(folder, flags)
    tensors = module_tensors("model", phase.model)
    tensors |= {f"alphas.{kind}": values for kind, values in phase.strategy.alphas.items()}
    for number, batches in enumerate(phase.batches(0, 0)):
        for half, batch in (("train", batches.weights), ("val", batches.alphas)):
            tensors |= {f"batch.{number}.{half}.view{k}": view for k, view in enumerate(batch.views)}
            tensors[f"batch.{number}.{half}.labels"] = batch.labels
    save_tensors(folder / "start.safetensors", tensors)
    return phase.num_steps(0)


def build_product(folder: Path, flags: Mapping[str, Any]) -> paired.Step:
    """Build the product's step."""
    phase, tensors = make_phase(folder, flags), load_tensors(folder / "start.safetensors")
    paired.check_kernels(phase.device, flags["kernels"])
    load_module("model", phase.model, tensors)
    for kind, alphas in phase.strategy.alphas.items():
        alphas.data.copy_(tensors[f"alphas.{kind}"])
    batches = [
        SearchBatch(
            *(phase.device.move(paired.read_batch(tensors, f"batch.{number}.{half}")) for half in ("train", "val")),
            None,
        )
        for number in range(NUM_BATCHES)
    ]

    def step(number: int) -> dict[str, float]:
        values = phase.step(0, number, batches[number % NUM_BATCHES])
        return {name: values[name] for name in ("alpha_loss", "weight_loss")}

    return step


def build_alone(folder: Path, flags: Mapping[str, Any]) -> paired.Step:
    """Build the product's step where it is compared with that of another search, which has other losses."""
    step = build_product(folder, flags)

    def without_losses(number: int) -> dict[str, float]:
        step(number)
        return {}

    return without_losses


def build_direct(folder: Path, flags: Mapping[str, Any], num_steps: int) -> paired.Step:
    """Build the direct step. The learning rate depends on `num_steps`, the number of steps of an epoch."""
    settings = load_settings(SearchSettings, flags=flags)
    tensors = load_tensors(folder / "start.safetensors")
    model = direct.search_model(paired.part(tensors, "model."), settings.ops)
    alphas = {kind: tensors[f"alphas.{kind}"].clone().requires_grad_() for kind in ("normal", "reduce")}
    adam = {"softmax": (3e-4, (0.5, 0.999)), "sigmoid": (3e-3, (0.9, 0.999))}[settings.relax.name]
    search = steps.DirectSearch(model, alphas, settings.relax.name, settings.order, *adam)
    batches = [
        tuple(paired.read_batch(tensors, f"batch.{number}.{half}") for half in ("train", "val"))
        for number in range(NUM_BATCHES)
    ]

    def step(number: int) -> dict[str, float]:
        lr = cosine(settings.lr, settings.lr_min, number / num_steps / settings.epochs)
        return search.step(*batches[number % NUM_BATCHES], lr)

    return step


# The run


def shape_of(quick: bool) -> dict[str, int]:
    """The width, depth and image size."""
    return QUICK if quick else FULL


def flags_of(case: Case, quick: bool) -> dict[str, Any]:
    """The settings of a search as command-line flags. Others have the paper's values."""
    flags = {name: value for name, value in shape_of(quick).items() if name != "image_size"} | case._asdict()
    if case.partial_channels == 1:
        del flags["partial_channels"]
    return flags | ({"batch_size": min(8, case.batch_size)} if quick else {})


def facts_of(case: Case, quick: bool) -> dict[str, Any]:
    """The facts in which all rounds of a table must agree."""
    return {"machine": report.machine(), **shape_of(quick), **flags_of(case, quick)}


def measure(name: str, options: argparse.Namespace, results: paired.Results) -> None:
    """Time a case."""
    case = CASES[name]
    flags, image_size = flags_of(case, options.quick), shape_of(options.quick)["image_size"]
    with paired.scratch() as scratch:
        make_sides = with_the_direct_step if case.partial_channels == 1 else with_all_channels
        sides = make_sides(Path(scratch), flags, image_size)
        paired.compare(name, facts_of(case, options.quick), sides, options.pairs, results)


def with_the_direct_step(folder: Path, flags: Mapping[str, Any], image_size: int) -> dict[str, paired.Side]:
    """The direct step and the product's, from the same weights."""
    num_steps = prepare(folder, flags, image_size)
    return {
        "direct": paired.Side(build_direct, (folder, flags, num_steps)),
        "ssfnas": paired.Side(build_product, (folder, flags), paired.OURS),
    }


def with_all_channels(folder: Path, flags: Mapping[str, Any], image_size: int) -> dict[str, paired.Side]:
    """The product's step on all channels and on a part of them."""
    sides = {}
    for label, k in (("all channels", 1), ("partial channels", flags["partial_channels"])):
        place, given = folder / str(k), {**flags, "partial_channels": k}
        place.mkdir()
        prepare(place, given, image_size)
        sides[label] = paired.Side(build_alone, (place, given), paired.OURS)
    return sides


def measure_start_up(options: argparse.Namespace, results: paired.Results) -> None:
    """Measure the start-up time of a search, beyond that of a later step, with cold and with warm caches."""
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
            start_up = first["build_seconds"] + first["seconds"] - min(step["seconds"] for step in later)
            taken[state] = {"seconds": start_up}
    results.add(START_UP, facts, taken)


# The table


def render(options: argparse.Namespace, results: paired.Results) -> str:
    """The table of all measurements so far, as Markdown."""
    lines, timed = [], []
    for name, case in CASES.items():
        rounds = results.rounds(name, facts_of(case, options.quick))[: options.pairs]
        timed.append(rounds)
        title = [case.relax, case.loss, str(case.order), str(flags_of(case, options.quick)["batch_size"])]
        for side in rounds[0] if rounds else ():
            label = f"ssfnas, {side}" if side.endswith("channels") else side
            label += "" if case.kernels == "compiled" or side == "direct" else ", no compiled kernels"
            lines.append([*title, label, *paired.row(rounds, side, next(iter(rounds[0])))])
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


def measure_any(name: str, options: argparse.Namespace, results: paired.Results) -> None:
    """Measure a case, or the start-up."""
    measure_start_up(options, results) if name == START_UP else measure(name, options, results)


if __name__ == "__main__":
    paired.run(__doc__, "search_step", [*CASES, START_UP], measure_any, render)
