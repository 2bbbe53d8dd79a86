"""Where ranks find each other: what torchrun or srun says of them, and the store that all of them reach.

This module imports torch only to connect.
"""

from __future__ import annotations

import os
import re
import socket
import time
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

from ssfnas_cli.errors import ResourceError, UsageError

JOIN_SECONDS = 300.0  # how long ranks wait for each other at the start
NAME_SECONDS = 20.0  # how long a name may be unknown: one that is spelled wrongly stays so
CONNECT_SECONDS = 30.0  # for a connection to a store that is known to answer
FIRST_PORT, NUM_PORTS = 20_000, 20_000  # from which a port is chosen by the number of a SLURM job


@dataclass(frozen=True)
class Place:
    """The rank, the number of ranks and the rank's number on its machine, as whoever started it says."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    starter: str = ""


@cache
def place() -> Place:
    """The place that the environment gives this process: torchrun's variables, or else those of a step of SLURM.

    An allocation of SLURM alone, in which no `srun` has started this process, makes no ranks.

    Raises:
        UsageError: the variables contradict each other.
    """
    names = {
        "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    }
    for starter, (rank_name, size_name, local_name) in names.items():
        if (size := _number(size_name, None)) is None:
            continue
        if size == 1:
            return Place()
        rank = _number(rank_name, None)
        if rank is None or not 0 <= rank < size:
            raise UsageError(
                f"{size_name} is {size}, so {rank_name} should be from 0 to {size - 1}, and is "
                f"{'not set' if rank is None else rank}: start with torchrun or srun, or unset {size_name}"
            )
        return Place(rank, size, _number(local_name, 0) or 0, starter)
    return Place()


def _number(name: str, default: int | None) -> int | None:
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.isdigit():
        raise UsageError(f"{name} is '{text}', which is no number: start with torchrun or srun, or unset it")
    return int(text)


def connect(here: Place) -> Any:
    """The store in which the ranks find each other. torchrun keeps one; under srun the first rank does."""
    import torch.distributed as dist

    address, port = address_of(here)
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    is_master = here.rank == 0 and not kept
    try:
        _wait_for_store(address, port, is_master)
        store = dist.TCPStore(
            address,
            port,
            is_master=is_master,
            timeout=timedelta(seconds=CONNECT_SECONDS),
            wait_for_workers=False,
        )
    except (OSError, RuntimeError, ValueError) as error:
        told = first_line(error)
        if "in use" in told or "EADDRINUSE" in told:
            raise ResourceError(
                f"MASTER_PORT {port}: is in use on {address}, by another job perhaps: choose another"
            ) from error
        raise ResourceError(
            f"MASTER_ADDR {address}, MASTER_PORT {port}: rank {here.rank} cannot reach the first rank there ({told})"
        ) from error
    store.set_timeout(timedelta(seconds=JOIN_SECONDS))
    # Two jobs that use one port by mistake do not take each other for their own ranks.
    job = os.environ.get("TORCHELASTIC_RUN_ID") or f"{os.environ.get('SLURM_JOB_ID')}.{os.environ.get('SLURM_STEP_ID')}"
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"ssfnas/{job}/{attempt}", store)


def _wait_for_store(address: str, port: int, is_master: bool) -> None:
    """Wait until somebody answers where the ranks meet; the rank that will answer there only looks the name up.

    TCPStore would wait itself, but in one call of C++, which Ctrl-C does not end, and with a trace of it at the end.

    Raises:
        OSError: nobody answers within `JOIN_SECONDS`, or the name stays unknown for `NAME_SECONDS`.
    """
    started = time.monotonic()
    while True:
        try:
            if is_master:
                socket.getaddrinfo(address, port)
            else:
                socket.create_connection((address, port), timeout=CONNECT_SECONDS).close()
            return
        except OSError as error:
            patience = NAME_SECONDS if isinstance(error, socket.gaierror) else JOIN_SECONDS
            if time.monotonic() - started >= patience:
                raise
        time.sleep(0.1)


def address_of(here: Place) -> tuple[str, int]:
    """The address and port at which the ranks meet: torchrun's, or under srun the first node and a port of the job.

    Raises:
        UsageError: the environment does not say.
    """
    address, port = os.environ.get("MASTER_ADDR", ""), _number("MASTER_PORT", None)
    if here.starter == "srun":
        nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST", "")
        address = address or first_node(nodes)
        port = port or FIRST_PORT + (_number("SLURM_JOB_ID", 0) or 0) % NUM_PORTS
    if not address or port is None:
        lacking = "MASTER_ADDR" if not address else "MASTER_PORT"
        raise UsageError(
            f"{lacking} is not set, so the {here.size} ranks cannot find each other: set it to the "
            f"{'name of the machine' if not address else 'a free port of the machine'} with rank 0 (torchrun does), or "
            "unset WORLD_SIZE"
        )
    return address, port


def first_node(nodes: str) -> str:
    """The first machine of a list as SLURM writes it: `a[03-05,9],b` begins with `a03`."""
    match = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\]([^,]*))?", nodes)
    return "" if match is None else "".join(part or "" for part in match.groups())


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    text = (error.strerror if isinstance(error, OSError) else "") or str(error)
    return (text.splitlines() or [type(error).__name__])[0]
