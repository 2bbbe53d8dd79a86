"""One step of a search, as the strategy sees it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from registry.norm import held_statistics
from registry.strategies.base import Mixing, WeightStep
from ssfnas_cli.data.batches import SearchBatch

if TYPE_CHECKING:
    from ssfnas_cli.engine.search_phase import SearchPhase


@dataclass
class CurrentStep:
    """One step of a search phase, as a strategy sees it (see `registry.strategies.base.SearchStep`)."""

    phase: SearchPhase
    batch: SearchBatch
    epoch: int
    progress: float
    _full_precision: bool = False

    @property
    def weight_groups(self) -> list[list[nn.Parameter]]:
        """The parameters of the lower level, in groups whose gradients are clipped separately."""
        return self.phase.weight_groups

    def generator(self) -> torch.Generator:
        """A new generator with the seed of this step."""
        return step_generator()

    def train_loss(self, mixing: Mixing) -> Tensor:
        """L_train, the weights' loss on this step's batch of the weight half."""
        return self.phase.weight_objective(self.batch, mixing, self.progress, self._full_precision)[0]

    def val_loss(self, mixing: Mixing) -> Tensor:
        """L_val, the architecture's loss on this step's batch of the alpha half."""
        return self.phase.alpha_objective(self.batch, mixing, self.progress, self._full_precision)

    def accuracy(self, mixing: Mixing) -> float:
        """Top-1 accuracy in percent on the alpha half. Afterwards the model is in training mode again."""
        phase = self.phase
        with phase.estimated_statistics(mixing):
            value = phase.accuracy(phase.split, phase.halves[1], mixing)
        phase.model.train()
        return value

    def weight_step(self) -> WeightStep:
        """The SGD step that the weights take after the strategy's update."""
        settings, optimizer = self.phase.settings, self.phase.optimizer
        momenta = [optimizer.state.get(weight, {}).get("momentum_buffer") for weight in self.phase.weights]
        lr = optimizer.param_groups[0]["lr"]
        return WeightStep(lr, settings.momentum, settings.weight_decay, settings.clip, momenta)

    def held_statistics(self) -> contextlib.AbstractContextManager[None]:
        """A context in which forward passes do not change the running statistics."""
        return held_statistics(self.phase.model)

    @contextlib.contextmanager
    def full_precision(self) -> Iterator[None]:
        """Compute losses in float32 within this context."""
        self._full_precision = True
        try:
            yield
        finally:
            self._full_precision = False


def step_generator() -> torch.Generator:
    """A generator with the seed of the current step, so that every call within the step draws the same numbers."""
    return torch.Generator().manual_seed(torch.initial_seed() % 2**63)
