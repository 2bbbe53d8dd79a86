"""All candidate ops that leave one node of a cell, as one autograd function over compiled kernels.

`FanOut` takes a node's map and adds, to the sum of every node behind it, the ops on the edge between them:

    sum_t += sum over ops o of  sample_o[n] * (scale_o * BN_o(op_o(x)) + shift_o)

In a supernet `scale_o` is the edge's mixing weight; in a derived network it and `shift_o` are the weights of the op's
own batch normalisation, and `sample_o` is drop path. Statistics are of the batch in training, running in evaluation.
The forward pass keeps x, each convolution's result before its BN, and nothing else.

There are hundreds of passes in a step, so what never changes about a fan is put into arrays when it is made, and a pass
only fills in addresses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from registry.norm import BatchNorm
from ssfnas_cli.native.cells import (
    GROUP,
    IDENTITY,
    ITEM,
    SEPARABLE,
    TERM,
    UPSTREAM,
    CellKernels,
    Shape,
    addresses,
    rows,
    structures,
)
from ssfnas_cli.nets.branches import Branch, recognise
from ssfnas_cli.nets.normalisation import can_run, settle, through


def divide(
    kernels: CellKernels | None, ops: Sequence[tuple[nn.Module, int]], stride: int, affine: bool
) -> tuple[FanOut | None, list[int]]:
    """A fan of those ops on one map that the kernels know, and their places.

    Args:
        kernels: None where there are none.
        ops: each with the node whose sum it adds to; one that stands there for several nodes is run once.
        stride: of all of them.
        affine: whether the fan's scale and shift will hold the weights of the ops' last BNs; else ops that have some
            are left out.
    """
    branches: dict[nn.Module, Branch] = {}
    for op in {op: None for op, _ in ops} if kernels else ():
        branch = recognise(op)
        if branch is not None and (affine or branch.norm is None or not branch.norm.affine):
            branches[op] = branch
    if kernels is None or not branches:
        return None, []
    number = {op: k for k, op in enumerate(branches)}
    known = [place for place, (op, _) in enumerate(ops) if op in branches]
    uses = [Use(number[op], target) for op, target in ops if op in branches]
    return FanOut(kernels, list(branches.values()), uses, stride), known


class Use(NamedTuple):
    """A branch's place in the sum of a node, the target."""

    branch: int
    target: int


class FanOut:
    """What leaves one node.

    Args:
        kernels: compiled.
        branches: the ops; one that several edges share (a pool) stands once.
        uses: which branch adds to which target, in the order of the rows of `scale`.
        stride: of every branch.

    Its maps are numbered: the result of every branch's first stage (of a pool or the identity: of all of it), then
    those of the second stages that some branches have. All that is [maps, C] has a row for each.
    """

    def __init__(self, kernels: CellKernels, branches: Sequence[Branch], uses: Sequence[Use], stride: int):
        self.kernels, self.stride, self.num_first = kernels, stride, len(branches)
        self.doubled = [k for k, branch in enumerate(branches) if len(branch.stages) == 2]
        second = {branch: self.num_first + place for place, branch in enumerate(self.doubled)}
        kinds = [branch.kind for branch in branches] + [SEPARABLE] * len(self.doubled)
        self.stages = [branch.stages[0] if branch.stages else None for branch in branches]
        self.stages += [branches[k].stages[1] for k in self.doubled]
        self.norms: list[BatchNorm | None] = [
            stage.norm if stage else branch.norm for stage, branch in zip(self.stages, branches, strict=False)
        ]
        self.norms += [branches[k].norm for k in self.doubled]
        self.inner_norms = [branches[k].stages[0].norm for k in self.doubled]
        self.made = [k for k, kind in enumerate(kinds) if kind != IDENTITY]
        self.convolved = [k for k, stage in enumerate(self.stages) if stage]
        self._keep_items(kinds)
        self.targets = sorted({use.target for use in uses})
        self._keep_uses(uses, [second.get(use.branch, use.branch) for use in uses])

    def _keep_items(self, kinds: list[int]) -> None:
        self.items = structures(ITEM, len(kinds))
        self.items["kind"] = kinds
        self.items["kernel"][self.convolved] = [s.depthwise.kernel_size[0] for s in self.stages if s]
        self.items["dilation"][self.convolved] = [s.depthwise.dilation[0] for s in self.stages if s]
        self.normed = np.array([k for k, norm in enumerate(self.norms) if norm is not None], dtype=int)
        first = self.normed < self.num_first
        self.first_normed, self.second_normed = self.normed[first], self.normed[~first]
        self.first_made = np.array([k for k in self.made if k < self.num_first], dtype=int)

    def _keep_uses(self, uses: Sequence[Use], last_map: list[int]) -> None:
        """How results come to the targets, and their gradients back: the latter by map, then the inner ones."""
        self.last_map = np.array(last_map)
        self.terms = structures(TERM, len(uses))
        self.terms["target"] = [self.targets.index(use.target) for use in uses]
        self.terms["blocked"] = self.items["kind"][self.last_map] != IDENTITY
        self.of_identity = self.terms["blocked"] == 0
        self.by_target = np.argsort(self.terms["target"], kind="stable")
        self.by_map = np.argsort(self.last_map, kind="stable")
        self.upstreams = structures(UPSTREAM, len(uses) + len(self.doubled))
        self.upstreams["blocked"][len(uses) :] = 1
        counts = np.bincount(self.last_map, minlength=len(self.items))
        self.items["num_upstream"], self.items["first_upstream"] = counts, np.cumsum(counts) - counts
        self.items["num_upstream"][self.doubled] = 1
        self.items["first_upstream"][self.doubled] = len(uses) + np.arange(len(self.doubled))
        self.add_up = torch.zeros(len(self.items), len(uses), dtype=torch.float64)
        self.add_up[last_map, range(len(uses))] = 1

    def can_run(self, x: Tensor) -> bool:
        """Whether the kernels take this input here and now."""
        return can_run(self.kernels, self.norms, x)

    def add_to(
        self,
        sums: dict[int, Tensor],
        x: Tensor,
        scale: Tensor,
        shift: Tensor | None = None,
        sample: Tensor | None = None,
    ) -> None:
        """Add this node's ops to the targets' sums.

        Args:
            sums: by target, what the nodes before added [N, C, H/s, W/s], which is changed in place.
            x: [N, C, H, W].
            scale: [uses, C], or [uses, 1].
            shift: [uses, C], or None.
            sample: [uses, N], a factor for every image, or None.
        """
        affine = bool(self.inner_norms) and self.inner_norms[0].affine
        gamma = torch.stack([norm.weight for norm in self.inner_norms]) if affine else None
        beta = torch.stack([norm.bias for norm in self.inner_norms]) if affine else None
        weights = [w for stage in self.stages if stage for w in (stage.depthwise.weight, stage.pointwise.weight)]
        x = x.contiguous(memory_format=torch.channels_last)
        before = [sums.get(target) for target in self.targets]
        after = _FanOutFunction.apply(self, x, scale, shift, sample, gamma, beta, *before, *weights)
        sums.update(zip(self.targets, after, strict=True))


class _FanOutFunction(torch.autograd.Function):
    """Forward in three passes over the batch (first stages, second stages, sums), backward in three."""

    @staticmethod
    def forward(
        ctx: Any,
        fan: FanOut,
        x: Tensor,
        scale: Tensor,
        shift: Tensor | None,
        sample: Tensor | None,
        gamma: Tensor | None,
        beta: Tensor | None,
        *rest: Tensor | None,
    ) -> Any:
        num_targets = len(rest) - 2 * len(fan.convolved)
        sums, weights = rest[:num_targets], rest[num_targets:]
        work = _Forward(fan, x, weights)  # type: ignore[arg-type]
        work.first_stages()
        work.second_stages(gamma, beta)
        outs = work.mix(scale, shift, sample, sums)
        ctx.fan, ctx.added_to = fan, [total is not None for total in sums]
        ctx.mark_dirty(*(total for total in sums if total is not None))
        ctx.save_for_backward(x, scale, sample, gamma, beta, work.mean, work.inverse, *work.maps, *weights)
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        fan: FanOut = ctx.fan
        x, scale, sample, gamma, beta, mean, inverse, *rest = ctx.saved_tensors
        maps, weights = rest[: len(fan.made)], rest[len(fan.made) :]
        want_weights = any(ctx.needs_input_grad[len(ctx.needs_input_grad) - len(weights) :])
        work = _Backward(fan, x, weights, maps, mean, inverse, want_weights)
        gs = [g.contiguous(memory_format=torch.channels_last) for g in gradients]
        d_scale, d_shift = work.through_mix(gs, scale, sample)
        d_gamma: Tensor | None = None
        d_beta: Tensor | None = None
        dx: Tensor | None = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[5] or want_weights:  # not where an alpha step begins
            d_gamma, d_beta = work.through_second_stages(gamma, beta)
            dx = work.through_first_stages()
        d_sums = [g if added else None for g, added in zip(gradients, ctx.added_to, strict=True)]
        shifts = ctx.needs_input_grad[3]
        return (None, dx, d_scale, d_shift if shifts else None, None, d_gamma, d_beta, *d_sums, *work.d_weights)


class _Pass:
    """One run of a fan: its maps, and their statistics [maps, C].

    A map without a BN has mean 0 and inverse deviation 1. Statistics, and sums over the batch, are in float64: what is
    added up over channels cancels.
    """

    mean: Tensor
    inverse: Tensor

    def __init__(self, fan: FanOut, x: Tensor, weights: Sequence[Tensor], maps: Sequence[Tensor] | None = None):
        self.fan, self.kernels, self.x = fan, fan.kernels, x
        num, channels, height, width = x.shape
        out = [-(-side // fan.stride) for side in (height, width)]
        threads = torch.get_num_threads()
        self.shape = Shape(num, height, width, channels, fan.stride, threads)
        self.out_shape = Shape(num, *out, channels, 1, threads)
        self.num_pixels = num * out[0] * out[1]
        self.maps = self.new_maps(len(fan.made)) if maps is None else maps
        self.items = fan.items.copy()
        self.items["y"][fan.made] = addresses(self.maps)
        self.items["depthwise"][fan.convolved] = addresses(weights[::2])
        self.items["pointwise"][fan.convolved] = addresses(weights[1::2])
        self.kept: list[Any] = []  # what structures only point at

    def new_maps(self, count: int) -> list[Tensor]:
        """Memory for blocked maps of the output's size."""
        shape = self.out_shape
        return [self.kernels.new_map(shape.num, shape.channels, shape.height, shape.width) for _ in range(count)]

    def rows_of(self, matrix: Tensor) -> np.ndarray:
        """Addresses of a matrix's rows, rounded as the kernels take them."""
        rounded = matrix.to(self.x.dtype).contiguous()
        self.kept.append(rounded)
        return rows(rounded)

    def inner_affine(self, gamma: Tensor | None, beta: Tensor | None) -> tuple[Tensor, Tensor]:
        """The BN between two stages as scale and shift [doubled, C], in float64."""
        mean, inverse = self.mean[self.fan.doubled], self.inverse[self.fan.doubled]
        scale = inverse if gamma is None else gamma * inverse
        shift = -mean * scale if beta is None else beta - mean * scale
        return scale, shift

    def inner_groups(self, scale: Tensor, shift: Tensor) -> np.ndarray:
        """A group for each second stage: its input is the first stage's result, normalised."""
        groups = structures(GROUP, len(self.fan.doubled))
        groups["x"] = self.items["y"][self.fan.doubled]
        groups["scale"], groups["shift"] = self.rows_of(scale), self.rows_of(shift)
        groups["first_item"], groups["num_items"] = np.arange(len(groups)), 1
        groups["blocked"] = 1
        return groups

    def terms(self, sample: Tensor | None) -> np.ndarray:
        """The summands of the targets: the maps' results about their means."""
        terms = self.fan.terms.copy()
        terms["y"] = self.items["y"][self.fan.last_map]
        terms["y"][self.fan.of_identity] = self.x.data_ptr()
        terms["centre"] = self.items["centre"][self.fan.last_map]
        if sample is not None:
            terms["sample"] = rows(sample)
        return terms


class _Forward(_Pass):
    """Forward."""

    def __init__(self, fan: FanOut, x: Tensor, weights: Sequence[Tensor]):
        super().__init__(fan, x, weights)
        statistics = x.new_zeros(2, len(fan.items), x.shape[1], dtype=torch.float64)
        self.mean, self.variance = statistics.unbind()
        self.inverse = torch.ones_like(self.mean)
        measured = [k for k in fan.normed if fan.norms[k].training]
        self.items["mean"][measured] = rows(self.mean)[measured]
        self.items["variance"][measured] = rows(self.variance)[measured]

    def first_stages(self) -> None:
        """Every branch's first convolutions or pool, on the same input."""
        items = self.items[self.fan.first_made]
        group = structures(GROUP, 1)
        group["x"], group["num_items"] = self.x.data_ptr(), len(items)
        if len(items):
            self.kernels.groups_forward(self.shape, group, items)
        self._settle(self.fan.first_normed)

    def second_stages(self, gamma: Tensor | None, beta: Tensor | None) -> None:
        """Of separable convolutions: each on its own first stage's result, normalised."""
        if self.fan.doubled:
            groups = self.inner_groups(*self.inner_affine(gamma, beta))
            self.kernels.groups_forward(self.out_shape, groups, self.items[self.fan.num_first :])
            self._settle(self.fan.second_normed)

    def _settle(self, maps: np.ndarray) -> None:
        """These maps' statistics, as their norms use them."""
        if len(maps):
            norms = [self.fan.norms[k] for k in maps]
            mean, variance = self.mean[maps], self.variance[maps]
            self.inverse[maps] = settle(norms, mean, variance, self.num_pixels, self.x.dtype)
            self.mean[maps] = mean

    def mix(
        self, scale: Tensor, shift: Tensor | None, sample: Tensor | None, sums: Sequence[Tensor | None]
    ) -> list[Tensor]:
        """The targets' sums."""
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
        self.kernels.mix_forward(self.out_shape, terms, outs, [total is not None for total in sums])
        return outs


class _Backward(_Pass):
    """Backward: from the targets' gradients to the second stages, from those to the first, from those to x."""

    def __init__(
        self,
        fan: FanOut,
        x: Tensor,
        weights: Sequence[Tensor],
        maps: Sequence[Tensor],
        mean: Tensor,
        inverse: Tensor,
        want_weights: bool,
    ):
        super().__init__(fan, x, weights, maps)
        self.mean, self.inverse = mean, inverse
        self.d_weights: list[Tensor] | list[None] = [None] * len(weights)
        if want_weights:
            made = self.d_weights = [torch.empty_like(weight) for weight in weights]
            self.items["d_depthwise"][fan.convolved] = addresses(made[::2])
            self.items["d_pointwise"][fan.convolved] = addresses(made[1::2])
        self.items["centre"][fan.normed] = self.rows_of(mean)[fan.normed]
        self.upstreams = fan.upstreams.copy()

    def through_mix(self, gs: Sequence[Tensor], scale: Tensor, sample: Tensor | None) -> tuple[Tensor, Tensor]:
        """Gradients by scale and shift; leaves what arrives at the branches' last maps."""
        fan, num_uses = self.fan, len(self.fan.terms)
        sums, dots = self.x.new_empty(2, num_uses, self.x.shape[1], dtype=torch.float64).unbind()
        terms = self.terms(sample)
        terms["sum"], terms["dot"] = rows(sums), rows(dots)
        # The terms of one target side by side: its gradient is read once.
        self.kernels.mix_sums(self.out_shape, terms[fan.by_target], gs)
        inverse = self.inverse[fan.last_map]
        upstreams = self.upstreams[:num_uses]
        upstreams["g"] = addresses(gs)[terms["target"][fan.by_map]]
        upstreams["scale"] = self.rows_of(scale * inverse)[fan.by_map]
        upstreams["sample"] = terms["sample"][fan.by_map]
        slope, offset = through(inverse, scale * sums, scale * dots, self.num_pixels)
        self.slope, self.offset = ((fan.add_up @ part).to(self.x.dtype) for part in (slope, offset))
        self.items["slope"][fan.normed] = rows(self.slope)[fan.normed]
        self.items["offset"][fan.normed] = rows(self.offset)[fan.normed]
        self.kept += [gs, sample]
        d_scale = (dots * inverse).sum_to_size(scale.shape)
        return d_scale.to(self.x.dtype), sums.to(self.x.dtype)

    def through_second_stages(self, gamma: Tensor | None, beta: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Gradients by gamma and beta; leaves what arrives at the first stages before them."""
        fan = self.fan
        if not fan.doubled:
            return None, None
        scale, shift = self.inner_affine(gamma, beta)
        sums, dots = torch.empty_like(scale), torch.empty_like(scale)
        inner = self.new_maps(len(fan.doubled))
        groups = self.inner_groups(scale, shift)
        groups["dx"], groups["centre"] = addresses(inner), self.items["centre"][fan.doubled]
        groups["sum"], groups["dot"] = rows(sums), rows(dots)
        self.kernels.groups_backward(self.out_shape, groups, self.items[fan.num_first :], self.upstreams)
        upstreams = self.upstreams[len(fan.terms) :]
        upstreams["g"], upstreams["scale"] = addresses(inner), groups["scale"]
        inverse, factor = self.inverse[fan.doubled], 1 if gamma is None else gamma
        slope, offset = through(inverse, factor * sums, factor * dots, self.num_pixels)
        self.slope[fan.doubled], self.offset[fan.doubled] = slope.to(self.x.dtype), offset.to(self.x.dtype)
        self.kept.append(inner)
        return (None, None) if gamma is None else ((dots * inverse).to(self.x.dtype), sums.to(self.x.dtype))

    def through_first_stages(self) -> Tensor:
        """Gradient by x."""
        dx = torch.empty_like(self.x, memory_format=torch.channels_last)
        group = structures(GROUP, 1)
        group["x"], group["num_items"], group["dx"] = self.x.data_ptr(), self.fan.num_first, dx.data_ptr()
        self.kernels.groups_backward(self.shape, group, self.items[: self.fan.num_first], self.upstreams)
        return dx
