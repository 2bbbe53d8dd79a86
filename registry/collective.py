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
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET_BYTES = 4 * 2**20  # gradients are summed in messages of about this size

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
    return {name: _Replicated.apply(x) if x.requires_grad else x for name, x in tensors.items()}


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


def global_mean(value: float, share: Share | None) -> float:
    """The mean over the global batch of a mean over this share of it."""
    if share is None:
        return value
    summed = torch.tensor(share.fraction * value, dtype=torch.float64)
    all_reduce(summed)
    return summed.item()


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
        for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
            tensor.copy_(part.view(tensor.shape))


def sum_gradients(parameters: Sequence[Tensor]) -> None:
    """Sum the gradients of parameters over the ranks. One without a gradient has none on any rank."""
    sum_in_place([parameter.grad for parameter in parameters if parameter.grad is not None])


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
    """Replace a contiguous x by its sum over the ranks, or by the largest value of every element."""
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


def broadcast(x: Tensor) -> None:
    """Replace a contiguous x by that of the first rank."""
    _count(x)
    with _watched():
        dist.broadcast(x, 0)


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
