"""Batches by number: what a step sees is a function of (seed, epoch, step), so a cursor is two integers.

Every use of a seed has a stream of random numbers of its own (`stream_seed`). What happens to an image is keyed by the
place of its draw in the epoch's order, so it is the same whoever loads it and wherever a run was interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ssfnas_cli.artifacts.dataset import DataSet, Split
from ssfnas_cli.data.augment import Augmentation, Normalise, to_float
from ssfnas_cli.data.loader import load_in_processes
from ssfnas_cli.errors import InputError
from ssfnas_cli.settings import Training


class Batch(NamedTuple):
    """`views` are normalised images [N, C, H, W], one tensor per view; `labels` [N].

    `beside` are further views of the same images, for a self-supervised loss that stands beside the supervised one.
    """

    views: tuple[Tensor, ...]
    labels: Tensor
    beside: tuple[Tensor, ...] = ()


class SearchBatch(NamedTuple):
    """What one step of a search sees: a batch of the weight half, one of the alpha half, and the first one `apart`."""

    weights: Batch
    alphas: Batch
    apart: Batch | None


@dataclass(frozen=True)
class Subset:
    """Some rows of a split, and how a batch of them is made. `seed` is that of a stream.

    `beside` makes the further views of the same images; it has the same rows.
    """

    split: Split
    indices: np.ndarray
    augment: Augmentation
    seed: int
    beside: Subset | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, places: np.ndarray, first_draw: int, epoch: int) -> Batch:
        """The batch of the images at these places in `indices`.

        Args:
            first_draw: the place of the batch's first image in the order in which the epoch shows images.
        """
        rows = self.indices[places]
        draws = np.arange(first_draw, first_draw + len(rows))
        views = self.augment(self.split.rows(rows), self.seed, epoch, draws)
        beside = () if self.beside is None else self.beside.batch(places, first_draw, epoch).views
        return Batch(views, torch.from_numpy(self.split.labels[rows]), beside)


STREAMS = {
    "search weights": 0,
    "search alphas": 1,
    "search apart": 2,
    "pretrain": 3,
    "train": 4,
    "search weights beside": 5,
    "search alphas beside": 6,
    "train beside": 7,
}


def stream_seed(seed: int, stream: str) -> int:
    """The seed of one of STREAMS: none of them shares random numbers with another."""
    mixed = np.random.SeedSequence([seed, STREAMS[stream]]).generate_state(1, np.uint64)
    return int(mixed[0] >> np.uint64(1))


def training_subset(
    data: DataSet,
    split: Split,
    rows: np.ndarray,
    settings: Training,
    stream: str,
    num_views: int,
    cutout: float = 0.0,
    compiled: bool = False,
    beside: Subset | None = None,
) -> Subset:
    """Rows of a data set's training split, augmented as a training's settings say; `stream` is one of STREAMS."""
    flip = data.manifest.mirrorable if settings.flip == "auto" else settings.flip
    augment = Augmentation(num_views, normaliser(data), flip, cutout, settings.views, compiled)
    return Subset(split, rows, augment, stream_seed(settings.seed, stream), beside)


def cut_batches(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """An epoch's order, cut into batches of at most `batch_size` whose sizes differ by at most one image.

    A short last batch would be a whole step in the direction of its noise. No batch has a single image, over which
    nothing can be averaged, so three images in batches of two are one batch of three.
    """
    return np.array_split(order, num_batches(len(order), batch_size))


def num_batches(num: int, batch_size: int) -> int:
    """How many batches `cut_batches` gives."""
    return max(1, min(-(-num // batch_size), num // 2))


class TrainingBatches(Dataset):
    """One epoch of a subset, in the order of a sampler; item k is batch k."""

    def __init__(self, subset: Subset, order: np.ndarray, batch_size: int, epoch: int):
        self.subset, self.epoch = subset, epoch
        self.batches = cut_batches(order, batch_size)
        self.first_draws = np.cumsum([0, *map(len, self.batches)])

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Batch:
        return self.subset.batch(self.batches[number], int(self.first_draws[number]), self.epoch)


class BilevelBatches(Dataset):
    """One epoch of a search; item k holds what step k sees.

    The alpha half's batch is redrawn at every step, as in DARTS, so that half is sampled, not swept.

    Args:
        weights: the weight half, with the views of the weights' loss.
        alpha_half: with the views of the alphas' loss.
        alpha_order: places in the alpha half in a sampler's order, which the steps go through, and through again from
            its beginning once it is used up. None: every step draws from the whole half, without repeats.
        apart: the weight half's images again, with the views of a head that is trained on detached features; None if
            there is no such head.
    """

    def __init__(
        self,
        weights: TrainingBatches,
        alpha_half: Subset,
        batch_size: int,
        apart: Subset | None = None,
        alpha_order: np.ndarray | None = None,
    ):
        self.weights, self.alpha_half, self.apart, self.alpha_order = weights, alpha_half, apart, alpha_order
        self.batch_size = min(batch_size, len(alpha_half) if alpha_order is None else len(alpha_order))

    def __len__(self) -> int:
        return len(self.weights)

    def __getitem__(self, number: int) -> SearchBatch:
        half, epoch = self.alpha_half, self.weights.epoch
        alphas = half.batch(self._alpha_places(number), number * self.batch_size, epoch)
        apart = None
        if self.apart is not None:
            first = int(self.weights.first_draws[number])
            apart = self.apart.batch(self.weights.batches[number], first, epoch)
        return SearchBatch(self.weights[number], alphas, apart)

    def _alpha_places(self, number: int) -> np.ndarray:
        half, epoch = self.alpha_half, self.weights.epoch
        if self.alpha_order is not None:
            draws = number * self.batch_size + np.arange(self.batch_size)
            return self.alpha_order[draws % len(self.alpha_order)]
        draw = np.random.Generator(np.random.Philox(key=[half.seed, epoch], counter=[0, 0, number, 1]))
        return draw.choice(len(half), self.batch_size, replace=False)


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
