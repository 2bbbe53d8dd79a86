"""The optimizer that the settings of a retraining ask for: which weights decay, momentum, the rate at each step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from registry.optimizers import SGD, Optimizer
from ssfnas_cli.engine.loop import cosine
from ssfnas_cli.settings import RetrainSettings


def build_optimizer(
    weights: Sequence[Tensor], lr: float, settings: RetrainSettings, name: str = "sgd"
) -> Optimizer | torch.optim.Optimizer:
    """The optimizer of a phase: `sgd`, or `adamw` with its usual betas, whose decay is not in the gradient.

    Without the setting `decay_bn`, weights of one dimension do not decay: these are the biases, and the scales of
    normalisations.
    """
    decay = settings.weight_decay
    groups = [{"params": list(weights), "weight_decay": decay}]
    if not settings.decay_bn:
        vectors = [weight for weight in weights if weight.ndim <= 1]
        others = [weight for weight in weights if weight.ndim > 1]
        groups = [{"params": others, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr)
    return SGD(groups, lr, momentum=settings.momentum, nesterov=settings.nesterov)


def learning_rate(
    lr: float, lr_min: float, epoch: int, step: int, num_steps: int, epochs: int, warmup_epochs: int = 0
) -> float:
    """The rate of a step: a straight rise to `lr` during the warm-up, then a cosine from `lr` to `lr_min`.

    Args:
        lr: is reached at the last step of the warm-up, and is the rate of the step after it.
        epoch: counted from 0, as `step` of its `num_steps` is.
    """
    if epoch < warmup_epochs:
        return lr * (epoch + (step + 1) / num_steps) / warmup_epochs
    return cosine(lr, lr_min, (epoch + step / num_steps - warmup_epochs) / (epochs - warmup_epochs))
