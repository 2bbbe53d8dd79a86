"""Batch normalisation with the statistics of the global batch, of which every rank has a share.

Several tensors are normalised at once, so that their statistics travel in one message, and so do the sums that their
gradients need.
"""

from __future__ import annotations

from collections.abc import Sequence
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


class Affine(NamedTuple):
    """What the normalised values are multiplied by and what is added to them [C]; `eps` is added to the variances."""

    gamma: Tensor | None
    beta: Tensor | None
    eps: float


def global_statistics(tensors: Sequence[Tensor]) -> list[Statistics]:
    """The statistics of the global batch from this rank's tensors [N, C, ...], without gradients.

    The ranks' means and variances are combined (Chan et al., 1983), not sums of squares: those would cancel.
    """
    own: list[Tensor] = []
    for x in tensors:
        variance, mean = torch.var_mean(x, _summed_dims(x), correction=0)
        own += [mean, variance, mean.new_full((1,), x.numel() / x.shape[1])]
    parts = collective.all_gather(torch.cat(own)).split([len(part) for part in own], dim=1)
    statistics = []
    for means, variances, nums in zip(parts[0::3], parts[1::3], parts[2::3], strict=True):
        num = nums.sum()
        mean = (nums * means).sum(0) / num
        variance = (nums * (variances + (means - mean).square())).sum(0) / num
        statistics.append(Statistics(mean, variance, num))
    return statistics


def normalise_globally(tensors: Sequence[Tensor], affine: Sequence[Affine]) -> tuple[list[Tensor], list[Statistics]]:
    """Normalise tensors [N, C, ...], then scale and shift them; also return the statistics."""
    with torch.no_grad():
        statistics = global_statistics([_at_least_float32(x) for x in tensors])
    weights = [weight for one in affine for weight in (one.gamma, one.beta)]
    epsilons = [one.eps for one in affine]
    return list(_Normalise.apply(statistics, epsilons, *tensors, *weights)), statistics


class _Normalise(torch.autograd.Function):
    """The gradient includes that of the statistics, so it needs sums over the ranks. Those of gamma and beta do not.

    The tensor arguments are the inputs, and then gamma and beta for each of them.
    """

    @staticmethod
    def forward(ctx: Any, statistics: list[Statistics], epsilons: list[float], *tensors: Any) -> tuple[Tensor, ...]:
        num = len(statistics)
        inputs, gammas, betas = tensors[:num], tensors[num::2], tensors[num + 1 :: 2]
        results = []
        for x, gamma, beta, (mean, variance, _), eps in zip(inputs, gammas, betas, statistics, epsilons, strict=True):
            wide = F.batch_norm(x.to(mean.dtype), mean, variance, gamma, beta, False, 0.0, eps)
            results.append(wide.to(x.dtype))
        ctx.statistics = [
            (s.mean, (s.variance + eps).rsqrt(), s.num) for s, eps in zip(statistics, epsilons, strict=True)
        ]
        ctx.save_for_backward(*inputs, *gammas)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        num = len(ctx.statistics)
        inputs, gammas = ctx.saved_tensors[:num], ctx.saved_tensors[num:]
        wide = [g.to(mean.dtype) for g, (mean, _, _) in zip(gradients, ctx.statistics, strict=True)]
        centred = [x - _by_channel(mean, x) for x, (mean, _, _) in zip(inputs, ctx.statistics, strict=True)]
        sums = [g.sum(_summed_dims(g)) for g in wide]
        dots = [(g * c).sum(_summed_dims(g)) for g, c in zip(wide, centred, strict=True)]
        wanted = ctx.needs_input_grad[2:]
        of_weights: list[Tensor | None] = []
        for k, (_, inverse, _) in enumerate(ctx.statistics):
            of_weights += [dots[k] * inverse if wanted[num + 2 * k] else None]
            of_weights += [sums[k] if wanted[num + 2 * k + 1] else None]
        of_inputs: list[Tensor | None] = [None] * num
        if any(wanted[:num]):
            together = torch.cat([*sums, *dots])
            collective.all_reduce(together)
            totals = together.split([len(part) for part in (*sums, *dots)])
            for k, (_, inverse, count) in enumerate(ctx.statistics):
                x, gamma = inputs[k], gammas[k]
                scale = inverse if gamma is None else inverse * gamma
                slope = inverse.square() * totals[num + k] / count
                dx = wide[k] - _by_channel(totals[k] / count, x) - centred[k] * _by_channel(slope, x)
                of_inputs[k] = (_by_channel(scale, x) * dx).to(x.dtype)
        return None, None, *of_inputs, *of_weights


def _by_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.ndim - 2))


def _summed_dims(x: Tensor) -> list[int]:
    return [dim for dim in range(x.ndim) if dim != 1]


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
