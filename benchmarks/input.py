"""Compare our augmentation of two views per image at 32x32 with the usual pipeline: python benchmarks/input.py.

The usual pipeline is that of the public implementations: torchvision's transforms on one PIL image at a time, in a
DataLoader with two workers. Both sides have the same probabilities: resized crop (0.2 to 1 of the area), mirroring,
colour jitter (0.8), gray (0.2), solarize (0.2, second view) and normalisation, without blur at this size. Before
anything is timed, the benchmark checks that our images do not depend on workers, threads or batches.
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

os.environ.setdefault(*SPIN_LIMIT)  # the program sets it, too, before torch is imported

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
NUM_IMAGES = 50_000  # like CIFAR
USUAL_BATCHES, OUR_BATCHES = 60, 600  # timed in each round; they take some seconds


class PilViews(Dataset):
    """The usual data set, whose items are PIL images after a list of transforms."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, views: list[transforms.Compose]):
        self.images, self.labels, self.views = images, labels, views

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[list[torch.Tensor], int]:
        image = Image.fromarray(self.images[index])
        return [view(image) for view in self.views], int(self.labels[index])


def usual_view(view: int, data: DataSet, options: Views) -> transforms.Compose:
    """The transforms of Barlow Twins at 32x32, with the probabilities and strengths of our settings."""
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


def make_data(folder: Path, num_images: int = NUM_IMAGES) -> DataSet:
    """Make a data set of random pixels in our format. The time does not depend on the content of the images."""
    draw = np.random.default_rng(0)
    arrays = {}
    for split, count in {"train": num_images, "val": 100, "test": 100}.items():
        arrays[f"{split}_images"] = draw.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 10)[:, None].astype(np.uint8)
    np.savez(folder / "random.npz", **arrays)
    settings = MakeDatasetSettings(source="npz", root=str(folder / "random.npz"), dist="natural")
    return build_dataset(settings, folder / "data", lambda line: None)


def rate(batches: Iterator[Any], num: int) -> float:
    """Images per second of `num` batches after the first one, which excludes the start of the workers on both sides."""
    next(batches)
    began = time.perf_counter()
    received = sum(1 for _ in islice(batches, num))
    seconds = time.perf_counter() - began
    assert received == num
    return num * BATCH / seconds


def check(subset: Subset) -> None:
    """Check that images are bit-equal with any number of workers and threads, and in any batch."""
    dataset = TrainingBatches(subset, np.arange(len(subset)), BATCH, epoch=0)
    expected = [batch.views for batch in islice(load_batches(dataset, 0, 0), 20)]
    for workers in (1, WORKERS):
        for views, batch in zip(expected, load_batches(dataset, 0, workers), strict=False):
            assert all(map(torch.equal, views, batch.views)), f"{workers} workers give another batch"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = subset.indices[dataset.batches[0]]
    for size in (1, 3, 17):
        part = subset.batch(rows[:size], 0, 0)
        assert all(torch.equal(view[:size], other) for view, other in zip(expected[0], part.views, strict=True))
    torch.set_num_threads(threads)


def main() -> None:
    """Check our images, time all pipelines alternately, and write the table."""
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
    """The whole training split with two views."""
    split = data.split("train")
    augment = Augmentation(2, normaliser(data), flip=True, compiled=compiled)
    return Subset(split, np.arange(len(split)), augment, seed=0)


def ours(subset: Subset, workers: int) -> float:
    """Images per second of our pipeline, called as by a search."""
    return rate(load_batches(TrainingBatches(subset, np.arange(len(subset)), BATCH, epoch=1), 0, workers), OUR_BATCHES)


def text(rates: dict[str, list[float]]) -> str:
    """The section of docs/performance.md."""
    usual = next(iter(rates.values()))
    rows = []
    for name, values in rates.items():
        ratios = [ours / theirs for ours, theirs in zip(values, usual, strict=True)]
        rows.append([name, report.spread(values, 0), report.spread(ratios, 1)])
    return f"""`benchmarks/input.py`: two augmented views per image (Barlow Twins: resized crop, mirror, colour jitter 0.8, gray 0.2,
solarize 0.2 in the second view, normalisation; no blur), {SIDE}x{SIDE}x3, batches of {BATCH}. The pipelines alternate for {ROUNDS} rounds.
A round times {USUAL_BATCHES} batches of the usual pipeline and {OUR_BATCHES} of ours, after the first batch. The usual pipeline is
torchvision's transforms on one PIL image at a time in a DataLoader with {WORKERS} workers. Ours is the one that a search calls, and
it begins at the memory map of the data set. Both have the same probabilities. Without workers, the training process makes the
batches. With workers, the transfer between processes (1.6 MB per batch) limits our pipeline. The benchmark also checked that our
images were bit-equal with no, 1 and {WORKERS} workers, in batches of 1, 3, 17 and {BATCH}, on one thread and on all.

{report.table(["pipeline", "images a second", "times the usual"], rows)}

{report.machine()}"""  # noqa: E501


if __name__ == "__main__":
    main()
