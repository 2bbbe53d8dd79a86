"""Batch normalisation, in one place for every op and network.

The bilevel step makes trial passes whose statistics must not reach the running averages. `held_statistics` keeps them
out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from registry import collective
from registry.global_norm import Affine, normalise_globally


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation of maps [N, C, H, W] or vectors [N, C]; its running statistics can be held still.

    Attributes:
        hold_statistics: whether the running statistics stay as they are in training mode.
        folded: whether the convolution before it does its work already, so that it changes nothing.
    """

    hold_statistics: bool = False
    folded: bool = False

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() not in (2, 4):
            raise ValueError(f"expected [N, C] or [N, C, H, W], got {list(input.shape)}")

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        return batch_norm(self, x)


class ToNormalise(NamedTuple):
    """x [N, C, H, W] or [N, C], the BN that normalises it, and one number that multiplies the result.

    The number is folded into the affine weights, which costs no pass over x.
    """

    norm: BatchNorm
    x: Tensor
    weight: Tensor | None = None


def batch_norms(several: Sequence[ToNormalise]) -> list[Tensor]:
    """Normalise several tensors, with one message if their statistics are those of several ranks."""
    if not (several[0].norm.training and collective.shares_statistics()):
        return [batch_norm(*one) for one in several]
    affine = [Affine(*_affine_weights(norm, weight), norm.eps) for norm, _, weight in several]
    results, statistics = normalise_globally([one.x for one in several], affine)
    for (norm, _, _), batch in zip(several, statistics, strict=True):
        if not norm.hold_statistics:
            record_statistics([norm], batch.mean[None], batch.variance[None], int(batch.num))
    return results


def batch_norm(norm: BatchNorm, x: Tensor, weight: Tensor | None = None) -> Tensor:
    """Normalise x as `ToNormalise` says; only here and in `record_statistics` do running statistics move.

    In training mode the batch's statistics are used, else the running ones.
    """
    if norm.folded:
        return x if weight is None else weight * x
    if norm.training and collective.shares_statistics():
        return batch_norms([ToNormalise(norm, x, weight)])[0]
    gamma, beta = _affine_weights(norm, weight)
    if norm.training and not norm.hold_statistics and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    still = norm.training and norm.hold_statistics
    mean, variance = (None, None) if still else (norm.running_mean, norm.running_var)
    assert norm.momentum is not None, "a cumulative average is not used here"
    return F.batch_norm(x, mean, variance, gamma, beta, norm.training, norm.momentum, norm.eps)


def _affine_weights(norm: BatchNorm, weight: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """What a norm multiplies by and adds, with the number `weight` folded in."""
    gamma: Tensor | None = norm.weight
    beta: Tensor | None = norm.bias
    if weight is not None and norm.affine:
        gamma, beta = weight * norm.weight, weight * norm.bias
    elif weight is not None:
        gamma = weight.expand(norm.num_features).contiguous()  # F.batch_norm ignores strides
    return gamma, beta


@torch.no_grad()
def record_statistics(norms: Sequence[BatchNorm], means: Tensor, variances: Tensor, count: int) -> None:
    """Move the running statistics of norms whose batch statistics were computed elsewhere.

    Args:
        norms: the BNs, one for each row.
        means: [norms, C].
        variances: [norms, C], biased, over `count` values.
        count: values of each channel in the batch.
    """
    moving = [(k, norm) for k, norm in enumerate(norms) if not norm.hold_statistics and norm.running_mean is not None]
    for momentum in {norm.momentum for _, norm in moving}:
        assert momentum is not None, "a cumulative average is not used here"
        rows = [k for k, norm in moving if norm.momentum == momentum]
        targets = [norm for _, norm in moving if norm.momentum == momentum]
        unbiased = variances * (count / max(count - 1, 1))
        for buffer, values in (("running_mean", means), ("running_var", unbiased)):
            torch._foreach_lerp_([getattr(norm, buffer) for norm in targets], [values[k] for k in rows], momentum)
        torch._foreach_add_([norm.num_batches_tracked for norm in targets if norm.num_batches_tracked is not None], 1)


def average_running_statistics(module: nn.Module, share: collective.Share | None) -> None:
    """Give all ranks the mean of their running statistics, if they took those from their own shares of a batch."""
    if share is None or collective.shares_statistics():
        return
    norms = [norm for norm in norms_of(module) if norm.running_mean is not None]
    buffers = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var) if buffer is not None]
    collective.sum_in_place(buffers, share.fraction)


def norms_of(module: nn.Module) -> list[BatchNorm]:
    """All of a module's BatchNorms. `module.modules()` takes several times as long, and every step asks for them."""
    found: dict[BatchNorm, None] = {}
    waiting: list[nn.Module | None] = [module]
    while waiting:
        one = waiting.pop()
        if isinstance(one, BatchNorm):
            found[one] = None
        elif one is not None:
            waiting += one._modules.values()
    return list(found)


@contextlib.contextmanager
def held_statistics(module: nn.Module) -> Iterator[None]:
    """Within this context every BatchNorm in `module` uses its batch's statistics and keeps its running ones."""
    norms = norms_of(module)
    before = [norm.hold_statistics for norm in norms]
    for norm in norms:
        vars(norm)["hold_statistics"] = True  # a module takes a hundred times as long to set an attribute
    try:
        yield
    finally:
        for norm, held in zip(norms, before, strict=True):
            vars(norm)["hold_statistics"] = held


@contextlib.contextmanager
def estimated_statistics(module: nn.Module, passes: Iterable[Callable[[], object]]) -> Iterator[None]:
    """Within: running statistics are the means over the batches of `passes`; afterwards they are what they were.

    Running averages lag behind the weights in the first hundreds of steps.

    Args:
        passes: each runs the module on one batch; the module is put into training mode for them. None at all leaves
            the running averages as they are.
    """
    norms = norms_of(module)
    momenta = [norm.momentum for norm in norms]
    saved = [{name: value.clone() for name, value in norm.named_buffers()} for norm in norms]
    was_training = module.training
    try:
        module.train()
        with torch.no_grad():
            for number, run in enumerate(passes):
                for norm in norms:
                    norm.momentum = 1 / (1 + number)  # the mean of all batches so far
                run()
            average_running_statistics(module, collective.my_share(collective.size()))  # each rank counts alike
        module.train(was_training)
        yield
    finally:
        for norm, momentum, buffers in zip(norms, momenta, saved, strict=True):
            norm.momentum = momentum
            for name, value in norm.named_buffers():
                value.copy_(buffers[name])
