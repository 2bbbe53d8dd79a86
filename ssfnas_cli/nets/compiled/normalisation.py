"""Batch normalisation around the compiled kernels, which return statistics and sums over the batch in float64.

A tensor with a row for each map is [maps, C].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from registry.norm import BatchNorm, record_statistics
from ssfnas_cli.native.cells import CellKernels


def can_run(kernels: CellKernels, norms: Sequence[BatchNorm | None], x: Tensor) -> bool:
    """Whether the kernels can compute on x now.

    They support neither autocast nor a backward pass through a BN in evaluation mode.
    """
    evaluating = any(norm is not None and not norm.training for norm in norms)
    return (
        x.device.type == "cpu"
        and x.dtype == kernels.dtype
        and not torch.is_autocast_enabled("cpu")
        and not (evaluating and torch.is_grad_enabled())
    )


def finish_statistics(
    norms: Sequence[BatchNorm], mean: Tensor, variance: Tensor, count: int, dtype: torch.dtype
) -> Tensor:
    """Record the batch's statistics in training; in evaluation, overwrite them by the running ones.

    Args:
        norms: one for each row.
        mean: [maps, C], float64; like `variance`, it is changed in evaluation.
        variance: [maps, C], float64, biased, over `count` values.
        dtype: the type of the running statistics.

    Returns:
        1 / sqrt(variance + eps), [maps, C].
    """
    if norms[0].training:
        record_statistics(norms, mean.to(dtype), variance.to(dtype), count)
    else:
        mean.copy_(torch.stack([norm.running_mean for norm in norms]))  # type: ignore[misc]
        variance.copy_(torch.stack([norm.running_var for norm in norms]))  # type: ignore[misc]
    return (variance + norms[0].eps).rsqrt()


def statistics_gradient(inverse: Tensor, sums: Tensor, dots: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The part of a BN's backward pass that comes from the batch's statistics, as slope and offset [maps, C].

    If g is the gradient with respect to the normalised y, the gradient with respect to y is
    inverse * g + slope * (y - mean) + offset.

    Args:
        inverse: 1 / deviation.
        sums: of g over the batch.
        dots: of g * (y - mean) over the batch.
        count: how many values these sums are over.
    """
    return inverse**3 * dots / -count, inverse * sums / -count
