"""Which candidate ops the compiled kernels know, and as what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from registry.norm import BatchNorm
from registry.separable import depthwise_conv
from ssfnas_cli.native.cells import AVG_POOL, IDENTITY, MAX_POOL, SEPARABLE


@dataclass(frozen=True)
class Stage:
    """ReLU, depthwise and pointwise convolution, BN."""

    depthwise: nn.Conv2d
    pointwise: nn.Conv2d
    norm: BatchNorm


@dataclass(frozen=True)
class Branch:
    """An op as the kernels know it: one or two stages, a pool or the identity; `norm` is its last BN, if any."""

    kind: int
    stages: tuple[Stage, ...] = ()
    norm: BatchNorm | None = None


def recognise(op: nn.Module) -> Branch | None:
    """The op as a branch; None where the kernels do not know it and it must run as the module it is."""
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
    relu, depthwise, pointwise, norm = parts
    if not (
        isinstance(relu, nn.ReLU)
        and isinstance(depthwise, nn.Conv2d)
        and isinstance(pointwise, nn.Conv2d)
        and isinstance(norm, BatchNorm)
    ):
        return None
    kernel, dilation, channels = depthwise.kernel_size[0], depthwise.dilation[0], depthwise.in_channels
    known = (kernel, dilation) in ((3, 1), (5, 1), (7, 1), (3, 2), (5, 2)) and depthwise.stride in ((1, 1), (2, 2))
    with torch.device("meta"):
        wanted = (
            depthwise_conv(channels, kernel, depthwise.stride[0], dilation),
            nn.Conv2d(channels, channels, 1, bias=False),
        )
    same = all(
        one.extra_repr() == other.extra_repr() for one, other in zip((depthwise, pointwise), wanted, strict=True)
    )
    return Stage(depthwise, pointwise, norm) if known and same else None


def _pool(pool: nn.MaxPool2d | nn.AvgPool2d, norm: BatchNorm | None) -> Branch | None:
    largest = isinstance(pool, nn.MaxPool2d)
    for stride in (1, 2):
        plain = nn.MaxPool2d(3, stride, 1) if largest else nn.AvgPool2d(3, stride, 1, count_include_pad=False)
        if vars(plain).items() <= vars(pool).items():
            return Branch(MAX_POOL if largest else AVG_POOL, norm=norm)
    return None
