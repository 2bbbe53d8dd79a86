"""The alpha step of the bilevel problem (paper, Eq. 2 and 3), to first and to second order.

Losses are closures that run the network on a fixed batch; weights and alphas are leaf tensors that the closures
read. Trial steps put the weights back bit for bit; keeping batch statistics still is the closures' business.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

Loss = Callable[[], Tensor]


def first_order(val_loss: Loss, alphas: Sequence[Tensor]) -> tuple[list[Tensor], float]:
    """Gradient of L_val(w, alpha) by the alphas at today's weights (xi = 0), and the loss."""
    loss = val_loss()
    return list(torch.autograd.grad(loss, list(alphas))), loss.item()


def second_order(
    train_loss: Loss,
    val_loss: Loss,
    weights: Sequence[Tensor],
    alphas: Sequence[Tensor],
    velocity: Sequence[Tensor | None],
    lr: float,
    momentum: float,
    weight_decay: float,
    radius: float = 0.01,
) -> tuple[list[Tensor], float]:
    """Gradient of L_val(w', alpha) by the alphas, w' being the weights after one SGD step on L_train(w, alpha).

    w' = w - xi (momentum v + grad_w L_train + weight_decay w), xi the learning rate. The mixed second derivative is a
    central difference along grad_w' L_val with the step radius / ||grad_w' L_val|| (DARTS, Eq. 7 and 8;
    REFERENCE: architect.py):

        d_alpha L_val(w', alpha) - xi * (d_alpha L_train(w+) - d_alpha L_train(w-)) / (2 R)

    Args:
        velocity: SGD's momentum buffers, None before the first step.

    Returns:
        A gradient per alpha, and L_val(w', alpha).
    """
    weights, alphas = list(weights), list(alphas)
    gradients = _gradients(train_loss(), weights)
    with _restored(weights):
        for weight, gradient, buffer in zip(weights, gradients, velocity, strict=True):
            step = gradient + weight_decay * weight.detach()
            if buffer is not None:
                step = step + momentum * buffer
            weight.data.sub_(lr * step)
        loss = val_loss()
        gradients = _gradients(loss, [*alphas, *weights])
        alpha_gradients, direction = gradients[: len(alphas)], gradients[len(alphas) :]
    norm = torch.sqrt(sum(part.square().sum() for part in direction))  # type: ignore[arg-type]
    step_size = radius / max(float(norm), 1e-12)
    above = _alpha_gradients_at(train_loss, weights, alphas, direction, step_size)
    below = _alpha_gradients_at(train_loss, weights, alphas, direction, -step_size)
    return [
        gradient - lr * (plus - minus) / (2 * step_size)
        for gradient, plus, minus in zip(alpha_gradients, above, below, strict=True)
    ], loss.item()


def _alpha_gradients_at(
    loss: Loss, weights: list[Tensor], alphas: list[Tensor], direction: list[Tensor], step_size: float
) -> list[Tensor]:
    """The loss's alpha gradients at w + step_size * direction."""
    with _restored(weights):
        for weight, part in zip(weights, direction, strict=True):
            weight.data.add_(part, alpha=step_size)
        return _gradients(loss(), alphas)


def _gradients(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Gradients; zeros for what the loss does not reach (a head that only the other loss trains)."""
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [
        torch.zeros_like(x) if gradient is None else gradient for x, gradient in zip(inputs, gradients, strict=True)
    ]


@contextlib.contextmanager
def _restored(weights: list[Tensor]) -> Iterator[None]:
    """Put the weights' exact values back on leaving."""
    saved = [weight.detach().clone() for weight in weights]
    try:
        yield
    finally:
        for weight, value in zip(weights, saved, strict=True):
            weight.data.copy_(value)
