"""All candidate ops that leave one node of a cell, as one autograd function over the compiled kernels.

`FanOut` takes a node's map x and adds the ops' results to the sums of later nodes, the targets:

    sum_t += sum over ops o into t of  sample_o[n] * (scale_o * BN_o(op_o(x)) + shift_o)

In a supernet `scale_o` is the op's mixing weight. In a derived network `scale_o` and `shift_o` are the weights of the
op's own BN, and `sample_o` is drop path's factor. BN uses the batch's statistics in training and the running statistics
in evaluation. The forward pass keeps x and each convolution's or pool's result before its BN, and no other map.

A training step makes hundreds of passes, and on small maps the kernels of one take no longer than some calls of torch.
What stays the same is therefore made with the fan, and a pass (fan_passes.py) is one call, for which only addresses are
collected.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from registry import collective
from registry.norm import BatchNorm
from ssfnas_cli.native.cells import IDENTITY, ITEM, SEPARABLE, CellKernels, Fan, integers
from ssfnas_cli.nets.compiled import fan_passes
from ssfnas_cli.nets.compiled.branches import Branch, recognise
from ssfnas_cli.nets.compiled.fan_passes import FanInputs, Stored
from ssfnas_cli.nets.compiled.normalisation import can_run, eps_of
from ssfnas_cli.nets.compiled.side_by_side import SideBySide


def split_ops(
    kernels: CellKernels | None,
    ops: Sequence[tuple[nn.Module, int]],
    stride: int,
    affine: bool,
    side_by_side: bool = False,
) -> tuple[FanOut | None, list[int]]:
    """Split a node's ops in two: a `FanOut` of those that the kernels support, and their indices in `ops`.

    Args:
        kernels: None if there are none; then no op is supported.
        ops: each op with its target. An op that is listed with several targets is computed once.
        stride: of all ops.
        affine: whether the fan's scale and shift will hold the weights of the ops' last BNs. If they will not, an op
            whose last BN has weights is not supported.
        side_by_side: see `FanOut`.
    """
    branches: dict[nn.Module, Branch] = {}
    for op in {op: None for op, _ in ops} if kernels else ():
        branch = recognise(op)
        if branch is not None and (affine or branch.norm is None or not branch.norm.affine):
            branches[op] = branch
    if kernels is None or not branches:
        return None, []
    number = {op: k for k, op in enumerate(branches)}
    supported = [index for index, (op, _) in enumerate(ops) if op in branches]
    uses = [Use(number[op], target) for op, target in ops if op in branches]
    return FanOut(kernels, list(branches.values()), uses, stride, side_by_side), supported


class Use(NamedTuple):
    """A branch whose result is added to a target's sum."""

    branch: int
    target: int


class FanOut:
    """The branches that leave one node.

    Args:
        kernels: compiled.
        branches: one for each op; several uses may share one (a pool).
        uses: which branch is added to which target, in the order of the rows of `scale`.
        stride: of every branch.
        side_by_side: whether several images may lie side by side in a vector, if their channels leave room.

    The maps that the branches compute are numbered: first come the results of all first stages (a pool or the identity
    counts as one), then those of the second stages that some branches have. A tensor [maps, C] has a row for each map.
    """

    def __init__(
        self,
        kernels: CellKernels,
        branches: Sequence[Branch],
        uses: Sequence[Use],
        stride: int,
        side_by_side: bool = False,
    ):
        self.kernels, self.stride, self.num_first = kernels, stride, len(branches)
        self.side_by_side = side_by_side
        self.branches, self.uses = list(branches), list(uses)
        self.two_stage = [k for k, branch in enumerate(branches) if len(branch.stages) == 2]
        second = {branch: self.num_first + place for place, branch in enumerate(self.two_stage)}
        kinds = [branch.kind for branch in branches] + [SEPARABLE] * len(self.two_stage)
        self.stages = [branch.stages[0] if branch.stages else None for branch in branches]
        self.stages += [branches[k].stages[1] for k in self.two_stage]
        self.norms: list[BatchNorm | None] = [
            stage.norm if stage else branch.norm for stage, branch in zip(self.stages, branches, strict=False)
        ]
        self.norms += [branches[k].norm for k in self.two_stage]
        self.inner_norms = [branches[k].stages[0].norm for k in self.two_stage]
        self.stored = [k for k, kind in enumerate(kinds) if kind != IDENTITY]
        # The dictionaries that hold the weights: a module takes a microsecond to find one by its name.
        self.weight_places = [part._parameters for s in self.stages if s for part in (s.depthwise, s.pointwise)]
        self.targets = sorted({use.target for use in uses})
        self.last_map = [second.get(use.branch, use.branch) for use in uses]
        self.eps = eps_of(self.norms)
        self._make_structure(kinds)
        self._newest_subset: tuple[list[int], FanOut] | None = None

    def _make_structure(self, kinds: list[int]) -> None:
        """Make the items, one for each map, and the structure that the kernels read.

        The upstreams are numbered: one for each use, in the order of the maps, then one for each second stage.
        """
        num_uses, two_stage = len(self.uses), self.two_stage
        items = self.items = np.zeros(len(kinds), ITEM)
        items["kind"] = kinds
        items["kernel"] = [s.depthwise.kernel_size[0] if s else 0 for s in self.stages]
        items["dilation"] = [s.depthwise.dilation[0] if s else 0 for s in self.stages]
        counts = np.bincount(self.last_map, minlength=len(items))
        items["num_upstream"], items["first_upstream"] = counts, np.cumsum(counts) - counts
        items["num_upstream"][two_stage] = 1
        items["first_upstream"][two_stage] = num_uses + np.arange(len(two_stage))
        target = [self.targets.index(use.target) for use in self.uses]
        self.structure = Fan(
            num_maps=len(items),
            num_first=self.num_first,
            num_uses=num_uses,
            num_targets=len(self.targets),
            items=items.ctypes.data,
            inner=integers(two_stage),
            last_map=integers(self.last_map),
            target=integers(target),
            by_target=integers(np.argsort(target, kind="stable").tolist()),
            by_map=integers(np.argsort(self.last_map, kind="stable").tolist()),
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> FanOut:
        """The fan of a copy of the network: its structure has addresses of its own."""
        branches = copy.deepcopy(self.branches, memo)
        return FanOut(self.kernels, branches, self.uses, self.stride, self.side_by_side)

    def subset(self, indices: list[int]) -> FanOut:
        """A fan of some of the uses only; branches without a use are neither computed nor stored.

        The newest subset is kept, since the passes of a step often use the same one; making one takes less than the
        smallest pass.

        Args:
            indices: of the uses, ascending; at least one.
        """
        if len(indices) == len(self.uses):
            return self
        if self._newest_subset is None or self._newest_subset[0] != indices:
            uses = [self.uses[k] for k in indices]
            kept = sorted({use.branch for use in uses})
            renumbered = [Use(kept.index(use.branch), use.target) for use in uses]
            branches = [self.branches[k] for k in kept]
            fan = FanOut(self.kernels, branches, renumbered, self.stride, self.side_by_side)
            self._newest_subset = indices, fan
        return self._newest_subset[1]

    def can_run(self, x: Tensor) -> bool:
        """Whether the kernels can compute on x [N, C, H, W] now."""
        return can_run(self.kernels, self.norms, x)

    def add_to(
        self,
        sums: dict[int, Tensor],
        x: Tensor,
        scale: Tensor,
        shift: Tensor | None = None,
        sample: Tensor | None = None,
    ) -> None:
        """Add the results of this node's ops to the targets' sums.

        Args:
            sums: by target, what earlier nodes added [N, C, H/s, W/s]; changed in place, and new sums are entered.
            x: [N, C, H, W].
            scale: [uses, C], or [uses, 1].
            shift: [uses, C], or None.
            sample: [uses, N], a factor for every image, or None.
        """
        affine = bool(self.inner_norms) and self.inner_norms[0].affine
        gamma = torch.stack([norm.weight for norm in self.inner_norms]) if affine else None
        beta = torch.stack([norm.bias for norm in self.inner_norms]) if affine else None
        weights = [place["weight"] for place in self.weight_places]
        # The graph depends on how many images fit, and ranks sum gradients in the order of the graph.
        lanes = self.kernels.lanes if self.side_by_side and collective.shares_are_equal() else 1
        beside, x = SideBySide.fitting(x, lanes), self.kernels.as_map(x)
        if sums:
            self._check(sums, x)
        started = sums if beside.images == 1 else {}
        before = [started[target].to(x.dtype) if target in started else None for target in self.targets]
        after = _FanOutFunction.apply(self, beside, beside.lay(x), scale, shift, sample, gamma, beta, *before, *weights)
        if beside.images == 1:
            sums.update(zip(self.targets, after, strict=True))
            return
        for target, laid in zip(self.targets, after, strict=True):
            taken = beside.take(laid)
            sums[target] = sums[target].add_(taken) if target in sums else taken

    def _check(self, sums: dict[int, Tensor], x: Tensor) -> None:
        """Check what other ops have added, which the kernels would go on from by its address."""
        num, channels, height, width = x.shape
        expected = num, channels, -(-height // self.stride), -(-width // self.stride)
        for target in self.targets:
            if target in sums and sums[target].shape != expected:
                raise ValueError(f"an op gives a map {list(sums[target].shape)} where {list(expected)} is expected")


class _FanOutFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        fan: FanOut,
        beside: SideBySide,
        x: Tensor,
        scale: Tensor,
        shift: Tensor | None,
        sample: Tensor | None,
        gamma: Tensor | None,
        beta: Tensor | None,
        *rest: Tensor | None,
    ) -> Any:
        sums, weights = rest[: len(fan.targets)], rest[len(fan.targets) :]
        given = FanInputs(x, scale, sample, gamma, beta, beside.weights(weights))  # type: ignore[arg-type]
        outs, stored = fan_passes.forward(fan, beside, given, shift, sums)
        ctx.fan, ctx.beside, ctx.added_to = fan, beside, [total is not None for total in sums]
        ctx.mark_dirty(*(total for total in sums if total is not None))
        ctx.save_for_backward(x, scale, sample, gamma, beta, *stored, *weights)
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        fan, beside, wanted = ctx.fan, ctx.beside, ctx.needs_input_grad
        x, scale, sample, gamma, beta, maps, statistics, *weights = ctx.saved_tensors
        given = FanInputs(x, scale, sample, gamma, beta, beside.weights(weights))
        want_weights = any(wanted[len(wanted) - len(weights) :])
        want_inputs = wanted[2] or wanted[6] or want_weights  # not in an alpha step's first fan
        gs = [g.contiguous(memory_format=torch.channels_last) for g in gradients]
        d = fan_passes.backward(fan, beside, given, Stored(maps, statistics), gs, want_inputs, want_weights)
        d_scale = d.scale.sum_to_size(scale.shape).to(scale.dtype)
        d_shift = d.shift.to(scale.dtype) if wanted[4] else None
        d_sums = [g if added else None for g, added in zip(gradients, ctx.added_to, strict=True)]
        return (None, None, d.x, d_scale, d_shift, None, d.gamma, d.beta, *d_sums, *d.weights)
