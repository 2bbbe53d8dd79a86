"""Batches by number. A batch depends only on (seed, epoch, step), so the position in the data is two integers.

Each use of the seed has its own stream of random numbers (`stream_seed`). The augmentation of an image is keyed by its
position in the epoch's order, so it depends neither on the process that loads it nor on interruptions of the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from registry.collective import Share, my_share
from ssfnas_cli.artifacts.dataset import DataSet, Split
from ssfnas_cli.data.augment import Augmentation, Normalise, to_float
from ssfnas_cli.data.loader import load_in_processes
from ssfnas_cli.data.mixing import Mixed, Mixing
from ssfnas_cli.data.policies import Policy
from ssfnas_cli.errors import InputError
from ssfnas_cli.settings import Training


class Batch(NamedTuple):
    """`views` are normalised images [N, C, H, W], one tensor per view; `labels` [N].

    `beside` are further views of the same images, for a self-supervised loss that stands beside the supervised one.
    `mixed` says what was mixed into `views`, if anything was; `labels` are those of the first images.
    `share` says which images of the global batch these are; None: all of them.
    """

    views: tuple[Tensor, ...]
    labels: Tensor
    beside: tuple[Tensor, ...] = ()
    mixed: Mixed | None = None
    share: Share | None = None


class SearchBatch(NamedTuple):
    """The batches of one step of a search: of the weight half, of the alpha half, and for a separate alpha head.

    `alpha_head` holds the images of `weights` with the views of the alphas' loss, or is None if there is no such head.
    """

    weights: Batch
    alphas: Batch
    alpha_head: Batch | None


@dataclass(frozen=True)
class Subset:
    """Some rows of a split and their augmentation. `seed` is the seed of a stream.

    `beside` has the same rows and makes further views of the same images.
    """

    split: Split
    indices: np.ndarray
    augment: Augmentation
    seed: int
    beside: Subset | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, places: np.ndarray, first_draw: int, epoch: int) -> Batch:
        """Make this rank's share of a batch.

        Args:
            places: positions of the batch's images in `indices`.
            first_draw: the position of its first image in the epoch's order of images.
            epoch: the epoch, on which the augmentation depends.
        """
        share = my_share(len(places))
        draws = first_draw + np.arange(len(places))
        mine = slice(None) if share is None else slice(share.start, share.stop)
        return self.images(places[mine], draws[mine], epoch)._replace(share=share)

    def images(self, places: np.ndarray, draws: np.ndarray, epoch: int) -> Batch:
        """The images at `places` in `indices`, which are at `draws` in the epoch's order of images."""
        rows = self.indices[places]
        views = self.augment(self.split.rows(rows), self.seed, epoch, draws)
        beside = () if self.beside is None else self.beside.images(places, draws, epoch).views
        return Batch(views, torch.from_numpy(self.split.labels[rows]), beside)


STREAMS = {
    "search weights": 0,
    "search alphas": 1,
    "search alpha head": 2,
    "pretrain": 3,
    "train": 4,
    "search weights beside": 5,
    "search alphas beside": 6,
    "train beside": 7,
    "train mixing": 8,
    "adjust": 16,
}


def stream_seed(seed: int, stream: str) -> int:
    """The seed of one of STREAMS. Different streams have independent random numbers."""
    mixed = np.random.SeedSequence([seed, STREAMS[stream]]).generate_state(1, np.uint64)
    return int(mixed[0] >> np.uint64(1))


def mirroring(data: DataSet, settings: Training) -> tuple[bool, str]:
    """Whether training mirrors images at random, and why."""
    if settings.flip != "auto":
        return settings.flip, "the setting 'flip' says so"
    source = data.manifest.source
    if data.manifest.mirrorable:
        return True, f"of source {source} a mirrored image keeps its class; if not here (text, signs): --set flip=false"
    return False, f"of source {source} a mirrored image may be of another class or of none; otherwise: --set flip=true"


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
    policy: Policy | None = None,
) -> Subset:
    """Rows of the training split with the augmentation of the settings. `stream` is one of STREAMS."""
    flip, _ = mirroring(data, settings)
    augment = Augmentation(num_views, normaliser(data), flip, cutout, settings.views, compiled, policy)
    return Subset(split, rows, augment, stream_seed(settings.seed, stream), beside)


def cut_batches(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Divide the order of an epoch into batches of at most `batch_size` images, whose sizes differ by at most one.

    A short last batch would cause a whole step along a noisy gradient. No batch has a single image, because batch
    statistics need two; three images with `batch_size` 2 are therefore one batch of three.
    """
    return np.array_split(order, num_batches(len(order), batch_size))


def num_batches(num: int, batch_size: int) -> int:
    """The number of batches that `cut_batches` returns."""
    return max(1, min(-(-num // batch_size), num // 2))


class TrainingBatches(Dataset):
    """The batches of one epoch of a subset, in the order of a sampler. Item k is batch k, mixed by `mixing`."""

    def __init__(self, subset: Subset, order: np.ndarray, batch_size: int, epoch: int, mixing: Mixing | None = None):
        self.subset, self.epoch, self.mixing = subset, epoch, mixing
        self.batches = cut_batches(order, batch_size)
        self.first_draws = np.cumsum([0, *map(len, self.batches)])

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Batch:
        places, first_draw = self.batches[number], int(self.first_draws[number])
        batch = self.subset.batch(places, first_draw, self.epoch)
        if self.mixing is None:
            return batch
        if batch.share is None:
            views, mixed = self.mixing(batch.views, batch.labels, self.epoch, number)
            return batch._replace(views=views, mixed=mixed)
        height, width = batch.views[0].shape[2:]
        plan = self.mixing.plan(len(places), (height, width), self.epoch, number)
        chosen = plan.partners[batch.share.start : batch.share.stop]  # they may be those of other ranks
        partners = replace(self.subset, beside=None).images(places[chosen], first_draw + chosen, self.epoch)
        views = tuple(plan.mix(view, other) for view, other in zip(batch.views, partners.views, strict=True))
        return batch._replace(views=views, mixed=Mixed(partners.labels, plan.share))


class BilevelBatches(Dataset):
    """The batches of one epoch of a search. Item k holds the batches of step k.

    The batch of the alpha half is drawn independently for each step, as in DARTS, so an epoch need not visit the whole
    half.

    Args:
        weights: batches of the weight half with the views of the weights' loss.
        alpha_half: the alpha half with the views of the alphas' loss.
        batch_size: images per batch of the alpha half.
        alpha_head: the weight half with the views of a separate head of the alphas' loss, which is trained on detached
            features; None if there is no such head.
        alpha_order: places in the alpha half in the order of a sampler. The steps go through it, and start over at its
            end. None means that every step draws from the whole half without repeats.
    """

    def __init__(
        self,
        weights: TrainingBatches,
        alpha_half: Subset,
        batch_size: int,
        alpha_head: Subset | None = None,
        alpha_order: np.ndarray | None = None,
    ):
        self.weights, self.alpha_half, self.alpha_head, self.alpha_order = weights, alpha_half, alpha_head, alpha_order
        self.batch_size = min(batch_size, len(alpha_half) if alpha_order is None else len(alpha_order))

    def __len__(self) -> int:
        return len(self.weights)

    def __getitem__(self, number: int) -> SearchBatch:
        half, epoch = self.alpha_half, self.weights.epoch
        alphas = half.batch(self._alpha_places(number), number * self.batch_size, epoch)
        alpha_head = None
        if self.alpha_head is not None:
            first = int(self.weights.first_draws[number])
            alpha_head = self.alpha_head.batch(self.weights.batches[number], first, epoch)
        return SearchBatch(self.weights[number], alphas, alpha_head)

    def _alpha_places(self, number: int) -> np.ndarray:
        half, epoch = self.alpha_half, self.weights.epoch
        if self.alpha_order is not None:
            draws = number * self.batch_size + np.arange(self.batch_size)
            return self.alpha_order[draws % len(self.alpha_order)]
        draw = np.random.Generator(np.random.Philox(key=[half.seed, epoch], counter=[0, 0, number, 1]))
        return draw.choice(len(half), self.batch_size, replace=False)


def load_batches(dataset: Dataset[Any], start: int, workers: int, max_time: float | None = None) -> Iterator[Any]:
    """Yield the items `start`, `start + 1`, ... of a dataset in order. If `workers` is 0, this process loads them.

    `max_time` is the time limit of the run (see `stop.requested_by`), which a wait for loader processes honours.
    """
    numbers = range(start, len(dataset))  # type: ignore[arg-type]
    if workers == 0:
        return (dataset[number] for number in numbers)
    return load_in_processes(dataset, numbers, workers, max_time)  # type: ignore[arg-type]


def plain_batches(
    split: Split, indices: Sequence[int] | np.ndarray, batch_size: int, normalise: Normalise
) -> Iterator[Batch]:
    """Yield batches without augmentation in the given order, for evaluation."""
    rows = np.asarray(indices, dtype=np.int64)
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        yield Batch((normalise(to_float(split.rows(part))),), torch.from_numpy(split.labels[part]))


def stratified_halves(labels: np.ndarray, class_names: Sequence[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide positions into a weight half and an alpha half, class by class. The weights get an odd image.

    Raises:
        InputError: a class has fewer than two images. The message names all such classes.
    """
    halves: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    small = [name for c, name in enumerate(class_names) if np.count_nonzero(labels == c) < 2]
    if small:
        listed = ", ".join(repr(name) for name in small)
        raise InputError(
            f"training split: too few images of {listed} for both halves of the search (2 needed): "
            "make a data set with more of them ('ssfnas make-dataset' says how), or without such classes"
        )
    for c in range(len(class_names)):
        members = np.flatnonzero(labels == c)
        order = np.random.Generator(np.random.Philox(key=[seed, 2], counter=[0, 0, c, 0])).permutation(members)
        cut = (len(order) + 1) // 2
        halves[0].append(order[:cut])
        halves[1].append(order[cut:])
    return np.sort(np.concatenate(halves[0])), np.sort(np.concatenate(halves[1]))


def normaliser(data: DataSet) -> Normalise:
    """The standardisation with the mean and std of the data set's training split."""
    return Normalise(tuple(data.mean), tuple(data.std))
