"""The linear probe beside a self-supervised loss: it reads the classes from features that do not learn from it."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from registry import collective
from registry.gpu import reported
from registry.optimizers import Optimizer
from ssfnas_cli.data.batches import Batch


def train_probe(
    probe: nn.Module, optimizer: Optimizer, sums: collective.GradientSums, features: Tensor, batch: Batch
) -> Any:
    """Take a step of the probe, and return its loss.

    Args:
        probe: a linear classifier.
        optimizer: of the probe's weights.
        sums: adds up their gradients over the ranks.
        features: [N, D], detached from the network.
        batch: the labels [N].
    """
    loss = collective.global_loss(F.cross_entropy(probe(features), batch.labels), batch.share)
    optimizer.zero_grad(set_to_none=True)
    with sums:
        loss.backward()
    optimizer.step()
    return reported(loss)
