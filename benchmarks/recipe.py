"""What the parts of a training recipe cost beside a training step: python benchmarks/recipe.py.

Everything runs on one thread, and the time is that of the processor, so that other processes disturb it little. The
sides alternate. Images are random pixels; only TrivialAugment's and RandAugment's draws decide what their ops cost.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import report
import torch
from input import BATCH, SIDE, make_data

from registry import NETWORKS
from ssfnas_cli.artifacts.dataset import DataSet
from ssfnas_cli.data.augment import Augmentation
from ssfnas_cli.data.batches import Subset, TrainingBatches, normaliser
from ssfnas_cli.data.mixing import Mixing
from ssfnas_cli.data.policies import Policy
from ssfnas_cli.engine.averaging import MovingAverage

ROUNDS, BATCHES, STEPS = 7, 20, 4
INPUTS: dict[str, tuple[Policy | None, Mixing | None]] = {
    "crop, mirror, cutout": (None, None),
    "with mixup": (None, Mixing(0.2, None, 0)),
    "with CutMix": (None, Mixing(None, 1.0, 0)),
    "with RandAugment (2 ops, magnitude 9)": (Policy("rand"), None),
    "with TrivialAugment": (Policy("trivial"), None),
}


def input_rate(data: DataSet, num: int, policy: Policy | None, mixing: Mixing | None) -> Callable[[int], float]:
    """A function from a round to the images per second of `num` batches."""
    split = data.split("train")
    subset = Subset(split, np.arange(len(split)), Augmentation(1, normaliser(data), True, 0.5, policy=policy), 0)

    def measure(number: int) -> float:
        batches = TrainingBatches(subset, np.random.default_rng(number).permutation(len(split)), BATCH, number, mixing)
        batches[0]
        began = time.process_time()
        for place in range(1, num + 1):
            batches[place]
        return num * BATCH / (time.process_time() - began)

    return measure


def step_rate(num: int) -> Callable[[int], float]:
    """A function to the images per second of `num` training steps of ResNet-32."""
    plugin = NETWORKS.get("resnet32")
    net = plugin.factory(plugin.parse_options(), in_channels=3, image_size=SIDE).to(memory_format=torch.channels_last)
    images = torch.rand(BATCH, 3, SIDE, SIDE).to(memory_format=torch.channels_last)

    def measure(number: int) -> float:
        began = time.process_time()
        for _ in range(num):
            net.zero_grad()
            net(images).features.sum().backward()
        return num * BATCH / (time.process_time() - began)

    return measure


def average_rate() -> Callable[[int], float]:
    """A function to the images per second of the moving average of ResNet-32's weights, once a batch."""
    plugin = NETWORKS.get("resnet32")
    net = plugin.factory(plugin.parse_options(), in_channels=3, image_size=SIDE)
    average = MovingAverage(net, 0.999)

    def measure(number: int) -> float:
        began = time.process_time()
        for _ in range(50):
            average.update(net)
        return 50 * BATCH / (time.process_time() - began)

    return measure


def main() -> None:
    """Time all sides alternately, and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="one round, printed and not written")
    quick = parser.parse_args().quick
    num_batches, num_steps = (2, 1) if quick else (BATCHES, STEPS)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder), BATCH * (num_batches + 1))
        sides = {name: input_rate(data, num_batches, *parts) for name, parts in INPUTS.items()}
        sides["a training step of ResNet-32, for comparison"] = step_rate(num_steps)
        sides["the moving average of ResNet-32's weights, each step"] = average_rate()
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(1 if quick else ROUNDS):
            for name, measure in sides.items():
                rates[name].append(measure(number))
    rows = [[name, report.spread(values, 0)] for name, values in rates.items()]
    body = f"""`benchmarks/recipe.py`: batches of {BATCH} images of {SIDE}x{SIDE}x3 for a supervised loss, one thread;
{ROUNDS} rounds in turn. The rates are images per second of processor time.

{report.table(["what is done", "images a second"], rows)}

{report.machine()}"""
    if quick:
        print(body)
    else:
        report.write_section("recipe", body)


if __name__ == "__main__":
    main()
