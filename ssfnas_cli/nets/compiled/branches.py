"""Which candidate ops the compiled kernels support, and how the kernels see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from registry.norm import BatchNorm
from registry.separable import depthwise_conv
from ssfnas_cli.native.cells import AVG_POOL, IDENTITY, MAX_POOL, SEPARABLE

# The pairs of kernel side and dilation that native/depthwise.h is compiled for.
DEPTHWISE_KERNELS = ((3, 1), (5, 1), (7, 1), (3, 2), (5, 2))


@dataclass(frozen=True)
class Stage:
    """The modules of one stage: ReLU, depthwise convolution, pointwise convolution, BN."""

    depthwise: nn.Conv2d
    pointwise: nn.Conv2d
    norm: BatchNorm


@dataclass(frozen=True)
class Branch:
    """A candidate op as the kernels see it.

    Attributes:
        kind: SEPARABLE, MAX_POOL, AVG_POOL or IDENTITY.
        stages: one or two for a separable convolution, else none.
        norm: the op's last BN; None if it has none.
    """

    kind: int
    stages: tuple[Stage, ...] = ()
    norm: BatchNorm | None = None


def recognise(op: nn.Module) -> Branch | None:
    """The branch that computes what the op does; None if the kernels do not support the op."""
    if isinstance(op, nn.Identity):
        return Branch(IDENTITY)
    if isinstance(op, nn.MaxPool2d | nn.AvgPool2d):
        return _pool(op, None)
    if not isinstance(op, nn.Sequential):
        return None
    parts = list(op)
    if len(parts) == 2 and isinstance(parts[1], BatchNorm) and isinstance(parts[0], nn.MaxPool2d | nn.AvgPool2d):
        return _pool(parts[0], parts[1]) if not parts[1].affine else None
    if len(parts) not in (4, 8):
        return None
    stages = [_stage(parts[at : at + 4]) for at in range(0, len(parts), 4)]
    if any(stage is None for stage in stages) or any(stage.depthwise.stride != (1, 1) for stage in stages[1:]):  # type: ignore[union-attr]
        return None
    return Branch(SEPARABLE, tuple(stages), stages[-1].norm)  # type: ignore[arg-type, union-attr]


def _stage(parts: Sequence[nn.Module]) -> Stage | None:
    """Four modules as a stage; None if they are anything but the convolutions that the kernels compute."""
    relu, depthwise, pointwise, norm = parts
    if not (
        isinstance(relu, nn.ReLU)
        and isinstance(depthwise, nn.Conv2d)
        and isinstance(pointwise, nn.Conv2d)
        and isinstance(norm, BatchNorm)
    ):
        return None
    kernel, dilation, channels = depthwise.kernel_size[0], depthwise.dilation[0], depthwise.in_channels
    compiled = (kernel, dilation) in DEPTHWISE_KERNELS and depthwise.stride in ((1, 1), (2, 2))
    with torch.device("meta"):
        wanted = (
            depthwise_conv(channels, kernel, depthwise.stride[0], dilation),
            nn.Conv2d(channels, channels, 1, bias=False),
        )
    same = all(
        one.extra_repr() == other.extra_repr() for one, other in zip((depthwise, pointwise), wanted, strict=True)
    )
    return Stage(depthwise, pointwise, norm) if compiled and same else None


def _pool(pool: nn.MaxPool2d | nn.AvgPool2d, norm: BatchNorm | None) -> Branch | None:
    """A pool as a branch; None if its options differ from those that the kernels compute."""
    largest = isinstance(pool, nn.MaxPool2d)
    for stride in (1, 2):
        plain = nn.MaxPool2d(3, stride, 1) if largest else nn.AvgPool2d(3, stride, 1, count_include_pad=False)
        if vars(plain).items() <= vars(pool).items():
            return Branch(MAX_POOL if largest else AVG_POOL, norm=norm)
    return None
