"""The processor cores of each rank, if several ranks share a machine.

Ranks wait for each other at every message. If the system moves one of them to another's core, both take turns there
while a core is idle, and all ranks wait for them. With global statistics, whose messages come every few milliseconds,
this takes up to a quarter of a step (docs/performance.md, Several ranks). So ranks that may use the same cores divide
these. What started them may have done so already (`srun --cpu-bind`, `numactl`), and is not corrected.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BOOT = Path("/proc/sys/kernel/random/boot_id")  # of Linux: differs between machines, and is one for all its containers


def introduce(store: Any, rank: int) -> None:
    """Tell the other ranks which cores of which machine this process may use.

    All ranks call this before they wait for each other.

    Args:
        store: in which the ranks find each other, a `torch.distributed.Store`.
        rank: of this process.
    """
    store.set(_key(rank), json.dumps([_machine(), _usable()]))


def divide(store: Any, rank: int, size: int) -> None:
    """Keep this process to its part of the cores of its machine, once all ranks have introduced themselves.

    A thread keeps the cores of the thread that starts it, so this comes before others are started. torch takes as many
    threads as there are cores in the part, unless `OMP_NUM_THREADS` is set, as `torchrun` does.

    Args:
        store: in which the ranks have introduced themselves.
        rank: of this process.
        size: the number of ranks.
    """
    places = [json.loads(store.get(_key(other))) for other in range(size)]
    machine, usable = places[rank]
    neighbours = [other for other in range(size) if places[other][0] == machine]
    if any(places[other][1] != usable for other in neighbours):
        return
    cores = part(usable, neighbours.index(rank), len(neighbours))
    if len(cores) == len(usable):
        return
    os.sched_setaffinity(0, cores)
    if not os.environ.get("OMP_NUM_THREADS"):
        import torch

        torch.set_num_threads(len(cores))


def part(cores: Sequence[int], number: int, num_ranks: int) -> Sequence[int]:
    """The cores of one of the ranks that share them: as many as another's, neighbours of each other.

    Since the slowest rank counts, cores that are left over stay free. If there are fewer cores than ranks, all share.

    Args:
        cores: their numbers.
        number: of the rank among those that share them.
        num_ranks: how many ranks share them.
    """
    each = len(cores) // num_ranks
    if each == 0:
        return cores
    return cores[number * each : (number + 1) * each]


def _key(rank: int) -> str:
    return f"cores/{rank}"


def _usable() -> list[int]:
    """The cores that this process may use; none where the system does not say, so that nothing is divided."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _machine() -> str:
    try:
        return BOOT.read_text().strip()
    except OSError:
        return socket.gethostname()
