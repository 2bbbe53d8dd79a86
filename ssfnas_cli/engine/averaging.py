"""A moving average of a model's weights during training, which is what is evaluated and kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from registry.state import under


class MovingAverage:
    """Exponential moving average of the weights: m <- d * m + (1 - d) * w after every step.

    The average begins as the weights after the first step. At step t, counted from 0, d is then
    min(decay, (1 + t) / (10 + t)), as in TensorFlow's ExponentialMovingAverage: with a constant decay those first
    weights would stay in the average for some 1 / (1 - decay) steps.

    The running statistics of batch normalisation are averaged in the same way, so they belong to weights of the same
    steps; counts of batches are copied.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.num_updates = torch.zeros((), dtype=torch.int64)
        self.values = {name: value.clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights of a model after its step."""
        t = int(self.num_updates)
        decay = min(self.decay, (1 + t) / (10 + t)) if t else 0.0
        state = model.state_dict()
        averaged = [name for name, value in state.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.values[name] for name in averaged], [state[name] for name in averaged], 1 - decay)
        for name in state.keys() - set(averaged):
            self.values[name].copy_(state[name])
        self.num_updates += 1

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within this context the model has the average's weights; afterwards it has its own again, bit for bit."""
        own = {name: value.clone() for name, value in model.state_dict().items()}
        _assign(model, self.values)
        try:
            yield
        finally:
            _assign(model, own)

    def tensors(self) -> dict[str, Tensor]:
        """The average and the number of steps in it, for a checkpoint."""
        return {f"ema.{name}": value for name, value in self.values.items()} | {"ema_updates": self.num_updates}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` returned."""
        for name, value in under("ema", tensors).items():
            self.values[name].copy_(value)
        self.num_updates.copy_(tensors["ema_updates"])


@torch.no_grad()
def _assign(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy values into a model in place, so that whatever refers to its tensors sees them."""
    for name, value in model.state_dict().items():
        value.copy_(values[name])
