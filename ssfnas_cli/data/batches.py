"""Batches by number: what a step sees is a function of (seed, epoch, step), so a cursor is two integers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssfnas_cli import stop
from ssfnas_cli.artifacts.dataset import DataSet, Split
from ssfnas_cli.data.augment import Augmentation, Normalise, to_float
from ssfnas_cli.errors import InputError
from ssfnas_cli.settings import Training


class Batch(NamedTuple):
    """`views` are normalised images [N, C, H, W], one tensor per view; `labels` [N]."""

    views: tuple[Tensor, ...]
    labels: Tensor


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


def cut_batches(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """An epoch's order, cut into batches; a lone last image joins the batch before it.

    (Batch statistics and Barlow's correlation need at least two images.)
    """
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        lone = batches.pop()
        batches[-1] = np.concatenate([batches[-1], lone])
    return batches


def num_batches(num: int, batch_size: int) -> int:
    """How many batches `cut_batches` gives."""
    full, rest = divmod(num, batch_size)
    return full + (rest > 1 or (rest == 1 and full == 0))


class TrainingBatches(Dataset):
    """One epoch of a subset, in the order of a sampler; item k is batch k."""

    def __init__(self, subset: Subset, order: np.ndarray, batch_size: int, epoch: int):
        self.subset, self.epoch = subset, epoch
        self.batches = cut_batches(order, batch_size)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Batch:
        return self.subset.batch(self.subset.indices[self.batches[number]], self.epoch)


class BilevelBatches(Dataset):
    """One epoch of a search; item k is the weight half's batch k and a batch redrawn from the alpha half.

    The redraw at every step is DARTS's, so the alpha half is sampled, not swept.
    """

    def __init__(self, weight_batches: TrainingBatches, alpha_half: Subset, batch_size: int):
        self.weight_batches, self.alpha_half, self.batch_size = weight_batches, alpha_half, batch_size
        self.epoch = weight_batches.epoch

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
    leave = stop.leave_to_main_process
    return iter(DataLoader(dataset, batch_size=None, sampler=numbers, num_workers=workers, worker_init_fn=leave))


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
