"""All candidate ops that leave one node of a cell, as one autograd function over compiled kernels.

`FanOut` takes a node's map and adds, to the sum of every node behind it, the ops on the edge between them:

    sum_t += sum over ops o of  sample_o[n] * (scale_o * BN_o(op_o(x)) + shift_o)

In a supernet `scale_o` is the edge's mixing weight; in a derived network it and `shift_o` are the weights of the op's
own batch normalisation, and `sample_o` is drop path. Statistics are of the batch in training, running in evaluation.
The forward pass keeps x, each convolution's result before its BN, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from registry.depthwise import DepthwiseConv
from registry.norm import BatchNorm
from ssfnas_cli.native.cells import (
    AVG_POOL,
    IDENTITY,
    MAX_POOL,
    SEPARABLE,
    CellKernels,
    Group,
    Item,
    Shape,
    Term,
    Upstream,
)
from ssfnas_cli.nets.normalisation import can_run, settle, through


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
            DepthwiseConv(channels, kernel, depthwise.stride[0], dilation),
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


@dataclass(frozen=True)
class Use:
    """A branch's place in a node's sum."""

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
    those of the second stages that some branches have.
    """

    def __init__(self, kernels: CellKernels, branches: Sequence[Branch], uses: Sequence[Use], stride: int):
        self.kernels, self.branches, self.uses, self.stride = kernels, list(branches), list(uses), stride
        self.doubled = [k for k, branch in enumerate(branches) if len(branch.stages) == 2]
        second = {branch: len(branches) + place for place, branch in enumerate(self.doubled)}
        self.last_map = [second.get(use.branch, use.branch) for use in uses]
        self.stages = [branch.stages[0] if branch.stages else None for branch in branches]
        self.stages += [branches[k].stages[1] for k in self.doubled]
        self.norms = [
            stage.norm if stage else branch.norm for stage, branch in zip(self.stages, branches, strict=False)
        ]
        self.norms += [branches[k].norm for k in self.doubled]
        self.inner_norms = [branches[k].stages[0].norm for k in self.doubled]

    def can_run(self, x: Tensor) -> bool:
        """Whether the kernels take this input here and now."""
        return can_run(self.kernels, self.norms, x)

    def __call__(
        self,
        x: Tensor,
        sums: Sequence[Tensor | None],
        scale: Tensor,
        shift: Tensor | None = None,
        sample: Tensor | None = None,
    ) -> list[Tensor]:
        """The targets' sums with this node's ops added.

        Args:
            x: [N, C, H, W].
            sums: for each target what the nodes before added [N, C, H/s, W/s], which is changed in place; None where
                nothing did.
            scale: [uses, C], or [uses, 1].
            shift: [uses, C], or None.
            sample: [uses, N], a factor for every image, or None.
        """
        affine = bool(self.inner_norms) and self.inner_norms[0].affine
        gamma = torch.stack([norm.weight for norm in self.inner_norms]) if affine else None
        beta = torch.stack([norm.bias for norm in self.inner_norms]) if affine else None
        weights = [w for stage in self.stages if stage for w in (stage.depthwise.weight, stage.pointwise.weight)]
        x = x.contiguous(memory_format=torch.channels_last)
        return list(_FanOutFunction.apply(self, x, scale, shift, sample, gamma, beta, *sums, *weights))


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
        num_targets = len(rest) - 2 * sum(stage is not None for stage in fan.stages)
        sums, weights = rest[:num_targets], rest[num_targets:]
        work = _Pass(fan, x, [weight for weight in weights if weight is not None])
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
        maps, weights = rest[: len(fan.stages)], rest[len(fan.stages) :]
        work = _Pass(fan, x, weights, maps, mean, inverse)
        if any(ctx.needs_input_grad[len(ctx.needs_input_grad) - len(weights) :]):
            work.want_weight_gradients()
        gs = [g.contiguous(memory_format=torch.channels_last) for g in gradients]
        d_scale, d_shift, upstreams = work.through_mix(gs, scale, sample)
        d_gamma, d_beta = work.through_second_stages(gamma, beta, upstreams)
        dx = work.through_first_stages(upstreams)
        d_sums = [g if added else None for g, added in zip(gradients, ctx.added_to, strict=True)]
        return (
            None,
            dx,
            d_scale,
            d_shift if ctx.needs_input_grad[3] else None,
            None,
            d_gamma,
            d_beta,
            *d_sums,
            *work.weight_gradients(),
        )


class _Pass:
    """One run of a `FanOut`, forward or backward: its maps, and their statistics [maps, C].

    A map without a BN has mean 0 and inverse deviation 1. Statistics, and sums over the batch, are in float64: what is
    added up over channels cancels.
    """

    def __init__(self, fan: FanOut, x: Tensor, weights: Sequence[Tensor], *saved: Any):
        self.fan, self.kernels, self.x = fan, fan.kernels, x
        num, channels, height, width = x.shape
        out = [-(-side // fan.stride) for side in (height, width)]
        threads = torch.get_num_threads()
        self.shape = Shape(num, height, width, channels, fan.stride, threads)
        self.out_shape = Shape(num, *out, channels, 1, threads)
        self.num_pixels = num * out[0] * out[1]
        pairs = iter(zip(weights[::2], weights[1::2], strict=True))
        self.weights = [next(pairs) if stage else None for stage in fan.stages]
        self.gradients: list[tuple[Tensor, Tensor] | None] = [None] * len(fan.stages)
        if saved:
            self.maps, self.mean, self.inverse = saved
            return
        self.maps = [self._new_map() if kind != IDENTITY else x.new_empty(0) for kind in self._kinds()]
        self.mean, self.variance = x.new_zeros(2, len(fan.stages), channels, dtype=torch.float64).unbind()
        self.inverse = torch.ones_like(self.mean)

    def _kinds(self) -> list[int]:
        return [branch.kind for branch in self.fan.branches] + [SEPARABLE] * len(self.fan.doubled)

    def _rounded(self, values: Tensor) -> Tensor:
        """As the kernels take them."""
        return values.to(self.x.dtype).contiguous()

    def _centres(self) -> list[int]:
        self._centre = self._rounded(self.mean)
        return _rows(self._centre)

    def _new_map(self) -> Tensor:
        shape = self.out_shape
        return self.kernels.new_map(shape.num, shape.channels, shape.height, shape.width)

    def _item(self, index: int, kind: int) -> Item:
        item = Item(kind=kind, y=self.maps[index].data_ptr())
        stage, weights, gradients = self.fan.stages[index], self.weights[index], self.gradients[index]
        if stage is not None and weights is not None:
            item.kernel, item.dilation = stage.depthwise.kernel_size[0], stage.depthwise.dilation[0]
            item.depthwise, item.pointwise = (weight.data_ptr() for weight in weights)
        if gradients is not None:
            item.d_depthwise, item.d_pointwise = (gradient.data_ptr() for gradient in gradients)
        return item

    # Forward

    def first_stages(self) -> None:
        """Every branch's first convolutions or pool, on the same input."""
        items = [
            self._measured(k, branch.kind) for k, branch in enumerate(self.fan.branches) if branch.kind != IDENTITY
        ]
        group = Group(x=self.x.data_ptr(), first_item=0, num_items=len(items))
        if items:
            self.kernels.groups_forward(self.shape, [group], items)
        self._close_statistics(range(len(self.fan.branches)))

    def second_stages(self, gamma: Tensor | None, beta: Tensor | None) -> None:
        """Of separable convolutions: each on its own first stage's result, normalised."""
        if not self.fan.doubled:
            return
        begin = len(self.fan.branches)
        scale, shift = map(self._rounded, self._inner_affine(gamma, beta))
        groups, items = [], []
        for place, (branch, a, b) in enumerate(zip(self.fan.doubled, _rows(scale), _rows(shift), strict=True)):
            x = self.maps[branch].data_ptr()
            groups.append(Group(x=x, scale=a, shift=b, first_item=place, num_items=1, blocked=1))
            items.append(self._measured(begin + place, SEPARABLE))
        self.kernels.groups_forward(self.out_shape, groups, items)
        self._close_statistics(range(begin, begin + len(items)))

    def _measured(self, index: int, kind: int) -> Item:
        item = self._item(index, kind)
        norm = self.fan.norms[index]
        if norm is not None and norm.training:
            item.mean, item.variance = self.mean[index].data_ptr(), self.variance[index].data_ptr()
        return item

    def _close_statistics(self, indices: range) -> None:
        """Of these maps, as their norms use them."""
        rows = [k for k in indices if self.fan.norms[k] is not None]
        norms = [norm for norm in (self.fan.norms[k] for k in rows) if norm is not None]
        if norms:
            mean, variance = self.mean[rows], self.variance[rows]
            self.inverse[rows] = settle(norms, mean, variance, self.num_pixels, self.x.dtype)
            self.mean[rows] = mean

    def _inner_affine(self, gamma: Tensor | None, beta: Tensor | None) -> tuple[Tensor, Tensor]:
        """The BN between two stages as scale and shift [doubled, C], in float64."""
        mean, inverse = self.mean[self.fan.doubled], self.inverse[self.fan.doubled]
        scale = inverse if gamma is None else gamma * inverse
        shift = -mean * scale if beta is None else beta - mean * scale
        return scale, shift

    def mix(
        self, scale: Tensor, shift: Tensor | None, sample: Tensor | None, sums: Sequence[Tensor | None]
    ) -> list[Tensor]:
        """The targets' sums."""
        shape = (self.out_shape.num, self.out_shape.channels, self.out_shape.height, self.out_shape.width)
        outs = [
            torch.empty(shape, dtype=self.x.dtype, memory_format=torch.channels_last) if total is None else total
            for total in sums
        ]
        scale = self._rounded(scale * self.inverse[self.fan.last_map])
        shift = None if shift is None else shift.contiguous()
        terms = self._terms(sample)
        for term, a, b in zip(terms, _rows(scale), _rows(shift, len(terms)), strict=True):
            term.scale, term.shift = a, b
        self.kernels.mix_forward(self.out_shape, terms, outs, [total is not None for total in sums])
        return outs

    def _terms(self, sample: Tensor | None) -> list[Term]:
        means, samples = self._centres(), _rows(sample, len(self.fan.uses))
        terms = []
        for use, index, factor in zip(self.fan.uses, self.fan.last_map, samples, strict=True):
            identity = self.fan.branches[use.branch].kind == IDENTITY
            y = self.x if identity else self.maps[index]
            blocked = int(not identity)
            terms.append(Term(y=y.data_ptr(), centre=means[index], sample=factor, target=use.target, blocked=blocked))
        return terms

    # Backward

    def want_weight_gradients(self) -> None:
        """Have the stages' backward passes compute them."""
        self.gradients = [
            None if weights is None else (torch.empty_like(weights[0]), torch.empty_like(weights[1]))
            for weights in self.weights
        ]

    def weight_gradients(self) -> list[Tensor | None]:
        """In the order of the function's inputs."""
        pairs = [(None, None) if g is None else g for g, w in zip(self.gradients, self.weights, strict=True) if w]
        return [gradient for pair in pairs for gradient in pair]

    def through_mix(
        self, gs: Sequence[Tensor], scale: Tensor, sample: Tensor | None
    ) -> tuple[Tensor, Tensor, _Upstreams]:
        """Gradients by scale and shift, and what goes on to the branches from the targets' gradients."""
        num_uses, channels = len(self.fan.uses), self.x.shape[1]
        sums, dots = self.x.new_empty(2, num_uses, channels, dtype=torch.float64).unbind()
        terms = self._terms(sample)
        for term, a, b in zip(terms, _rows(sums), _rows(dots), strict=True):
            term.sum, term.dot = a, b
        # The terms of one target side by side: its gradient is read once.
        self.kernels.mix_sums(self.out_shape, sorted(terms, key=lambda term: term.target), gs)
        inverse = self.inverse[self.fan.last_map]
        slope, offset = self._through_norm(self.fan.last_map, scale * sums, scale * dots)
        upstreams = _Upstreams(self.fan, gs, self._rounded(scale * inverse), sample, slope, offset)
        d_scale = (dots * inverse).sum_to_size(scale.shape)
        return self._rounded(d_scale), self._rounded(sums), upstreams

    def _through_norm(self, indices: Sequence[int], sums: Tensor, dots: Tensor) -> tuple[Tensor, Tensor]:
        """Slope and offset [maps, C] of the gradient by a BN's input, from sums over the gradient of its output.

        dy = upstream + slope * (y - mean) + offset; several uses of one map add up.
        """
        add_up = torch.zeros(len(self.mean), len(indices), dtype=torch.float64)
        add_up[indices, range(len(indices))] = 1
        slope, offset = through(self.inverse[indices], sums, dots, self.num_pixels)
        return self._rounded(add_up @ slope), self._rounded(add_up @ offset)

    def through_second_stages(
        self, gamma: Tensor | None, beta: Tensor | None, upstreams: _Upstreams
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients by gamma and beta; leaves in `upstreams` what goes on to the first stages."""
        fan, begin = self.fan, len(self.fan.branches)
        if not fan.doubled:
            return None, None
        scale, shift = self._inner_affine(gamma, beta)
        sums, dots = torch.empty_like(scale), torch.empty_like(scale)
        scale, shift = self._rounded(scale), self._rounded(shift)
        means = self._centres()
        inner = [self._new_map() for _ in fan.doubled]
        groups, items = [], []
        columns = zip(fan.doubled, _rows(scale), _rows(shift), _rows(sums), _rows(dots), strict=True)
        for place, (branch, a, b, total, dot) in enumerate(columns):
            group = Group(x=self.maps[branch].data_ptr(), scale=a, shift=b, first_item=place, num_items=1, blocked=1)
            group.dx, group.centre, group.sum, group.dot = inner[place].data_ptr(), means[branch], total, dot
            groups.append(group)
            items.append(upstreams.arrive(self._item(begin + place, SEPARABLE), begin + place, means))
        self.kernels.groups_backward(self.out_shape, groups, items, upstreams.structures)
        d_gamma, d_beta = self._rounded(dots * self.inverse[fan.doubled]), self._rounded(sums)
        if gamma is not None:
            sums, dots = gamma * sums, gamma * dots
        upstreams.go_on(inner, scale, *self._through_norm(fan.doubled, sums, dots))
        return (None, None) if gamma is None else (d_gamma, d_beta)

    def through_first_stages(self, upstreams: _Upstreams) -> Tensor:
        """Gradient by x."""
        dx = torch.empty_like(self.x, memory_format=torch.channels_last)
        means = self._centres()
        items = [upstreams.arrive(self._item(k, branch.kind), k, means) for k, branch in enumerate(self.fan.branches)]
        group = Group(x=self.x.data_ptr(), first_item=0, num_items=len(items), dx=dx.data_ptr())
        self.kernels.groups_backward(self.shape, [group], items, upstreams.structures)
        return dx


class _Upstreams:
    """The gradients that arrive at each map: from the targets it is used in, or from the stage behind it."""

    def __init__(
        self, fan: FanOut, gs: Sequence[Tensor], scale: Tensor, sample: Tensor | None, slope: Tensor, offset: Tensor
    ):
        self.fan = fan
        self._kept = [gs, scale, sample]  # the structures only point at them
        self._set_norms(slope, offset)
        by_map: dict[int, list[Upstream]] = {}
        for use, index, a, s in zip(fan.uses, fan.last_map, _rows(scale), _rows(sample, len(fan.uses)), strict=True):
            by_map.setdefault(index, []).append(Upstream(g=gs[use.target].data_ptr(), scale=a, sample=s))
        self._set(by_map)

    def _set(self, by_map: dict[int, list[Upstream]]) -> None:
        self.place: dict[int, tuple[int, int]] = {}
        self.structures: list[Upstream] = []
        for index, structures in by_map.items():
            self.place[index] = (len(self.structures), len(structures))
            self.structures += structures

    def _set_norms(self, slope: Tensor, offset: Tensor) -> None:
        self.slope, self.offset = slope, offset
        self._slopes, self._offsets = _rows(slope), _rows(offset)

    def arrive(self, item: Item, index: int, means: Sequence[int]) -> Item:
        """Tell an item what arrives at its map."""
        item.first_upstream, item.num_upstream = self.place[index]
        if self.fan.norms[index] is not None:
            item.centre, item.slope, item.offset = means[index], self._slopes[index], self._offsets[index]
        return item

    def go_on(self, inner: Sequence[Tensor], scale: Tensor, slope: Tensor, offset: Tensor) -> None:
        """To the first stages: what the second ones pass back by the BN before them, `inner`, blocked."""
        by_map: dict[int, list[Upstream]] = {
            index: self.structures[begin : begin + count] for index, (begin, count) in self.place.items()
        }
        for branch, g, a in zip(self.fan.doubled, inner, _rows(scale), strict=True):
            by_map[branch] = [Upstream(g=g.data_ptr(), scale=a, blocked=1)]
        self._kept += [inner, scale]
        self._set_norms(self.slope + slope, self.offset + offset)
        self._set(by_map)


def _rows(matrix: Tensor | None, count: int = 0) -> list[int]:
    """Addresses of a matrix's rows; zeros where there is none."""
    if matrix is None:
        return [0] * count
    assert matrix.is_contiguous()
    step = matrix.shape[1] * matrix.element_size()
    return [matrix.data_ptr() + k * step for k in range(len(matrix))]
