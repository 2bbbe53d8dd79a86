"""Inference over the images of a split."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ssfnas_cli.artifacts.dataset import Split
from ssfnas_cli.data.augment import Normalise
from ssfnas_cli.data.batches import plain_batches
from ssfnas_cli.engine.device import Device
from ssfnas_cli.nets.folding import for_evaluation

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
    scores, labels = [], []
    network: Callable[[Tensor], Tensor] | None = score
    for batch in plain_batches(split, np.arange(len(split)) if rows is None else rows, batch_size, normalise):
        (images,), moved_labels = device.move(batch)[:2]
        network = network or for_evaluation(model, images[:2])
        with device.autocast():
            scores.append(network(images).float().cpu().numpy())
        labels.append(moved_labels.cpu().numpy())
    return np.concatenate(scores), np.concatenate(labels)


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Top-1 accuracy in percent."""
    return 100 * int((scores.argmax(1) == labels).sum()) / len(labels)
