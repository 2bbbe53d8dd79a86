"""What an evaluation costs beside a training, before and after batch normalisation was folded for it.

    python benchmarks/tracking.py            # write the section of docs/performance.md
    python benchmarks/tracking.py --quick    # check that the benchmark runs

Training steps are those of `ssfnas retrain` (`TrainPhase.step`). "Before" evaluates the network itself in batches of
256, as this program did it; "now" is `engine.predict`, which tracking and `evaluate` call. With compiled kernels, as in
tracking, it does not fold; without them, as in `evaluate`, it does, and it records the operations. "In bf16" is without
kernels (`evaluate --precision bf16`). All of them take turns, on one thread, and are timed by the processor time of the
process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from ssfnas_cli.main import SPIN_LIMIT

os.environ.setdefault(*SPIN_LIMIT)  # the program sets it, too, before torch is imported

import numpy as np
import paired
import report
import torch

from ssfnas_cli.artifacts.dataset import DataSet
from ssfnas_cli.artifacts.named import named_genotype
from ssfnas_cli.data.batches import Batch, normaliser, plain_batches
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.network import make_card
from ssfnas_cli.engine.predict import predict
from ssfnas_cli.engine.retrain import build_phases
from ssfnas_cli.engine.tracking import Tracking
from ssfnas_cli.engine.train_phase import TrainPhase
from ssfnas_cli.settings import RetrainSettings, load_settings

ROUNDS, NUM_IMAGES, OLD_BATCH, EVALUATIONS = 5, 256, 256, 5
# Names, and whether the compiled kernels compute the evaluation, too
NETWORKS = {
    "ResNet-32": ("resnet32", False),
    "DARTS_V2, C=16, 8 cells, tracked with compiled kernels": ("DARTS_V2", True),
    "DARTS_V2, C=16, 8 cells, evaluated without": ("DARTS_V2", False),
}
TEST_IMAGES = 10_000
EPOCHS = {"CIFAR10-LT, mu 0.1": 20_431, "mu 0.01": 12_406, "at most 1,000 a class, mu 0.1": 4_084}


class Rates(NamedTuple):
    """Seconds of processor time an image: of a training step, of the evaluation as it was, as it is, and in bf16."""

    train: float
    before: float
    now: float
    bf16: float


def make_phase(folder: Path, name: str, quick: bool) -> TrainPhase:
    """The training of a network on random images."""
    genotype = named_genotype(name)
    shape = {"channels": 4, "layers": 3} if quick else {"channels": 16, "layers": 8}
    flags = {"batch_size": 64, **(shape if genotype else {"network": name})}
    settings = load_settings(RetrainSettings, flags=flags).resolve_plugins()
    data = DataSet.open(folder / "data")
    (phase,), _ = build_phases(make_card(genotype, settings, data), settings, data, Device.from_settings(settings))
    return phase


@torch.no_grad()
def evaluate_as_before(phase: TrainPhase) -> None:
    """Logits of all images from the network that is trained."""
    phase.model.eval()
    for batch in plain_batches(phase.split, np.arange(len(phase.split)), OLD_BATCH, normaliser(phase.data)):
        phase.model(phase.device.move(batch).views[0])


def rounds(phase: TrainPhase, num: int, with_kernels: bool) -> Iterator[Rates]:
    """Time everything in turn, after a round to warm up. `with_kernels` is of the evaluation."""
    batches: list[Batch] = list(phase.batches(0, 0))
    images = sum(len(batch.labels) for batch in batches)

    def train() -> None:
        for number, batch in enumerate(batches):
            phase.step(0, number, batch)

    rows = np.arange(EVALUATIONS * len(phase.split)) % len(phase.split)  # enough batches to record the network
    in_bf16 = Device("cpu", 1, "bf16")

    def now(device: Device = phase.device) -> None:
        predict(phase.model, phase.split, normaliser(phase.data), device, rows)

    acts: tuple[Callable[[], None], ...] = (train, lambda: evaluate_as_before(phase), now, lambda: now(in_bf16))
    kernels = phase.device.cells
    for number in range(num + 1):
        seconds = []
        for place, act in enumerate(acts):
            phase.model.encoder.compile_with(kernels if place == 0 or (with_kernels and place < 3) else None)
            began = time.process_time()
            act()
            seconds.append((time.process_time() - began) / (images if place < 2 else len(rows)))
        if number:
            yield Rates(*seconds)


def share(ratios: list[float], trained: int) -> str:
    """What evaluating the test images takes of an epoch's training, in percent."""
    return f"{100 * statistics.median(ratios) * TEST_IMAGES / trained:.0f} %"


class _TestImages:
    """A data set with that many test images."""

    def split(self, name: str) -> range:
        return range(TEST_IMAGES)


def interval(trained: int) -> int:
    """Every how many epochs `track_every=auto` evaluates the test images."""
    settings = load_settings(RetrainSettings, flags={"track_test": True})
    return Tracking(settings, _TestImages(), ["test"], 150, trained).every  # type: ignore[arg-type]


def text(found: dict[str, list[Rates]]) -> str:
    """The section of docs/performance.md."""
    rows = []
    for name, rates in found.items():
        before, now = ([getattr(rate, side) / rate.train for rate in rates] for side in ("before", "now"))
        faster = [[rate.before / getattr(rate, side) for rate in rates] for side in ("now", "bf16")]
        milliseconds = [report.spread([1e3 * getattr(rate, field) for rate in rates]) for field in Rates._fields]
        rows.append([name, *milliseconds, *map(report.spread, (*faster, before, now))])
    header = ["network", "training, ms an image", "evaluation before", "now", "in bf16", "times faster now", "in bf16"]
    shares = []
    for title, trained in EPOCHS.items():
        each = []
        for rates in found.values():
            ratios = [rate.now / rate.train for rate in rates]
            each.append(f"{share(ratios, trained)}, {share([ratio / interval(trained) for ratio in ratios], trained)}")
        shares.append([f"{title}: {trained:,}", str(interval(trained)), *each])
    return f"""`python benchmarks/tracking.py`, {report.machine()}. 32x32 images, float32; {ROUNDS} rounds in turn, processor time of one thread.

{report.table([*header, "before over training", "now over training"], rows)}

What evaluating {TEST_IMAGES:,} test images takes of the training's time: if it is done every epoch, and with `track_every=auto`.

{report.table(["training images an epoch", "auto: every … epochs", *found], shares)}"""  # noqa: E501


def main() -> None:
    """Measure both networks and write the section."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as name:
        paired.random_images(Path(name), 64 if quick else NUM_IMAGES, 32)
        for title, (network, with_kernels) in NETWORKS.items():
            phase = make_phase(Path(name), network, quick)
            found[title] = list(rounds(phase, 1 if quick else ROUNDS, with_kernels))
    if quick:
        print(text(found))
    else:
        report.write_section("tracking", text(found))


if __name__ == "__main__":
    main()
