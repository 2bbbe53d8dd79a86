"""Two augmented views an image at 32x32, ours against the usual pipeline, in turn: python benchmarks/input.py.

The usual one is what the public implementations do: torchvision's transforms on one PIL image at a time, in a
DataLoader with two workers. The probabilities are the same on both sides: resized crop (0.2 to 1 of the area),
mirroring, colour jitter (0.8), gray (0.2), solarize (0.2, second view), normalisation; no blur at this size. Before
anything is timed, the run checks that no image of ours depends on workers, threads or batch.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from ssfnas_cli.main import SPIN_LIMIT

os.environ.setdefault(*SPIN_LIMIT)  # as the program itself does, before torch is imported

import numpy as np
import report
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from ssfnas_cli.artifacts.dataset import DataSet
from ssfnas_cli.data.augment import Augmentation
from ssfnas_cli.data.batches import Subset, TrainingBatches, load_batches, normaliser
from ssfnas_cli.data.build import build_dataset
from ssfnas_cli.settings import MakeDatasetSettings, Views

SIDE, BATCH, WORKERS, ROUNDS = 32, 64, 2, 7
NUM_IMAGES = 50_000  # as CIFAR
USUAL_BATCHES, OUR_BATCHES = 60, 600  # timed, per round: some seconds each


class PilViews(Dataset):
    """The usual data set: one image an item, as PIL, through a list of transforms."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, views: list[transforms.Compose]):
        self.images, self.labels, self.views = images, labels, views

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[list[torch.Tensor], int]:
        image = Image.fromarray(self.images[index])
        return [view(image) for view in self.views], int(self.labels[index])


def usual_view(view: int, data: DataSet, options: Views) -> transforms.Compose:
    """Barlow Twins's transforms at 32x32, with our settings' probabilities and strengths."""
    jitter = transforms.ColorJitter(options.brightness, options.contrast, options.saturation, options.hue)
    steps = [
        transforms.RandomResizedCrop(SIDE, scale=(options.min_scale, 1.0)),
        transforms.RandomHorizontalFlip(),
        transforms.RandomApply([jitter], p=options.jitter_probability),
        transforms.RandomGrayscale(options.gray_probability),
    ]
    if view == 1:
        steps.append(transforms.RandomSolarize(128, options.solarize_probability))
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(data.mean, data.std)])


def make_data(folder: Path) -> DataSet:
    """A data set of random pixels, in our format: the work does not depend on what the images show."""
    draw = np.random.default_rng(0)
    arrays = {}
    for split, count in {"train": NUM_IMAGES, "val": 100, "test": 100}.items():
        arrays[f"{split}_images"] = draw.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 10)[:, None].astype(np.uint8)
    np.savez(folder / "random.npz", **arrays)
    plan = MakeDatasetSettings(source="npz", root=str(folder / "random.npz"), dist="natural")
    return build_dataset(plan, folder / "data", lambda line: None)


def rate(batches: Iterator[Any], num: int) -> float:
    """Images a second of `num` batches, once the first is there: the start of the workers is left out on both sides."""
    next(batches)
    began = time.perf_counter()
    received = sum(1 for _ in islice(batches, num))
    seconds = time.perf_counter() - began
    assert received == num
    return num * BATCH / seconds


def check(subset: Subset) -> None:
    """Bit-equal whatever the workers, the threads and the batch."""
    dataset = TrainingBatches(subset, np.arange(len(subset)), BATCH, epoch=0)
    alone = [batch.views for batch in islice(load_batches(dataset, 0, 0), 20)]
    for workers in (1, WORKERS):
        for views, batch in zip(alone, load_batches(dataset, 0, workers), strict=False):
            assert all(map(torch.equal, views, batch.views)), f"{workers} workers give another batch"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = subset.indices[dataset.batches[0]]
    for size in (1, 3, 17):
        part = subset.batch(rows[:size], 0, 0)
        assert all(torch.equal(view[:size], other) for view, other in zip(alone[0], part.views, strict=True))
    torch.set_num_threads(threads)


def main() -> None:
    """Check, time all in turn, write the table."""
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder))
        subsets = {compiled: our_subset(data, compiled) for compiled in (True, False)}
        for subset in subsets.values():
            check(subset)
        split = data.split("train")
        views = [usual_view(view, data, Views()) for view in (0, 1)]
        usual = PilViews(split.rows(np.arange(len(split))), split.labels, views)

        def theirs() -> float:
            return rate(iter(DataLoader(usual, BATCH, shuffle=True, num_workers=WORKERS)), USUAL_BATCHES)

        sides: dict[str, Callable[[], float]] = {f"torchvision on PIL images, {WORKERS} workers": theirs}
        for name, compiled in (("compiled", True), ("torch", False)):
            for workers in (0, WORKERS):
                sides[f"ours, {name}, {workers or 'no'} workers"] = partial(ours, subsets[compiled], workers)
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(ROUNDS):
            for name, run in sides.items():
                rates[name].append(run())
    report.write_section("input", text(rates))


def our_subset(data: DataSet, compiled: bool) -> Subset:
    """The whole training split in two views."""
    split = data.split("train")
    augment = Augmentation(2, normaliser(data), flip=True, compiled=compiled)
    return Subset(split, np.arange(len(split)), augment, seed=0)


def ours(subset: Subset, workers: int) -> float:
    """Images a second, through the same function as a search."""
    return rate(load_batches(TrainingBatches(subset, np.arange(len(subset)), BATCH, epoch=1), 0, workers), OUR_BATCHES)


def text(rates: dict[str, list[float]]) -> str:
    """The section of the page."""
    usual = next(iter(rates.values()))
    rows = []
    for name, values in rates.items():
        ratios = [one / other for one, other in zip(values, usual, strict=True)]
        rows.append([name, report.spread(values, 0), report.spread(ratios, 1)])
    return f"""`benchmarks/input.py`: two augmented views an image (Barlow Twins: resized crop, mirror, colour jitter 0.8, gray 0.2,
solarize 0.2 in the second view, normalisation; no blur), {SIDE}x{SIDE}x3, batches of {BATCH}, {ROUNDS} rounds in turn; a round
times {USUAL_BATCHES} batches of the usual pipeline and {OUR_BATCHES} of ours, from the first batch on. The usual pipeline is
torchvision's transforms on one PIL image at a time in a DataLoader with {WORKERS} workers, ours what a search calls, from the
data set's memory map on. Both draw with the same probabilities. Without workers the batches are made in the training
process; with workers, what limits ours is the way from process to process (1.6 MB a batch). In the same run, our images
were bit-equal with no, 1 and {WORKERS} workers, in batches of 1, 3, 17 and {BATCH}, on one thread and on all.

{report.table(["pipeline", "images a second", "times the usual"], rows)}

{report.machine()}"""  # noqa: E501


if __name__ == "__main__":
    main()
