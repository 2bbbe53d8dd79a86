"""Batches by number: what a step sees is a function of (seed, epoch, step), so a cursor is two integers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ssfnas_cli.artifacts.dataset import DataSet, Split
from ssfnas_cli.data.augment import (
    Normalise,
    crop_and_flip,
    cutout,
    draw_view,
    sample_uniforms,
    self_supervised_view,
    to_float,
)
from ssfnas_cli.data.loader import load_in_processes
from ssfnas_cli.errors import InputError
from ssfnas_cli.native.views import load as load_kernels
from ssfnas_cli.settings import Training, Views

DEFAULT_VIEWS = Views()


class Batch(NamedTuple):
    """`views` are normalised images [N, C, H, W], one tensor per view; `labels` [N]."""

    views: tuple[Tensor, ...]
    labels: Tensor


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training image before the network sees it."""

    num_views: int
    normalise: Normalise
    flip: bool
    cutout: float = 0.0
    views: Views = DEFAULT_VIEWS
    compiled: bool = False
    """Whether compiled kernels make the views where there is a compiler; they differ from torch's in the last bits."""

    def __post_init__(self) -> None:
        if self.compiled:
            load_kernels()  # compiled once, here, and not by every loader process

    def __call__(self, images: np.ndarray, seed: int, epoch: int, samples: np.ndarray) -> tuple[Tensor, ...]:
        """uint8 [N, H, W, C] of these samples -> one normalised tensor per view, in channels-last memory."""
        uniforms = sample_uniforms(seed, epoch, samples, self.num_views)
        if self.num_views == 1:
            normal = self.normalise(to_float(crop_and_flip(images, uniforms[0], self.flip)))
            return (cutout(normal, uniforms[0], self.cutout),)
        shape = images.shape[1:]
        drawn = [draw_view(uniforms[view], view, self.views, self.flip, *shape) for view in range(self.num_views)]
        kernels = load_kernels() if self.compiled else None
        if kernels:
            mean, std = self.normalise.arrays()
            return tuple(kernels.render(images, **vars(view), mean=mean, std=std) for view in drawn)
        pixels = to_float(images)
        return tuple(self.normalise(self_supervised_view(pixels, view)) for view in drawn)


@dataclass(frozen=True)
class Subset:
    """Some rows of a split, and how a batch of them is made."""

    split: Split
    indices: np.ndarray
    augment: Augmentation
    seed: int

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, rows: np.ndarray, epoch: int) -> Batch:
        """The batch of these rows of the split, augmented for this epoch."""
        views = self.augment(self.split.rows(rows), self.seed, epoch, rows)
        return Batch(views, torch.from_numpy(self.split.labels[rows]))


def training_subset(
    data: DataSet,
    split: Split,
    rows: np.ndarray,
    settings: Training,
    num_views: int,
    cutout: float = 0.0,
    compiled: bool = False,
) -> Subset:
    """Rows of a data set's training split, augmented as a training's settings say."""
    flip = data.manifest.mirrorable if settings.flip == "auto" else settings.flip
    augment = Augmentation(num_views, normaliser(data), flip, cutout, settings.views, compiled)
    return Subset(split, rows, augment, settings.seed)


def shuffled_batches(num: int, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Positions 0..num-1 in this epoch's order, cut into batches; a lone last image joins the batch before it.

    (Batch statistics and Barlow's correlation need at least two images.)
    """
    order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(num)
    batches = [order[start : start + batch_size] for start in range(0, num, batch_size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        lone = batches.pop()
        batches[-1] = np.concatenate([batches[-1], lone])
    return batches


def num_batches(num: int, batch_size: int) -> int:
    """How many batches `shuffled_batches` gives."""
    full, rest = divmod(num, batch_size)
    return full + (rest > 1 or (rest == 1 and full == 0))


class TrainingBatches(Dataset):
    """One epoch of a subset; item k is batch k."""

    def __init__(self, subset: Subset, batch_size: int, epoch: int):
        self.subset, self.epoch = subset, epoch
        self.batches = shuffled_batches(len(subset), batch_size, subset.seed, epoch)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Batch:
        return self.subset.batch(self.subset.indices[self.batches[number]], self.epoch)


class BilevelBatches(Dataset):
    """One epoch of a search; item k is the weight half's batch k and a batch redrawn from the alpha half.

    The redraw at every step is DARTS's, so the alpha half is sampled, not swept.
    """

    def __init__(self, weight_half: Subset, alpha_half: Subset, batch_size: int, epoch: int):
        self.weight_batches = TrainingBatches(weight_half, batch_size, epoch)
        self.alpha_half, self.batch_size, self.epoch = alpha_half, batch_size, epoch

    def __len__(self) -> int:
        return len(self.weight_batches)

    def __getitem__(self, number: int) -> tuple[Batch, Batch]:
        half = self.alpha_half
        draw = np.random.Generator(np.random.Philox(key=[half.seed, self.epoch], counter=[0, 0, number, 1]))
        rows = half.indices[draw.choice(len(half), min(self.batch_size, len(half)), replace=False)]
        return self.weight_batches[number], half.batch(rows, self.epoch)


def load_from(dataset: Dataset[Any], start: int, workers: int) -> Iterator[Any]:
    """Items `start`, `start + 1`, ... of a dataset of batches, in order, whoever loads them."""
    numbers = range(start, len(dataset))  # type: ignore[arg-type]
    if workers == 0:
        return (dataset[number] for number in numbers)
    return load_in_processes(dataset, numbers, workers)  # type: ignore[arg-type]


def plain_batches(
    split: Split, indices: Sequence[int] | np.ndarray, batch_size: int, normalise: Normalise
) -> Iterator[Batch]:
    """Unaugmented batches in the order given, for evaluation."""
    rows = np.asarray(indices, dtype=np.int64)
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        yield Batch((normalise(to_float(split.rows(part))),), torch.from_numpy(split.labels[part]))


def stratified_halves(labels: np.ndarray, class_names: Sequence[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split positions into a weight half and an alpha half, class by class; an odd image goes to the weights.

    Raises:
        InputError: naming every class too small to be in both.
    """
    halves: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    small = [name for c, name in enumerate(class_names) if np.count_nonzero(labels == c) < 2]
    if small:
        listed = ", ".join(repr(name) for name in small)
        raise InputError(
            f"training split: too few images of {listed} for both halves of the search (2 needed): "
            "raise --mu or --max-per-class in make-dataset"
        )
    for c in range(len(class_names)):
        members = np.flatnonzero(labels == c)
        order = np.random.Generator(np.random.Philox(key=[seed, 2], counter=[0, 0, c, 0])).permutation(members)
        cut = (len(order) + 1) // 2
        halves[0].append(order[:cut])
        halves[1].append(order[cut:])
    return np.sort(np.concatenate(halves[0])), np.sort(np.concatenate(halves[1]))


def normaliser(data: DataSet) -> Normalise:
    """The standardisation by a data set's training statistics."""
    return Normalise(tuple(data.mean), tuple(data.std))
