"""SGD and Adam, bit for bit those of `torch.optim` on a CPU.

They exist for two reasons. The first step of an optimizer of torch imports torch's compiler (`torch._dynamo`), which
takes as long as importing torch and was half of a search's start. And on a CPU torch goes from weight to weight in
Python, where a supernet has hundreds of small ones; here a few calls do all of them.

They have torch's `param_groups`, `state` and `state_dict`, so `registry.state` and schedules treat both alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Groups = Sequence[Mapping[str, Any]]
Tensors = tuple[Tensor, ...] | list[Tensor]


class Optimizer:
    """What SGD and Adam share.

    Args:
        weights: leaf tensors, or groups of them as {"params": [...], ...}, whose options win over the others.
        options: of all groups.

    Attributes:
        param_groups: the groups. A schedule may change their options, such as `lr`, between steps.
        state: of each weight that has taken a step, by name.
    """

    def __init__(self, weights: Iterable[Tensor] | Groups, **options: Any):
        given: list[Any] = list(weights)
        groups = given if given and isinstance(given[0], Mapping) else [{"params": given}]
        self.param_groups = [{**options, **group, "params": list(group["params"])} for group in groups]
        self.state: dict[Tensor, dict[str, Tensor]] = {}

    def _weights(self) -> list[Tensor]:
        return [weight for group in self.param_groups for weight in group["params"]]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, or set them to zeros."""
        for weight in self._weights():
            if set_to_none:
                weight.grad = None
            elif weight.grad is not None:
                weight.grad.zero_()

    def step(self) -> None:
        """Change every weight that has a gradient."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """The state by the weights' numbers, and the groups with these numbers, as torch has them."""
        number = {weight: place for place, weight in enumerate(self._weights())}
        groups = [{**group, "params": [number[weight] for weight in group["params"]]} for group in self.param_groups]
        return {"state": {number[weight]: values for weight, values in self.state.items()}, "param_groups": groups}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Have the state and the options that `state_dict` returned.

        Raises:
            ValueError: they are of other weights.
        """
        weights, sizes = self._weights(), [len(group["params"]) for group in self.param_groups]
        beyond = [number for number in saved["state"] if number >= len(weights)]
        if beyond or sizes != [len(group["params"]) for group in saved["param_groups"]]:
            raise ValueError("the optimizer's state is of other weights")
        for group, of_saved in zip(self.param_groups, saved["param_groups"], strict=True):
            group |= {name: value for name, value in of_saved.items() if name != "params"}
        self.state = {
            weights[number]: {name: _like(weights[number], value) for name, value in values.items()}
            for number, values in saved["state"].items()
        }


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, Nesterov's if wanted."""

    def __init__(
        self,
        weights: Iterable[Tensor] | Groups,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ):
        super().__init__(weights, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            changes: Tensors = [weight.grad for weight in weights]
            if group["weight_decay"]:
                changes = torch._foreach_add(changes, weights, alpha=group["weight_decay"])
            if group["momentum"]:
                momenta = self._momenta(weights, changes, group["momentum"])
                changes = (
                    torch._foreach_add(changes, momenta, alpha=group["momentum"]) if group["nesterov"] else momenta
                )
            torch._foreach_add_(weights, changes, alpha=-group["lr"])

    def _momenta(self, weights: Sequence[Tensor], changes: Tensors, momentum: float) -> list[Tensor]:
        """The momenta of this step. A weight's first one is its change."""
        moving = [(weight, change) for weight, change in zip(weights, changes, strict=True) if weight in self.state]
        if moving:
            buffers = [self.state[weight]["momentum_buffer"] for weight, _ in moving]
            torch._foreach_mul_(buffers, momentum)
            torch._foreach_add_(buffers, [change for _, change in moving])
        for weight, change in zip(weights, changes, strict=True):
            if weight not in self.state:
                self.state[weight] = {"momentum_buffer": change.clone()}
        return [self.state[weight]["momentum_buffer"] for weight in weights]


class Adam(Optimizer):
    """Adam (Kingma and Ba, 2015); its weight decay is added to the gradient. For few weights: it goes one by one."""

    def __init__(
        self,
        weights: Iterable[Tensor] | Groups,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(weights, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._step_of(weight, group)

    def _step_of(self, weight: Tensor, group: Mapping[str, Any]) -> None:
        state = self.state.setdefault(weight, {})
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        (beta1, beta2), gradient = group["betas"], weight.grad
        assert gradient is not None
        state["step"] += 1
        if group["weight_decay"]:
            gradient = gradient.add(weight, alpha=group["weight_decay"])
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        steps = state["step"].item()
        deviation = (state["exp_avg_sq"].sqrt() / (1 - beta2**steps) ** 0.5).add_(group["eps"])
        weight.addcdiv_(state["exp_avg"], deviation, value=-group["lr"] / (1 - beta1**steps))


def _like(weight: Tensor, value: Tensor) -> Tensor:
    """A loaded part of a weight's state, with its type, device and strides if it has its shape."""
    return torch.empty_like(weight).copy_(value) if value.shape == weight.shape else value.clone()
