"""What lets a training run ahead of a GPU: nothing in a step waits for it.

A GPU computes what it has been told while the program already tells it the next operations. The program stops whenever
it asks for a number, and so do copies to the GPU unless they say otherwise. A step therefore reports tensors (which the
loop reads from time to time), copies what it brings along without waiting, and knows without asking which mixing
weights are exactly zero. On a CPU all of this is free, and everything is read at once.
"""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor


def reported(x: Tensor) -> Any:
    """A scalar as a step reports it: a float, or on a GPU the tensor itself, to be read later."""
    return x.item() if x.is_cpu else x.detach()


def placed(values: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, to which it is copied without waiting."""
    return values.to(device, non_blocking=True)


def placed_like(values: ArrayLike, x: Tensor) -> Tensor:
    """Numbers as a tensor of the type of x, on its device."""
    return torch.as_tensor(values).to(x.device, x.dtype, non_blocking=True)


def columns(x: Tensor, chosen: list[int]) -> Tensor:
    """Some columns of x [..., K], in the order given: [..., len(chosen)]."""
    return x.index_select(-1, placed(torch.tensor(chosen), x.device))


# Which mixing weights are exactly zero


def with_zeros(weights: Tensor, zeros: Tensor) -> Tensor:
    """Mixing weights of which is known where they are exactly zero: a mask of the same shape, on the CPU."""
    weights.known_zeros = zeros  # type: ignore[attr-defined]
    return weights


def never_zero(weights: Tensor) -> Tensor:
    """Mixing weights none of which is exactly zero."""
    return with_zeros(weights, torch.zeros(weights.shape, dtype=torch.bool))


def known_zeros(weights: Tensor) -> Tensor | None:
    """The mask of `with_zeros`, or None if nothing is known."""
    return getattr(weights, "known_zeros", None)


def find_zeros(weights: Tensor) -> Tensor:
    """Where weights are exactly zero, a mask on the CPU. They are looked at unless that is known of those of a GPU."""
    known = None if weights.is_cpu else known_zeros(weights)
    return (weights.detach() == 0).cpu() if known is None else known
