"""Batch normalisation around compiled kernels, which leave statistics and sums over the batch, in float64.

Rows are maps: all that is given per row is [rows, C].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from registry.norm import BatchNorm, record_statistics
from ssfnas_cli.native.cells import CellKernels


def can_run(kernels: CellKernels, norms: Sequence[BatchNorm | None], x: Tensor) -> bool:
    """Whether the kernels take this input here and now; they know no autocast, and evaluation without gradients."""
    training = any(norm is not None and norm.training for norm in norms)
    return (
        x.device.type == "cpu"
        and x.dtype == kernels.dtype
        and not torch.is_autocast_enabled("cpu")
        and (training or not torch.is_grad_enabled())
    )


def settle(norms: Sequence[BatchNorm], mean: Tensor, variance: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """1 / deviation of each row. In training the batch's statistics are recorded, else replaced by the running."""
    if norms[0].training:
        record_statistics(norms, mean.to(dtype), variance.to(dtype), count)
    else:
        mean.copy_(torch.stack([norm.running_mean for norm in norms]))  # type: ignore[misc]
        variance.copy_(torch.stack([norm.running_var for norm in norms]))  # type: ignore[misc]
    return (variance + norms[0].eps).rsqrt()


def through(inverse: Tensor, sums: Tensor, dots: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Slope and offset of the gradient by a BN's input y: what the batch's statistics add to it.

    dy = inverse * g + slope * (y - mean) + offset, g being the gradient by the normalised y.

    Args:
        sums: over the batch, of g.
        dots: of g * (y - mean).
    """
    return inverse**3 * dots / -count, inverse * sums / -count
