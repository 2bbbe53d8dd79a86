"""Batch normalisation around the compiled kernels: native/normalisation.h does its arithmetic, in float64.

If several ranks share a batch and its statistics, a pass stops between its kernels, and the ranks sum what each has.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import c_double, c_void_p
from typing import Any

import numpy as np
import torch
from torch import Tensor, is_grad_enabled

from registry import collective
from registry.norm import BatchNorm
from ssfnas_cli.native.cells import CellKernels, Norms, SumOverRanks

Doubles = ctypes.Array[c_double]


def can_run(kernels: CellKernels, norms: Sequence[BatchNorm | None], x: Tensor) -> bool:
    """Whether the kernels can compute on x now.

    They do not support a backward pass through a BN in evaluation mode.
    """
    backward_in_evaluation = is_grad_enabled() and any(norm is not None and not norm.training for norm in norms)
    return kernels.support(x) and not backward_in_evaluation


def eps_of(norms: Sequence[BatchNorm | None]) -> Doubles:
    """What each map's BN adds to the variance; below 0 for a map without one."""
    return (c_double * len(norms))(*[-1.0 if norm is None else norm.eps for norm in norms])


def norms_for_kernels(norms: Sequence[BatchNorm | None], eps: Doubles) -> Norms:
    """The BNs of some maps as the kernels need them in a forward pass.

    In training mode they move the running statistics of those that do not hold them, and in evaluation mode they use
    them. All are in one mode.
    """
    present = [norm for norm in norms if norm is not None]
    training = bool(present) and present[0].training
    given = Norms(eps=eps, training=training, sum=sum_over_ranks())
    used = [norm is not None and not (norm.training and norm.hold_statistics) for norm in norms]
    if any(used):
        given.running_means = _buffers(norms, used, "running_mean")
        given.running_variances = _buffers(norms, used, "running_var")
        given.num_batches = _buffers(norms, used, "num_batches_tracked")
        given.momenta = (c_double * len(norms))(*[0.0 if norm is None else _momentum(norm) for norm in norms])
    return given


def _buffers(norms: Sequence[BatchNorm | None], used: Sequence[bool], name: str) -> ctypes.Array[c_void_p]:
    """The addresses of a buffer of each BN, or null."""
    buffers = [norm._buffers[name] if use and norm is not None else None for norm, use in zip(norms, used, strict=True)]
    return (c_void_p * len(buffers))(*[None if buffer is None else buffer.data_ptr() for buffer in buffers])


def _momentum(norm: BatchNorm) -> float:
    assert norm.momentum is not None, "a cumulative average is not used here"
    return norm.momentum


_failed: list[BaseException] = []  # in a sum: an exception cannot pass through C++


@SumOverRanks
def _sum_over_ranks(values: Any, num: int) -> None:
    if _failed:
        return
    try:
        collective.all_reduce(torch.from_numpy(np.ctypeslib.as_array(values, (num,))))
    except BaseException as error:
        _failed.append(error)


_NOTHING_TO_SUM = SumOverRanks()


def sum_over_ranks() -> Any:
    """What a pass calls to sum over the ranks that share the batch's statistics: a null pointer if there are none."""
    return _sum_over_ranks if collective.shares_statistics() else _NOTHING_TO_SUM


def run(a_pass: Callable[..., None], *given: Any) -> None:
    """Run a pass of the kernels, and raise what was raised while it summed over the ranks.

    Raises:
        LostRank: another rank cannot be reached any more.
    """
    a_pass(*given)
    if _failed:
        raise _failed.pop()
