"""A pass of a fan (fanout.py) over the batch, forward or backward: one call into C++ (native/passes.cpp).

What is done here is to allocate the results and to collect addresses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ssfnas_cli.native.cells import FanCall, Shape, address, integers, new_maps, pointers
from ssfnas_cli.nets.compiled.normalisation import norms_for_kernels, run, sum_over_ranks
from ssfnas_cli.nets.compiled.side_by_side import SideBySide

if TYPE_CHECKING:
    from ssfnas_cli.nets.compiled.fanout import FanOut


class FanInputs(NamedTuple):
    """What both passes of a fan read.

    Attributes:
        x: [N, C, H, W]; of images side by side [N / images, images * C, H, W], as all maps are.
        scale: [uses, C], or [uses, 1].
        sample: [uses, N], or None.
        gamma: the weights of the BNs between two stages, [two-stage branches, C], or None.
        beta: their biases.
        weights: of the convolutions, as the kernels need them: depthwise and pointwise in turn.
    """

    x: Tensor
    scale: Tensor
    sample: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None
    weights: Sequence[Tensor]

    def call(self, images: int) -> FanCall:
        """The structure of a pass, with the addresses of these tensors."""
        return FanCall(
            images=images,
            x=self.x.data_ptr(),
            weights=pointers(self.weights),
            scale=self.scale.data_ptr(),
            scale_per_channel=self.scale.shape[1] > 1,
            sample=address(self.sample),
            gamma=address(self.gamma),
            beta=address(self.beta),
        )


class Stored(NamedTuple):
    """What the forward pass keeps for the backward pass, beside its inputs.

    Attributes:
        maps: of the convolutions and pools before their BNs, one after the other.
        statistics: the mean and 1 / deviation of each map, [2, maps, C] in float64, because sums over many values
            cancel; 0 and 1 for a map without a BN. They hold for every image, also where several are side by side.
    """

    maps: Tensor
    statistics: Tensor


def forward(
    fan: FanOut, beside: SideBySide, given: FanInputs, shift: Tensor | None, sums: Sequence[Tensor | None]
) -> tuple[list[Tensor], Stored]:
    """Add every use to its target's sum; a target whose sum is None starts a new one."""
    x = given.x
    shape, out = _shapes(fan, x)
    stored = Stored(
        new_maps(x.dtype, len(fan.stored), *out),
        torch.empty(2, len(fan.items), beside.channels, dtype=torch.float64),
    )
    outs = [
        torch.empty(out, dtype=x.dtype, memory_format=torch.channels_last) if total is None else total for total in sums
    ]
    call = given.call(beside.images)
    call.norms = norms_for_kernels(fan.norms, fan.eps)
    call.shift = address(shift)
    call.maps, (call.mean, call.inverse) = stored.maps.data_ptr(), _addresses_of_two(stored.statistics)
    call.outs, call.add = pointers(outs), integers([total is not None for total in sums])
    run(fan.kernels.on(x).fan_forward, shape, fan.structure, call)
    return outs, stored


class Gradients(NamedTuple):
    """The gradients with respect to a fan's inputs; those that are not wanted are None.

    `scale` and `shift` are [uses, C] in float64, one row after the other in memory.
    """

    scale: Tensor
    shift: Tensor
    x: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None
    weights: Sequence[Tensor | None]


def backward(
    fan: FanOut,
    beside: SideBySide,
    given: FanInputs,
    stored: Stored,
    gs: Sequence[Tensor],
    want_inputs: bool,
    want_weights: bool,
) -> Gradients:
    """The gradients, from those with respect to the targets' sums.

    Args:
        gs: by target, [N, C, H, W] in the layout of channels last.
        want_inputs: whether those of x, gamma and beta are wanted.
        want_weights: whether those of the convolutions' weights are, too.
    """
    call = given.call(beside.images)
    call.norms.eps, call.norms.sum = fan.eps, sum_over_ranks()
    call.maps, (call.mean, call.inverse) = stored.maps.data_ptr(), _addresses_of_two(stored.statistics)
    call.gs = pointers(gs)
    products = torch.empty(2, len(fan.uses), beside.channels, dtype=torch.float64)
    call.d_shift, call.d_scale = _addresses_of_two(products)
    weights = _like(given.weights) if want_weights else None
    dx = torch.empty_like(given.x, memory_format=torch.channels_last) if want_inputs else None
    inner = given.gamma.new_empty(2, *given.gamma.shape) if want_inputs and given.gamma is not None else None
    call.dx = address(dx)
    if weights is not None:
        call.d_weights = pointers(weights)
    if inner is not None:
        call.d_gamma, call.d_beta = _addresses_of_two(inner)
    run(fan.kernels.on(given.x).fan_backward, _shapes(fan, given.x)[0], fan.structure, call)
    shift, scale = products.unbind()
    gamma, beta = (None, None) if inner is None else inner.unbind()
    d_weights = [None] * len(given.weights) if weights is None else beside.weight_gradients(weights)
    return Gradients(scale, shift, dx, gamma, beta, d_weights)


def _shapes(fan: FanOut, x: Tensor) -> tuple[Shape, tuple[int, int, int, int]]:
    """The shape of x for the kernels, and that of the results."""
    num, channels, height, width = x.shape
    stride = fan.stride
    out = num, channels, -(-height // stride), -(-width // stride)
    return Shape(num, height, width, channels, stride, torch.get_num_threads()), out


def _addresses_of_two(pair: Tensor) -> tuple[int, int]:
    """The addresses of the two parts of a tensor [2, ...]."""
    first = pair.data_ptr()
    return first, first + pair.numel() // 2 * pair.element_size()


def _like(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of these shapes, in one piece of memory: to allocate each of many small ones takes longer."""
    if not tensors:
        return []
    pieces = torch.empty(sum(tensor.numel() for tensor in tensors), dtype=tensors[0].dtype)
    parts = pieces.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
