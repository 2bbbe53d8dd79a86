"""Inference over the images of a split."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from registry import collective
from ssfnas_cli.artifacts.dataset import Split
from ssfnas_cli.data.augment import Normalise
from ssfnas_cli.data.batches import plain_batches
from ssfnas_cli.engine.device import Device
from ssfnas_cli.nets.evaluation import Evaluated

BATCH_SIZE = 128  # the maps of larger batches leave the processor's caches, and each image takes longer

Scores = tuple[np.ndarray, np.ndarray]  # class scores [N, C] and labels [N]


@torch.no_grad()
def predict(
    model: nn.Module,
    split: Split,
    normalise: Normalise,
    device: Device,
    rows: np.ndarray | None = None,
    score: Callable[[Tensor], Tensor] | None = None,
    batch_size: int = BATCH_SIZE,
) -> Scores:
    """Class scores [N, num_classes] (logits) and labels [N] of the images of a split, in order.

    Several ranks divide the images among them, and each of them gets the scores of all.

    Args:
        model: the network, which is put into evaluation mode; a copy of it may be what computes.
        split: where the images are.
        normalise: the standardisation of the images.
        device: where to compute.
        rows: the images of the split to use; None means all.
        score: maps images [N, C, H, W] to scores; None means the model.
        batch_size: images per batch.
    """
    model.eval()
    rows = np.arange(len(split)) if rows is None else rows
    share = collective.my_share(len(rows))
    if share is not None and len(rows) < collective.size():
        share = None  # too few to divide: every rank computes them all
    mine = rows if share is None else rows[share.start : share.stop]
    scores: list[Tensor] = []
    network: Callable[[Tensor], Tensor] | None = score
    for batch in plain_batches(split, mine, batch_size, normalise):
        images = device.move(batch).views[0]
        network = network or Evaluated(model, images[:2], device.reduces())
        with device.autocast():
            scores.append(network(images).float().cpu())
    if share is not None:
        return collective.gather_rows(torch.cat(scores), len(rows)).numpy(), split.labels[rows]
    return np.concatenate([part.numpy() for part in scores]), split.labels[rows]


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Top-1 accuracy in percent."""
    return 100 * int((scores.argmax(1) == labels).sum()) / len(labels)


def balanced_accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """The mean of the accuracies of the classes that occur, in percent."""
    right = scores.argmax(1) == labels
    return 100 * float(np.mean([float(right[labels == label].mean()) for label in np.unique(labels)]))
