"""The passes of a fan (fanout.py) over the batch, forward and backward, as calls of the compiled kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ssfnas_cli.native.cells import GROUP, Shape, addresses, rows, structures
from ssfnas_cli.nets.compiled.normalisation import finish_statistics, statistics_gradient
from ssfnas_cli.nets.compiled.side_by_side import SideBySide

if TYPE_CHECKING:
    from ssfnas_cli.nets.compiled.fanout import FanOut


class _Pass:
    """What the forward and the backward pass of a fan share.

    Attributes:
        x: [N, C, H, W]; of images side by side [N / images, images * C, H, W], as all maps are.
        weights: of the convolutions, as the kernels need them.
        maps: the stored maps, [N, H, W, C], before their BNs.
        mean: of every map, [maps, C]; 0 for a map without a BN.
        inverse: 1 / deviation of every map, [maps, C]; 1 for a map without a BN.

    What is [.., C] holds for every image, also where several are side by side. Statistics and sums over the batch are
    in float64, because sums over many values cancel.
    """

    mean: Tensor
    inverse: Tensor

    def __init__(
        self,
        fan: FanOut,
        beside: SideBySide,
        x: Tensor,
        weights: Sequence[Tensor],
        maps: Sequence[Tensor] | None = None,
    ):
        self.fan, self.kernels, self.beside, self.x = fan, fan.kernels, beside, x
        self.weights = beside.weights(weights)
        num, channels, height, width = x.shape
        out = [-(-side // fan.stride) for side in (height, width)]
        threads = torch.get_num_threads()
        self.shape = Shape(num, height, width, channels, fan.stride, threads)
        self.out_shape = Shape(num, *out, channels, 1, threads)
        self.num_pixels = num * beside.images * out[0] * out[1]
        self.maps = self.new_maps(len(fan.stored)) if maps is None else maps
        self.items = fan.items.copy()
        self.items["y"][fan.stored] = addresses(self.maps)
        self.items["depthwise"][fan.convolved] = addresses(self.weights[::2])
        self.items["pointwise"][fan.convolved] = addresses(self.weights[1::2])
        self.kept: list[Any] = []  # tensors that must live as long as the structures that hold their addresses

    def new_maps(self, count: int) -> list[Tensor]:
        """Allocate maps of the output's size."""
        shape = self.out_shape
        return [self.kernels.new_map(shape.num, shape.channels, shape.height, shape.width) for _ in range(count)]

    def rows_of(self, matrix: Tensor) -> np.ndarray:
        """The addresses of the rows of a matrix [.., C], once it has the type and width that the kernels take."""
        rounded = self.beside.spread(matrix.to(self.x.dtype)).contiguous()
        self.kept.append(rounded)
        return rows(rounded)

    def inner_affine(self, gamma: Tensor | None, beta: Tensor | None) -> tuple[Tensor, Tensor]:
        """The BN between two stages, as a scale and a shift [two-stage branches, C] in float64."""
        mean, inverse = self.mean[self.fan.two_stage], self.inverse[self.fan.two_stage]
        scale = inverse if gamma is None else gamma * inverse
        shift = -mean * scale if beta is None else beta - mean * scale
        return scale, shift

    def inner_groups(self, scale: Tensor, shift: Tensor) -> np.ndarray:
        """A group for each second stage, whose input is the first stage's normalised result."""
        groups = structures(GROUP, len(self.fan.two_stage))
        groups["x"] = self.items["y"][self.fan.two_stage]
        groups["scale"], groups["shift"] = self.rows_of(scale), self.rows_of(shift)
        groups["first_item"], groups["num_items"] = np.arange(len(groups)), 1
        return groups

    def terms(self, sample: Tensor | None) -> np.ndarray:
        """The terms of the targets' sums: each is a map minus its mean, still to be scaled and shifted."""
        terms = self.fan.terms.copy()
        terms["y"] = self.items["y"][self.fan.last_map]
        terms["y"][self.fan.of_identity] = self.x.data_ptr()
        terms["centre"] = self.items["centre"][self.fan.last_map]
        if sample is not None:
            terms["sample"] = rows(sample)
        return terms


class FanForward(_Pass):
    """The forward pass: call `first_stages`, `second_stages`, `add_terms`, in this order."""

    def __init__(self, fan: FanOut, beside: SideBySide, x: Tensor, weights: Sequence[Tensor]):
        super().__init__(fan, beside, x, weights)
        self.mean = x.new_zeros(len(fan.items), beside.channels, dtype=torch.float64)
        self.inverse = torch.ones_like(self.mean)
        self.measured = x.new_zeros(2, len(fan.items), x.shape[1], dtype=torch.float64)  # means and variances
        trained = [k for k in fan.normed if fan.norms[k].training]
        for name, values in zip(("mean", "variance"), self.measured, strict=True):
            self.items[name][trained] = rows(values)[trained]

    def first_stages(self) -> None:
        """Compute every branch's first stage or pool; all of them read x."""
        items = self.items[self.fan.first_stored]
        group = structures(GROUP, 1)
        group["x"], group["num_items"] = self.x.data_ptr(), len(items)
        if len(items):
            self.kernels.groups_forward(self.shape, group, items)
        self._finish_statistics(self.fan.first_normed)

    def second_stages(self, gamma: Tensor | None, beta: Tensor | None) -> None:
        """Compute the second stages; each reads the normalised result of its own first stage."""
        if self.fan.two_stage:
            groups = self.inner_groups(*self.inner_affine(gamma, beta))
            self.kernels.groups_forward(self.out_shape, groups, self.items[self.fan.num_first :])
            self._finish_statistics(self.fan.second_normed)

    def _finish_statistics(self, maps: np.ndarray) -> None:
        """Turn the batch's statistics of these maps into those that their BNs use."""
        if len(maps):
            norms = [self.fan.norms[k] for k in maps]
            mean, variance = self.beside.merge(*self.measured[:, maps])
            self.inverse[maps] = finish_statistics(norms, mean, variance, self.num_pixels, self.x.dtype)
            self.mean[maps] = mean

    def add_terms(
        self, scale: Tensor, shift: Tensor | None, sample: Tensor | None, sums: Sequence[Tensor | None]
    ) -> list[Tensor]:
        """Add every term to its target's sum; a target whose sum is None starts a new one."""
        shape = (self.out_shape.num, self.out_shape.channels, self.out_shape.height, self.out_shape.width)
        outs = [
            torch.empty(shape, dtype=self.x.dtype, memory_format=torch.channels_last) if total is None else total
            for total in sums
        ]
        self.items["centre"] = self.rows_of(self.mean)
        terms = self.terms(sample)
        terms["scale"] = self.rows_of(scale * self.inverse[self.fan.last_map])
        if shift is not None:
            terms["shift"] = self.rows_of(shift)
        self.kernels.add_terms(self.out_shape, terms, outs, [total is not None for total in sums])
        return outs


class FanBackward(_Pass):
    """The backward pass: call `terms_backward`, `second_stages_backward`, `first_stages_backward`, in this order."""

    def __init__(
        self,
        fan: FanOut,
        beside: SideBySide,
        x: Tensor,
        weights: Sequence[Tensor],
        maps: Sequence[Tensor],
        mean: Tensor,
        inverse: Tensor,
        want_weights: bool,
    ):
        super().__init__(fan, beside, x, weights, maps)
        self.mean, self.inverse = mean, inverse
        self.gradients: list[Tensor] | None = None
        if want_weights:
            gradients = self.gradients = [torch.empty_like(weight) for weight in self.weights]
            self.items["d_depthwise"][fan.convolved] = addresses(gradients[::2])
            self.items["d_pointwise"][fan.convolved] = addresses(gradients[1::2])
        self.items["centre"][fan.normed] = self.rows_of(mean)[fan.normed]
        self.upstreams = fan.upstreams.copy()

    def terms_backward(self, gs: Sequence[Tensor], scale: Tensor, sample: Tensor | None) -> tuple[Tensor, Tensor]:
        """Gradients with respect to scale and shift; fills the upstreams of the branches' last maps."""
        fan, num_uses = self.fan, len(self.fan.terms)
        products = self.x.new_empty(2, num_uses, self.x.shape[1], dtype=torch.float64)
        terms = self.terms(sample)
        terms["sum"], terms["dot"] = rows(products[0]), rows(products[1])
        # Terms of the same target follow one another, so that each image of its gradient is read once.
        self.kernels.term_sums(self.out_shape, terms[fan.by_target], gs)
        sums, dots = self.beside.add(products).unbind()
        inverse = self.inverse[fan.last_map]
        upstreams = self.upstreams[:num_uses]
        upstreams["g"] = addresses(gs)[terms["target"][fan.by_map]]
        upstreams["scale"] = self.rows_of(scale * inverse)[fan.by_map]
        upstreams["sample"] = terms["sample"][fan.by_map]
        slope, offset = statistics_gradient(inverse, scale * sums, scale * dots, self.num_pixels)
        self.slope, self.offset = (self._for_kernels(fan.uses_of_map @ part) for part in (slope, offset))
        self.items["slope"][fan.normed] = rows(self.slope)[fan.normed]
        self.items["offset"][fan.normed] = rows(self.offset)[fan.normed]
        self.kept += [gs, sample]
        d_scale = (dots * inverse).sum_to_size(scale.shape)
        return d_scale.to(self.x.dtype), sums.to(self.x.dtype)

    def second_stages_backward(self, gamma: Tensor | None, beta: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Gradients with respect to gamma and beta; fills the upstreams of the first stages before them."""
        fan = self.fan
        if not fan.two_stage:
            return None, None
        scale, shift = self.inner_affine(gamma, beta)
        products = self.x.new_empty(2, len(scale), self.x.shape[1], dtype=torch.float64)
        inner = self.new_maps(len(fan.two_stage))
        groups = self.inner_groups(scale, shift)
        groups["dx"], groups["centre"] = addresses(inner), self.items["centre"][fan.two_stage]
        groups["sum"], groups["dot"] = rows(products[0]), rows(products[1])
        self.kernels.groups_backward(self.out_shape, groups, self.items[fan.num_first :], self.upstreams)
        sums, dots = self.beside.add(products).unbind()
        upstreams = self.upstreams[len(fan.terms) :]
        upstreams["g"], upstreams["scale"] = addresses(inner), groups["scale"]
        inverse, factor = self.inverse[fan.two_stage], 1 if gamma is None else gamma
        slope, offset = statistics_gradient(inverse, factor * sums, factor * dots, self.num_pixels)
        self.slope[fan.two_stage], self.offset[fan.two_stage] = self._for_kernels(slope), self._for_kernels(offset)
        self.kept.append(inner)
        return (None, None) if gamma is None else ((dots * inverse).to(self.x.dtype), sums.to(self.x.dtype))

    def _for_kernels(self, matrix: Tensor) -> Tensor:
        """A matrix [maps, C] in the type and width that the kernels take."""
        return self.beside.spread(matrix.to(self.x.dtype))

    def first_stages_backward(self) -> Tensor:
        """The gradient with respect to x."""
        dx = torch.empty_like(self.x, memory_format=torch.channels_last)
        group = structures(GROUP, 1)
        group["x"], group["num_items"], group["dx"] = self.x.data_ptr(), self.fan.num_first, dx.data_ptr()
        self.kernels.groups_backward(self.shape, group, self.items[: self.fan.num_first], self.upstreams)
        return dx

    def weight_gradients(self) -> list[Tensor] | list[None]:
        """Those that were wanted, once both stages are done."""
        return [None] * len(self.weights) if self.gradients is None else self.beside.weight_gradients(self.gradients)
