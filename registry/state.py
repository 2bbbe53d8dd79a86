"""Conversion of the state of modules and optimizers to and from named tensors, which checkpoints store."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from registry.optimizers import Optimizer


def module_tensors(prefix: str, module: torch.nn.Module) -> dict[str, Tensor]:
    """The weights and buffers of a module by name, with a prefix."""
    return {f"{prefix}.{name}": value for name, value in module.state_dict().items()}


def load_module(prefix: str, module: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load tensors that `module_tensors` returned."""
    module.load_state_dict(under(prefix, tensors))


def optimizer_tensors(prefix: str, optimizer: Optimizer | torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state for each parameter, by its number. Learning rates are left out: the schedule sets them."""
    return {
        f"{prefix}.{number}.{key}": value
        for number, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def load_optimizer(prefix: str, optimizer: Optimizer | torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load tensors that `optimizer_tensors` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in under(prefix, tensors).items():
        number, _, key = name.partition(".")
        state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if value.shape == parameter.shape:  # a file stores no strides, on which the choice of kernels depends
                values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix` and a dot, by the rest of their names."""
    start = prefix + "."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
