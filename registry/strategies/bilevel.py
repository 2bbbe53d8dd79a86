"""The alpha step of the bilevel problem (paper, Eq. 2 and 3), to first and to second order.

Losses are closures that run the network on a fixed batch. Weights and alphas are leaf tensors that the closures use.
Trial steps restore the weights bit for bit. The caller makes sure that they do not change the running statistics.
On several ranks, the losses sum the gradients of what they are given (the mixing weights), and this module sums those
of the weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor

from registry import collective, gpu
from registry.strategies.base import WeightStep

Loss = Callable[[], Tensor]


def first_order(val_loss: Loss, alphas: Sequence[Tensor]) -> tuple[list[Tensor], float]:
    """Gradient of L_val(w, alpha) with respect to the alphas at the current weights (xi = 0), and the loss."""
    loss = val_loss()
    return _gradients(loss, list(alphas)), gpu.reported(loss)


def second_order(
    train_loss: Loss,
    val_loss: Loss,
    groups: Sequence[Sequence[Tensor]],
    alphas: Sequence[Tensor],
    step: WeightStep,
    radius: float = 0.01,
) -> tuple[list[Tensor], float]:
    """Gradient of L_val(w', alpha) with respect to the alphas, w' being the weights after the SGD step on L_train.

    With g = grad_w L_train(w, alpha), |g| its norm and c = min(1, clip / |g|), the step is

        w' = w - xi (momentum v + c g + weight_decay w)

    The product with the mixed second derivative is a central difference (DARTS, Eq. 7 and 8; cnn/architect.py of its
    public code). Its direction u is h = grad_w' L_val times the transposed Jacobian of the clipping:

        d_alpha L_val(w', alpha) - xi * (d_alpha L_train(w + R u) - d_alpha L_train(w - R u)) / (2 R)
        u = c (h - n (n . h)) with n = g / |g| if the gradient is clipped, else u = h;  R = radius / |u|

    DARTS's code ignores the clipping, so its w' is not the one that the weights reach: with a sigmoid relaxation or
    Barlow Twins, the norm is far above 5.

    Args:
        groups: the weights, in groups whose gradients are clipped separately.
        step: the SGD step; its momenta are in the order of the weights.

    Returns:
        A gradient for each tensor of alphas, and L_val(w', alpha).
    """
    weights, alphas = list(chain.from_iterable(groups)), list(alphas)
    sizes = [len(group) for group in groups]
    gradients = _gradients(train_loss(), weights)
    collective.sum_in_place(gradients)
    clipped = [_clip(part, step.clip) for part in _split(gradients, sizes)]
    with _restored(weights):
        for weight, gradient, buffer in zip(weights, chain.from_iterable(clipped), step.momenta, strict=True):
            change = gradient + step.weight_decay * weight.detach()
            if buffer is not None:
                change = change + step.momentum * buffer
            weight.data.sub_(step.lr * change)
        loss = val_loss()
        val_gradients = _gradients(loss, [*alphas, *weights])
        alpha_gradients, weight_gradients = val_gradients[: len(alphas)], val_gradients[len(alphas) :]
        collective.sum_in_place(weight_gradients)
    parts = zip(_split(gradients, sizes), _split(weight_gradients, sizes), strict=True)
    direction = list(chain.from_iterable(_transposed_clip_jacobian(g, h, step.clip) for g, h in parts))
    step_size = gpu.reported(radius / _norm(direction).double().clamp(min=1e-12))
    above = _alpha_gradients_at(train_loss, weights, alphas, direction, step_size)
    below = _alpha_gradients_at(train_loss, weights, alphas, direction, -step_size)
    return [
        gradient - step.lr * (plus - minus) / (2 * step_size)
        for gradient, plus, minus in zip(alpha_gradients, above, below, strict=True)
    ], gpu.reported(loss)


def clip_factor(norm: Tensor, clip: float) -> Tensor:
    """The factor by which `torch.nn.utils.clip_grad_norm_` multiplies a gradient of this norm."""
    return torch.clamp(clip / (norm + 1e-6), max=1.0)


def _clip(gradients: Sequence[Tensor], clip: float) -> list[Tensor]:
    factor = clip_factor(_norm(gradients), clip)
    return [factor * gradient for gradient in gradients]


def _transposed_clip_jacobian(gradients: Sequence[Tensor], direction: Sequence[Tensor], clip: float) -> list[Tensor]:
    """The transposed Jacobian of the clipping times a direction h: c (h - n (n . h)), or h if nothing is clipped."""
    norm = _norm(gradients)
    factor = clip_factor(norm, clip)
    along = sum((g * h).sum() for g, h in zip(gradients, direction, strict=True)) / norm.square()
    return [torch.where(factor >= 1, h, factor * (h - along * g)) for g, h in zip(gradients, direction, strict=True)]


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(tensor) for tensor in tensors]))


def _split(tensors: Sequence[Tensor], sizes: Sequence[int]) -> list[Sequence[Tensor]]:
    """Split a sequence into consecutive parts of these sizes."""
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    return [tensors[start : start + size] for start, size in zip(starts, sizes, strict=True)]


def _alpha_gradients_at(
    loss: Loss, weights: list[Tensor], alphas: list[Tensor], direction: list[Tensor], step_size: float | Tensor
) -> list[Tensor]:
    """The gradients of the loss with respect to the alphas at w + step_size * direction."""
    with _restored(weights):
        for weight, part in zip(weights, direction, strict=True):
            if isinstance(step_size, Tensor):  # that of a GPU, which is not asked for the number
                weight.data.add_(part * step_size)
            else:
                weight.data.add_(part, alpha=step_size)
        return _gradients(loss(), alphas)


def _gradients(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Gradients; zeros for an input without effect: the head of the other loss, or alphas of ops that did not run."""
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [
        torch.zeros_like(x) if gradient is None else gradient for x, gradient in zip(inputs, gradients, strict=True)
    ]


@contextlib.contextmanager
def _restored(weights: list[Tensor]) -> Iterator[None]:
    """Restore the exact values of the weights at the end of the context."""
    saved = [weight.detach().clone() for weight in weights]
    try:
        yield
    finally:
        for weight, value in zip(weights, saved, strict=True):
            weight.data.copy_(value)
