"""Compare the training step of a derived network with a direct implementation (make bench).

    python benchmarks/retrain_step.py               # measure all cases and write the table to docs/performance.md
    python benchmarks/retrain_step.py --quick       # check that the benchmark runs

Both sides have the same weights, batches and drop path. Two published cells are measured at the size of a search and at
the size of a retraining (DARTS: C=36, 20 cells, batch 96), with auxiliary head 0.4 and drop path 0.1. The direct
network (tests/oracle) consists of torch modules in the default memory layout. The product's step is `TrainPhase.step`,
which `ssfnas retrain` calls. A step of pretraining takes two views of half as many images through the same cells.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import paired
import report
import torch

from registry.state import load_module, module_tensors
from ssfnas_cli.artifacts.dataset import DataSet
from ssfnas_cli.artifacts.genotype import Genotype
from ssfnas_cli.artifacts.published import parse_published
from ssfnas_cli.artifacts.tensors import load_tensors, save_tensors
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.loop import cosine
from ssfnas_cli.engine.network import make_card
from ssfnas_cli.engine.retrain import build_phases
from ssfnas_cli.engine.train_phase import TrainPhase
from ssfnas_cli.settings import RetrainSettings, load_settings
from tests.oracle import direct, steps

NUM_BATCHES = 2  # used in turn
PRETRAINING_TOLERANCE = 0.2  # of later losses: with Barlow Twins and 20 cells they part by 5 % within four steps
EPOCH = 75  # of 150, where drop path has risen to half of 0.2
IMAGE_SIZE = 32

# Published genotypes in the notation of their repositories (DARTS, figures 4 and 5; FairDARTS, appendix).
PUBLISHED = {
    "DARTS_V2": """Genotype(
        normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1),
                ('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)],
        normal_concat=[2, 3, 4, 5],
        reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1),
                ('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)],
        reduce_concat=[2, 3, 4, 5])""",
    "FairDARTS_b": """Genotype(
        normal=[('sep_conv_3x3', 2, 0), ('sep_conv_3x3', 2, 1), ('sep_conv_3x3', 3, 1),
                ('dil_conv_3x3', 4, 0), ('sep_conv_5x5', 4, 1), ('dil_conv_5x5', 5, 1)],
        normal_concat=[2, 3, 4, 5],
        reduce=[('skip_connect', 2, 0), ('dil_conv_3x3', 2, 1), ('skip_connect', 3, 0), ('dil_conv_3x3', 3, 1),
                ('max_pool_3x3', 4, 0), ('sep_conv_3x3', 4, 1), ('skip_connect', 5, 2), ('max_pool_3x3', 5, 0)],
        reduce_concat=[2, 3, 4, 5])""",
}


class Case(NamedTuple):
    """A derived network to train, with labels or by `pretrain`."""

    genotype: str
    channels: int
    layers: int
    batch_size: int
    pretrain: str = "none"


SIZES = {"16x8": (16, 8, 64), "36x20": (36, 20, 96)}
CASES = {f"{name}-{size}": Case(name, *shape) for size, shape in SIZES.items() for name in PUBLISHED}
CASES |= {
    f"DARTS_V2-{size}-pretraining": Case("DARTS_V2", channels, layers, batch_size // 2, "barlow")
    for size, (channels, layers, batch_size) in SIZES.items()
}


# The two sides


def read_genotype(name: str) -> Genotype:
    """Parse a published genotype as `ssfnas import-genotype` does."""
    return parse_published(PUBLISHED[name], name, name)


def make_phase(folder: Path, name: str, flags: Mapping[str, Any]) -> TrainPhase:
    """Build the training of a derived network on the data set in `folder`."""
    settings = load_settings(RetrainSettings, flags=flags).resolve_plugins()
    data = DataSet.open(folder / "data")
    card = make_card(read_genotype(name), settings, data)
    phases, _ = build_phases(card, settings, data, Device.from_settings(settings))
    return phases[0]


def prepare(folder: Path, name: str, flags: Mapping[str, Any]) -> int:
    """Write data, initial weights, and batches that are augmented as in a training. Return the steps of an epoch."""
    paired.random_images(folder, NUM_BATCHES * flags["batch_size"], IMAGE_SIZE)
    phase = make_phase(folder, name, flags)
    tensors = module_tensors("model", phase.model)
    for number, batch in enumerate(phase.batches(EPOCH, 0)):
        tensors |= {f"batch.{number}.view{k}": view for k, view in enumerate(batch.views)}
        tensors[f"batch.{number}.labels"] = batch.labels
    save_tensors(folder / "start.safetensors", tensors)
    return phase.num_steps(EPOCH)


def build_product(folder: Path, name: str, flags: Mapping[str, Any]) -> paired.Step:
    """Build the product's step."""
    phase, tensors = make_phase(folder, name, flags), load_tensors(folder / "start.safetensors")
    paired.check_kernels(phase.device, flags["kernels"])
    load_module("model", phase.model, tensors)
    batches = [phase.device.move(paired.read_batch(tensors, f"batch.{number}")) for number in range(NUM_BATCHES)]

    def step(number: int) -> dict[str, float]:
        torch.manual_seed(number)
        return {"loss": phase.step(EPOCH, number, batches[number % NUM_BATCHES])["loss"]}

    return step


def direct_model(name: str, tensors: Mapping[str, torch.Tensor], channels: int, layers: int) -> Any:
    """The direct network with the product's weights: `direct.Classifier`, or in a pretraining `direct.Pretraining`."""
    genotype = read_genotype(name)
    plans = {
        kind: ([(edge.op, edge.source, edge.target) for edge in cell.edges], cell.concat)
        for kind, cell in genotype.cells().items()
    }
    model: Any = direct.Classifier(plans, genotype.drop_path, 3, channels, layers, 10)
    if (width := tensors.get("model.head.0.weight")) is not None:
        model = direct.Pretraining(model.encoder, len(width))
    direct.load_product(model, paired.part(tensors, "model."))
    return model


def build_direct(folder: Path, name: str, flags: Mapping[str, Any], num_steps: int) -> paired.Step:
    """Build the direct step. The learning rate depends on `num_steps`, the number of steps of an epoch."""
    settings = load_settings(RetrainSettings, flags=flags)
    tensors = load_tensors(folder / "start.safetensors")
    model = direct_model(name, tensors, settings.channels, settings.layers)
    training = steps.DirectTraining(model, settings.aux_weight)
    batches = [paired.read_batch(tensors, f"batch.{number}") for number in range(NUM_BATCHES)]

    def train(number: int) -> dict[str, float]:
        torch.manual_seed(number)
        lr = cosine(settings.lr, settings.lr_min, (EPOCH + number / num_steps) / settings.epochs)
        images, labels = batches[number % NUM_BATCHES].views[0], batches[number % NUM_BATCHES].labels
        return {"loss": training.step(images, labels, lr, settings.drop_path * EPOCH / settings.epochs)}

    def pretrain(number: int) -> dict[str, float]:
        lr = cosine(settings.pretrain_lr, settings.lr_min, (EPOCH + number / num_steps) / settings.pretrain_epochs)
        return {"loss": training.pretraining_step(batches[number % NUM_BATCHES].views, lr)}

    return train if settings.pretrain.name == "none" else pretrain


# The run and the table


def flags_of(case: Case, quick: bool) -> dict[str, Any]:
    """The settings of a training as command-line flags. Others have the paper's values."""
    shape = case._asdict() | ({"channels": 4, "layers": 3, "batch_size": 8} if quick else {})
    return {"kernels": "compiled"} | {name: value for name, value in shape.items() if name != "genotype"}


def facts_of(case: Case, quick: bool) -> dict[str, Any]:
    """The facts in which all rounds of a table must agree."""
    return {"machine": report.machine(), "genotype": case.genotype, **flags_of(case, quick)}


def measure(name: str, options: argparse.Namespace, results: paired.Results) -> None:
    """Time a case."""
    case = CASES[name]
    flags = flags_of(case, options.quick)
    with paired.scratch() as scratch:
        folder = Path(scratch)
        num_steps = prepare(folder, case.genotype, flags)
        sides = {
            "direct": paired.Side(build_direct, (folder, case.genotype, flags, num_steps)),
            "ssfnas": paired.Side(build_product, (folder, case.genotype, flags), paired.OURS),
        }
        later = paired.LATER_TOLERANCE if case.pretrain == "none" else PRETRAINING_TOLERANCE
        paired.compare(name, facts_of(case, options.quick), sides, options.pairs, results, later)


def render(options: argparse.Namespace, results: paired.Results) -> str:
    """The table of all measurements so far, as Markdown."""
    lines, timed = [], []
    for name, case in CASES.items():
        rounds = results.rounds(name, facts_of(case, options.quick))[: options.pairs]
        timed.append(rounds)
        flags = flags_of(case, options.quick)
        kind = case.genotype if case.pretrain == "none" else f"{case.genotype}, pretraining"
        title = [kind, f"C={flags['channels']}, {flags['layers']} cells", str(flags["batch_size"])]
        lines += [[*title, side, *paired.row(rounds, side, "direct")] for side in (rounds[0] if rounds else ())]
    return "\n\n".join(
        [
            f"`python benchmarks/retrain_step.py`, {report.machine()}. {IMAGE_SIZE}x{IMAGE_SIZE} images, 10 classes, "
            f"auxiliary head 0.4, drop path 0.1, float32; the pretraining has two views, Barlow Twins and neither. "
            f"{options.pairs} pairs in turn. {paired.disturbance(timed)}",
            report.table(["genotype", "network", "batch", "step", *paired.HEADER], lines),
        ]
    )


if __name__ == "__main__":
    paired.run(__doc__, "retrain_step", list(CASES), measure, render)
