"""Sums over the ranks that train one model together. One process is the case of one rank: all of this is then nothing.

A global batch is divided among the ranks. A rank's loss is a mean over its images, and its part of the global loss is
that mean times its share of the images, so the parts of all ranks add up to the mean over the global batch. Three rules
follow, and with them every gradient is that of the global loss:

- What the ranks compute together (`total`) sums its gradient over them, too, because every part depends on it.
- A tensor that all ranks hold alike, such as mixing weights (`replicated`), gets the sum of their gradients.
- A loss that relates the images of a batch to each other takes its sums over all ranks. It then has the same value
  everywhere, and the shares add up to it.

`ssfnas_cli.world` says which rank this process is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from registry import gpu

BUCKET_BYTES = 4 * 2**20  # gradients are summed in messages of about this size
GATHERED_BYTES = 2**18  # sums up to this size, over all ranks, are gathered and added up by each rank

_rank, _size = 0, 1
_global_statistics = True
_share: Share | None = None
_traffic = {"messages": 0, "bytes": 0}


class LostRank(RuntimeError):
    """Another rank cannot be reached any more."""


class Share(NamedTuple):
    """The images `start` to `stop` of a global batch of `of` images, which are those of one rank."""

    start: int
    stop: int
    of: int

    @property
    def fraction(self) -> float:
        """Its number of images over that of the global batch."""
        return (self.stop - self.start) / self.of


def use(rank: int, size: int) -> None:
    """Compute as this rank of so many, whose process group exists."""
    global _rank, _size
    _rank, _size = rank, size


def use_global_statistics(wanted: bool) -> None:
    """Whether batch normalisation takes its statistics from the global batch or from each rank's share of it."""
    global _global_statistics
    _global_statistics = wanted


def place() -> tuple[int, int]:
    """This process's rank, and the number of ranks."""
    return _rank, _size


def size() -> int:
    """The number of ranks."""
    return _size


def shares_statistics() -> bool:
    """Whether batch normalisation has to ask the other ranks for its statistics."""
    return _size > 1 and _global_statistics


def my_share(num: int) -> Share | None:
    """This rank's share of `num` images, which differs from that of others by at most one; None for one process."""
    if _size == 1:
        return None
    small, larger = divmod(num, _size)
    start = _rank * small + min(_rank, larger)
    return Share(start, start + small + (_rank < larger), num)


def shares_are_equal() -> bool:
    """Whether every rank has as many images of the global batch as this one."""
    return _share is None or _share.of % _size == 0


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within this context, this process computes as if there were no other ranks, and sends them nothing."""
    global _rank, _size
    before = _rank, _size
    _rank, _size = 0, 1
    try:
        yield
    finally:
        _rank, _size = before


# Random numbers


@contextlib.contextmanager
def sharing(share: Share | None) -> Iterator[None]:
    """Within this context, the images that a network gets are this share of a global batch."""
    global _share
    before, _share = _share, share
    try:
        yield
    finally:
        _share = before


def per_image(num: int, draw: Callable[[int], Tensor]) -> Tensor:
    """Random numbers for this rank's `num` images: those that one process would draw for the global batch.

    Args:
        draw: draws the numbers for that many images, which are its result's first dimension.
    """
    if _share is None:
        return draw(num)
    assert num == _share.stop - _share.start, "one number for every image of the share"
    return draw(_share.of)[_share.start : _share.stop]


# Sums with gradients


def total(x: Tensor) -> Tensor:
    """The sum of x over the ranks. Its gradient is summed over them as well."""
    return x if _size == 1 else _Total.apply(x)


def replicated(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Tensors that all ranks hold alike, whose gradients will be the sums over the ranks."""
    if _size == 1:
        return tensors
    return {name: _replicated(x) if x.requires_grad else x for name, x in tensors.items()}


def _replicated(x: Tensor) -> Tensor:
    zeros = gpu.known_zeros(x)
    return _Replicated.apply(x) if zeros is None else gpu.with_zeros(_Replicated.apply(x), zeros)


def global_loss(loss: Tensor, share: Share | None) -> Tensor:
    """The loss of the global batch, from a mean over this share of it. Its gradient is that of this rank's part."""
    return loss if share is None else _GlobalLoss.apply(share.fraction * loss)


def global_count(rows: Tensor) -> int:
    """How many rows the ranks have together."""
    if _size == 1:
        return len(rows)
    if _share is not None:
        assert len(rows) == _share.stop - _share.start, "a row for every image of the share"
        return _share.of
    count = torch.tensor(len(rows))
    all_reduce(count)
    return int(count)


def global_mean(value: Any, share: Share | None) -> Any:
    """The mean over the global batch of a mean over this share of it, as `gpu.reported` gives numbers."""
    if share is None:
        return value
    summed = share.fraction * torch.as_tensor(value, dtype=torch.float64)
    all_reduce(summed)
    return gpu.reported(summed)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _summed(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _summed(gradients[0])


class _Replicated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _summed(gradients[0])


class _GlobalLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        return _summed(part)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0]


def _summed(x: Tensor) -> Tensor:
    summed = x.detach().clone(memory_format=torch.contiguous_format)
    all_reduce(summed)
    return summed


# Sums without gradients


@torch.no_grad()
def sum_in_place(tensors: Sequence[Tensor], factor: float = 1.0) -> None:
    """Replace tensors by their sums over the ranks, each rank's multiplied by its `factor`, in few messages."""
    if _size == 1:
        return
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        all_reduce(flat if factor == 1 else flat.mul_(factor))
        _scatter(flat, bucket)


class GradientSums:
    """Sums the gradients of parameters over the ranks, while the backward pass still computes others.

    It is a context for the backward pass; at its end the gradients are the sums. One without a gradient has none
    on any rank, and the gradients become ready in the same order on all.
    """

    def __init__(self, parameters: Iterable[Tensor]):
        self._waiting: list[Tensor] = []
        self._sent: list[tuple[list[Tensor], Tensor, dist.Work]] = []
        self._active = False  # parameters may have other sums, for another phase of a run
        for parameter in parameters if _size > 1 else ():
            parameter.register_post_accumulate_grad_hook(self._add)

    def __enter__(self) -> None:
        self._active = True

    def _add(self, parameter: Tensor) -> None:
        if not self._active:
            return
        self._waiting.append(parameter)
        if sum(p.numel() * p.element_size() for p in self._waiting) >= BUCKET_BYTES:
            self._send()

    def _send(self) -> None:
        for bucket in _buckets([p.grad for p in self._waiting if p.grad is not None]):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            _count(flat)
            with _watched():
                work = dist.all_reduce(flat, async_op=True)
            assert work is not None, "this process is in the group"
            self._sent.append((bucket, flat, work))
        self._waiting = []

    @torch.no_grad()
    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._active = False
        if kind is not None:
            return
        self._send()
        for bucket, flat, work in self._sent:
            with _watched():
                work.wait()
            _scatter(flat, bucket)
        self._sent = []


def _scatter(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view(tensor.shape))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    filled = 0
    for tensor in tensors:
        if bucket and (filled >= BUCKET_BYTES or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, filled = [], 0
        bucket.append(tensor)
        filled += tensor.numel() * tensor.element_size()
    if bucket:
        yield bucket


# Messages


def all_reduce(x: Tensor, largest: bool = False) -> None:
    """Replace a contiguous x by its sum over the ranks, or by the largest value of every element.

    Gloo takes several times as long for a small sum as for gathering it, and there are hundreds of them in a step.
    """
    if x.device.type == "cpu" and _size * x.numel() * x.element_size() <= GATHERED_BYTES:
        parts = all_gather(x)
        x.copy_(parts.amax(0) if largest else parts.sum(0))
        return
    _count(x)
    with _watched():
        dist.all_reduce(x, dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM)


def all_gather(x: Tensor) -> Tensor:
    """The x of every rank, [ranks, ...], in the order of the ranks; all have the same shape."""
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(_size)]
    _count(x)
    with _watched():
        dist.all_gather(parts, x.contiguous())
    return torch.stack(parts)


def gather_rows(rows: Tensor, num: int) -> Tensor:
    """All `num` rows, of which every rank has those of `my_share`."""
    if _size == 1:
        return rows
    longest = -(-num // _size)
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = all_gather(padded)
    small, larger = divmod(num, _size)
    return torch.cat([part[: small + (rank < larger)] for rank, part in enumerate(parts)])


def broadcast(x: Tensor, source: int = 0) -> None:
    """Replace a contiguous x by that of one rank, by default the first."""
    _count(x)
    with _watched():
        dist.broadcast(x, source)


def barrier() -> None:
    """Wait until all ranks have come here."""
    all_reduce(torch.zeros(1))


def traffic() -> dict[str, int]:
    """How many messages this process has taken part in, and the bytes that it gave into them."""
    return dict(_traffic)


def _count(x: Tensor) -> None:
    _traffic["messages"] += 1
    _traffic["bytes"] += x.numel() * x.element_size()


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise LostRank(str(error)) from error
