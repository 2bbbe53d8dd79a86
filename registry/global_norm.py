"""Batch normalisation with the statistics of the global batch, of which every rank has a share."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from registry import collective


class Statistics(NamedTuple):
    """Mean and biased variance of every channel [C], over `num` values, a scalar."""

    mean: Tensor
    variance: Tensor
    num: Tensor


def global_statistics(x: Tensor) -> Statistics:
    """The statistics of the global batch from this rank's x [N, C, ...], in one message, without gradients.

    The ranks' means and variances are combined (Chan et al., 1983), not sums of squares: those would cancel.
    """
    variance, mean = torch.var_mean(x, _summed_dims(x), correction=0)
    own = mean.new_full((1,), x.numel() / x.shape[1])
    parts = collective.all_gather(torch.cat([mean, variance, own]))
    means, variances, counts = parts.split([len(mean), len(mean), 1], dim=1)
    count = counts.sum()
    mean = (counts * means).sum(0) / count
    variance = (counts * (variances + (means - mean).square())).sum(0) / count
    return Statistics(mean, variance, count)


def normalise_globally(x: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float) -> tuple[Tensor, Statistics]:
    """Normalise x [N, C, ...], then scale by gamma and shift by beta [C]; also return the statistics."""
    with torch.no_grad():
        statistics = global_statistics(x.float() if x.dtype in (torch.bfloat16, torch.float16) else x)
    return _Normalise.apply(x, gamma, beta, *statistics, eps), statistics


class _Normalise(torch.autograd.Function):
    """The gradient includes that of the statistics, so it needs sums over the ranks. Those of gamma and beta do not."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        eps: float,
    ) -> Tensor:
        inverse = (variance + eps).rsqrt()
        ctx.save_for_backward(x, gamma, mean, inverse, count)
        return F.batch_norm(x.to(mean.dtype), mean, variance, gamma, beta, False, 0.0, eps).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, gamma, mean, inverse, count = ctx.saved_tensors
        g, dims = gradients[0].to(mean.dtype), _summed_dims(x)
        by_channel = lambda values: values.view(-1, *[1] * (x.ndim - 2))
        centred = x - by_channel(mean)
        sums, dots = g.sum(dims), (g * centred).sum(dims)
        d_gamma, d_beta = dots * inverse, sums
        dx = None
        if ctx.needs_input_grad[0]:
            together = torch.cat([sums, dots])
            collective.all_reduce(together)
            sums, dots = together.split(len(sums))
            scale = inverse if gamma is None else inverse * gamma
            dx = g - by_channel(sums / count) - centred * by_channel(inverse.square() * dots / count)
            dx = (by_channel(scale) * dx).to(x.dtype)
        wanted = ctx.needs_input_grad
        return dx, d_gamma if wanted[1] else None, d_beta if wanted[2] else None, None, None, None, None


def _summed_dims(x: Tensor) -> list[int]:
    return [dim for dim in range(x.ndim) if dim != 1]
