"""The steps of a search and of a retraining in the plain way: `loss.backward()` on everything, trial steps on copies.

What it does more than it must (weight gradients in the alpha step, alpha gradients in the weight step), it does
because that is how the algorithm reads when it is written down directly.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tests.oracle.direct import Classifier, Pretraining, SearchModel


class Batch(NamedTuple):
    """One [N, C, H, W] per view; labels [N], None where the loss uses none."""

    views: Sequence[Tensor]
    labels: Tensor | None


class DirectSearch:
    """DARTS, Algorithm 1: a step on the alphas, then one on the weights.

    Args:
        alphas: {"normal", "reduce"} -> leaf tensors [num_edges, num_ops].
        relaxation: `softmax` (DARTS) or `sigmoid` (FairDARTS, with the zero-one loss of SSF-NAS's Eq. 6 and 7: L1,
            a mean over all sigmoids).
        order: 1 (xi = 0) or 2, whose difference quotient has steps of length `radius`.
    """

    def __init__(
        self,
        model: SearchModel,
        alphas: dict[str, Tensor],
        relaxation: str,
        order: int = 1,
        alpha_lr: float = 3e-4,
        alpha_betas: tuple[float, float] = (0.5, 0.999),
        zero_one_weight: float = 10.0,
        momentum: float = 0.9,
        weight_decay: float = 3e-4,
        clip: float = 5.0,
        radius: float = 0.01,
    ):
        self.model, self.alphas, self.relaxation, self.order = model, alphas, relaxation, order
        self.zero_one_weight, self.momentum, self.weight_decay, self.clip = (
            zero_one_weight,
            momentum,
            weight_decay,
            clip,
        )
        self.radius = radius
        self.optimizer = torch.optim.SGD(model.parameters(), 0.025, momentum=momentum, weight_decay=weight_decay)
        self.alpha_optimizer = torch.optim.Adam(
            list(alphas.values()), lr=alpha_lr, betas=alpha_betas, weight_decay=1e-3
        )

    def step(self, train: Batch, val: Batch, lr: float) -> dict[str, float]:
        """The alpha step on `val`, the weight step on `train`; `lr` is the weights'."""
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        alpha_loss = self._first_order(val) if self.order == 1 else self._second_order(train, val, lr)
        self.alpha_optimizer.step()
        return {"alpha_loss": alpha_loss, "weight_loss": self._weight_step(train)}

    def mixing(self) -> dict[str, Tensor]:
        """Mixing weights of both cell types."""
        if self.relaxation == "softmax":
            return {kind: torch.softmax(alphas, dim=-1) for kind, alphas in self.alphas.items()}
        return {kind: torch.sigmoid(alphas) for kind, alphas in self.alphas.items()}

    def zero_one(self) -> Tensor:
        """w_0-1 * -mean |sigma - 0.5| over both cell types; nothing for a softmax."""
        if self.relaxation == "softmax":
            return torch.zeros(())
        sigmas = torch.cat([sigma.flatten() for sigma in self.mixing().values()])
        return -self.zero_one_weight * (sigmas - 0.5).abs().mean()

    def _loss(self, batch: Batch, model: SearchModel | None = None) -> Tensor:
        return (model or self.model).loss(batch.views, batch.labels, self.mixing())

    def _first_order(self, val: Batch) -> float:
        """d_alpha L_val(w, alpha) into the alphas' `grad`, every weight's gradient along with it."""
        self.alpha_optimizer.zero_grad()
        loss = self._loss(val)
        (loss + self.zero_one()).backward()
        return loss.item()

    def _weight_step(self, train: Batch) -> float:
        self.optimizer.zero_grad()
        loss = self._loss(train)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        return loss.item()

    # Second order

    def _second_order(self, train: Batch, val: Batch, lr: float) -> float:
        """d_alpha L_val(w', alpha) - xi d2_alpha,w L_train(w, alpha) d_w' L_val(w', alpha) (DARTS, Eq. 7).

        w' = w - xi c g with g = d_w L_train, here with the momentum, weight decay and clipping factor c of the step
        that will be taken. The mixed second derivative times a vector v is (d_alpha L_train(w+) - d_alpha L_train(w-))
        / 2 eps at w± = w ± eps v, eps = radius / ||v|| (Eq. 8 and the footnote to it). If the step is clipped, v is
        what the derivative of c g leaves of h = d_w' L_val: c (h - g (g . h) / |g|^2).
        """
        moved, gradient, factor = self._moved(train, lr)
        self.alpha_optimizer.zero_grad()
        loss = self._loss(val, moved)
        (loss + self.zero_one()).backward()
        first = {kind: alphas.grad.clone() for kind, alphas in self.alphas.items()}
        vector = [weight.grad for weight in moved.parameters()]
        if factor < 1:
            square = sum(float(g.square().sum()) for g in gradient)
            along = sum(float((g * h).sum()) for g, h in zip(gradient, vector, strict=True)) / square
            vector = [factor * (h - along * g) for g, h in zip(gradient, vector, strict=True)]
        eps = self.radius / math.sqrt(sum(float(part.square().sum()) for part in vector))
        above, below = self._alpha_gradients(train, vector, eps), self._alpha_gradients(train, vector, -eps)
        for kind, alphas in self.alphas.items():
            alphas.grad = first[kind] - lr * (above[kind] - below[kind]) / (2 * eps)
        return loss.item()

    def _moved(self, train: Batch, lr: float) -> tuple[SearchModel, list[Tensor], float]:
        """A copy of the model one SGD step further on, the gradient of that step, and its clipping factor."""
        moved = copy.deepcopy(self.model)
        moved.zero_grad()
        self._loss(train, moved).backward()
        gradient = [twin.grad.clone() for twin in moved.parameters()]
        norm = float(nn.utils.clip_grad_norm_(moved.parameters(), self.clip))
        factor = min(1.0, self.clip / (norm + 1e-6))
        with torch.no_grad():
            for weight, twin in zip(self.model.parameters(), moved.parameters(), strict=True):
                velocity = self.optimizer.state[weight].get("momentum_buffer", torch.zeros_like(weight))
                twin -= lr * (self.momentum * velocity + twin.grad + self.weight_decay * weight)
        moved.zero_grad()
        return moved, gradient, factor

    def _alpha_gradients(self, train: Batch, vector: Sequence[Tensor], eps: float) -> dict[str, Tensor]:
        """d_alpha L_train at w + eps * vector, on a copy."""
        shifted = copy.deepcopy(self.model)
        with torch.no_grad():
            for weight, part in zip(shifted.parameters(), vector, strict=True):
                weight += eps * part
        self.alpha_optimizer.zero_grad()
        self._loss(train, shifted).backward()
        return {kind: alphas.grad.clone() for kind, alphas in self.alphas.items()}


class DirectTraining:
    """SGD on a derived network with its auxiliary head (DARTS, section 3.2), or with the projector of a pretraining."""

    def __init__(
        self,
        model: Classifier | Pretraining,
        aux_weight: float = 0.4,
        momentum: float = 0.9,
        weight_decay: float = 3e-4,
        clip: float = 5.0,
    ):
        self.model, self.aux_weight, self.clip = model, aux_weight, clip
        self.optimizer = torch.optim.SGD(model.parameters(), 0.025, momentum=momentum, weight_decay=weight_decay)

    def step(self, images: Tensor, labels: Tensor, lr: float, drop_path: float) -> float:
        """One step on [N, C, H, W] and [N]; the loss before it. `drop_path` is the probability."""
        self.model.encoder.drop_path = drop_path
        return self._descend(lambda: self.model.loss(images, labels, self.aux_weight), lr)

    def pretraining_step(self, views: Sequence[Tensor], lr: float) -> float:
        """One step on two views [N, C, H, W], without labels; the loss before it."""
        return self._descend(lambda: self.model.loss(views), lr)

    def _descend(self, loss_of: Callable[[], Tensor], lr: float) -> float:
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        return loss.item()
