"""What a run on several ranks needs beside the training itself: one checkpoint for all, and proof that they agree."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from registry import collective
from registry.samplers import Sampler
from ssfnas_cli import world
from ssfnas_cli.artifacts.checkpoint import Checkpoint
from ssfnas_cli.artifacts.tensors import sha256_of
from ssfnas_cli.console import log
from ssfnas_cli.data.batches import num_batches
from ssfnas_cli.errors import InputError, UsageError
from ssfnas_cli.settings import Training


def facts(settings: Training) -> dict[str, Any]:
    """What config.json records of the ranks; nothing for one process."""
    if world.size() == 1:
        return {}
    return {"ranks": world.size()} | ({} if settings.is_federated else {"batch_stats": settings.batch_stats})


def warn_of_local_statistics(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Warn if a resumed run takes the statistics of its batches from shares of another size."""
    before, after = recorded.get("ranks", 1), now.get("ranks", 1)
    if before != after and "local" in (recorded.get("batch_stats"), now.get("batch_stats")):
        log.warning(
            "batch_stats=local takes statistics from each rank's share of a batch, so the run goes on differently on "
            "%d ranks than on %d",
            after,
            before,
        )


def checkpoint_of_first(load: Callable[[], Checkpoint | None]) -> Checkpoint | None:
    """The checkpoint that the first rank loads."""
    if world.size() == 1:
        return load()
    found = load() if world.is_first() else None
    packed = b""
    if found is not None:
        packed = safetensors.torch.save({name: value.contiguous() for name, value in found.tensors.items()})
    state = json.loads(world.share_bytes(json.dumps(None if found is None else dict(found.state)).encode()))
    packed = world.share_bytes(packed)
    return (
        found if found is not None or state is None else Checkpoint(state=state, tensors=safetensors.torch.load(packed))
    )


def all_parts(mine: Mapping[int, Mapping[str, Tensor]], num: int) -> dict[int, Mapping[str, Tensor]]:
    """All `num` parts of a state, of which this rank has those with its own number modulo the number of ranks."""
    if world.size() == 1:
        return dict(mine)
    parts: dict[int, Mapping[str, Tensor]] = {}
    for number in range(num):
        own = mine.get(number, {})
        packed = safetensors.torch.save({name: value.detach().contiguous() for name, value in own.items()})
        packed = world.share_bytes(packed, number % world.size())
        parts[number] = own if number in mine else safetensors.torch.load(packed)
    return parts


def check_equal(tensors: Mapping[str, Tensor]) -> None:
    """Check that all ranks hold the same tensors, bit for bit.

    Raises:
        InputError: they do not. The message names the first tensor that differs, and is the same on all ranks.
    """
    if world.size() == 1:
        return
    names = sorted(tensors)  # a resumed optimizer has its states in the order in which they were loaded
    digests = np.frombuffer(b"".join(_digest(tensors[name]) for name in names), np.uint8).reshape(len(names), -1)
    by_rank = collective.all_gather(torch.from_numpy(digests.copy())).numpy()
    for rank, other in enumerate(by_rank):
        differing = (other != by_rank[0]).any(1)
        if differing.any():
            name = names[int(differing.argmax())]
            raise InputError(
                f"ranks 0 and {rank} no longer hold the same '{name}' ({int(differing.sum())} of {len(tensors)} "
                "tensors differ): one of them computes wrongly, or a plugin treats its images as the whole batch; the "
                "last good checkpoint is kept"
            )


def _digest(tensor: Tensor) -> bytes:
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else tensor.new_empty(0)
    return hashlib.blake2b(data.numpy().tobytes(), digest_size=16).digest()


def agree_on_network(network: nn.Module) -> None:
    """Check that all ranks have loaded the same trained network.

    Raises:
        InputError: they have not. The message is the same on all ranks.
    """
    if world.size() > 1:  # alone, a process needs no hash of all weights
        world.agree({"trained network": sha256_of(network.state_dict())[:12]})


def check_shares(settings: Training, what: str, lengths: Iterable[int]) -> None:
    """Check that every batch has images for all ranks.

    Args:
        settings: of the run.
        what: the batches are of, for messages.
        lengths: numbers of images that are cut into batches.

    Raises:
        UsageError: a batch is too small.
    """
    least = collective.size() if settings.batch_stats == "global" else 2 * collective.size()
    if collective.size() == 1:
        return
    smallest = min(length // num_batches(length, settings.batch_size) for length in lengths)
    if smallest < least:
        each = "an image" if settings.batch_stats == "global" else "two images (batch_stats=local)"
        raise UsageError(
            f"--batch-size {settings.batch_size}: a batch of {what} has {smallest} images, and each of "
            f"{collective.size()} ranks needs {each}: take a larger batch or fewer ranks"
        )


def sampled_lengths(sampler: Sampler, epochs: int) -> set[int]:
    """The numbers of images that a sampler shows in the epochs of a training."""
    return {sampler.length(epoch / epochs) for epoch in range(epochs)}
