"""Who this process is among the ranks that compute one command together; a process alone is the case of one rank.

`torchrun` and `srun` start the ranks and say so in the environment. The commands `search`, `retrain`, `evaluate` and
`predict` are then computed by all ranks. The first rank alone reads stdin, prints and writes; the others get from it
what they need. This module imports torch only if there are several ranks.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from ssfnas_cli import __version__, cores, interface
from ssfnas_cli.errors import InputError, ResourceError, UsageError
from ssfnas_cli.lifeline import Lifeline
from ssfnas_cli.rendezvous import JOIN_SECONDS, Place, address_of, connect, first_line, place

COMMANDS = ("search", "retrain", "evaluate", "predict")  # those that all ranks compute together
OF_ONE = ("adjust", "rank")  # those that compute much, and by one process: ranks would wait for nothing

T = TypeVar("T")


_lifeline: Lifeline | None = None  # once this process has joined the others


def size() -> int:
    """The number of ranks that compute this command together."""
    return 1 if _lifeline is None else place().size


def is_first() -> bool:
    """Whether this rank prints and writes."""
    return _lifeline is None or place().rank == 0


def local_rank() -> int:
    """The number of this rank on its machine."""
    return place().local_rank


def lifeline() -> Lifeline | None:
    """What ties this process to the other ranks; None if there are none."""
    return _lifeline


# Joining and leaving


def enter(arguments: Sequence[str]) -> bool:
    """Join the other ranks, if there are any and they compute this command together.

    Args:
        arguments: of the command line.

    Returns:
        False if the first rank executes this command alone, and this process is another.

    Raises:
        UsageError: the environment does not say where the ranks find each other.
        ResourceError: they do not come together.
        InputError: they have different versions of the code.
    """
    if place().size == 1:
        return True
    if arguments and arguments[0] in COMMANDS and not {"-h", "--help"} & set(arguments):
        _join(place())
        return True
    if place().rank == 0 and arguments and arguments[0] in OF_ONE:
        told = f"{arguments[0]} is computed by one process: the other ranks ({place().size - 1}) end at once"
        print(
            f"ssfnas: {told}; leave {place().starter} away, or give each rank a part and WORLD_SIZE=1", file=sys.stderr
        )
    return place().rank == 0


def _join(here: Place) -> None:
    global _lifeline
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch would warn of connections that a failed rank closes
    import torch

    from registry import collective

    store = connect(here)
    own = interface.introduce(store, address_of(here)[0])
    cores.introduce(store, here.rank)
    _lifeline = Lifeline(store, here.rank, here.size)
    _lifeline.wait_for_all(JOIN_SECONDS)
    interface.choose(store, own)
    if not torch.cuda.is_available():  # on GPUs a core is not what ranks wait for
        cores.divide(store, here.rank, here.size)
    backend = _make_group(store, here, _lifeline)
    collective.use(here.rank, here.size)
    agree({"ssfnas": __version__, "code": _code_digest(), "torch": torch.__version__, "backend": backend})


def _make_group(store: Any, here: Place, tie: Lifeline) -> str:
    """Connect each rank with every other. Returns the backend.

    Raises:
        ResourceError: they cannot be connected.
    """
    import torch
    import torch.distributed as dist

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    told = "the ranks cannot connect to each other"
    mend = f"set {interface.VARIABLE} to the network interface that joins the machines ('ip addr' lists them)"
    try:
        with tie.ending_after(JOIN_SECONDS, f"{told} within {JOIN_SECONDS:.0f} s: {mend}"):
            dist.init_process_group(
                backend,
                store=dist.PrefixStore("group", store),
                rank=here.rank,
                world_size=here.size,
                timeout=timedelta(days=1),  # the lifeline notices much earlier that a rank is gone
            )
    except RuntimeError as error:
        raise ResourceError(f"{told} ({first_line(error)}): {mend}") from error
    return backend


def _code_digest() -> str:
    """A hash of the code that computes, so that no rank runs another one."""
    root = Path(__file__).parent
    files = sorted(path for folder in (root, root.parent / "registry") for path in folder.rglob("*.[pch]*"))
    digest = hashlib.sha256()
    for path in files:
        if path.suffix in (".py", ".cpp", ".h"):
            digest.update(path.relative_to(root.parent).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def leave() -> None:
    """Part from the other ranks at the end of a command. All of them have to be done with it."""
    if _lifeline is None:
        return
    import torch.distributed as dist

    from registry import collective

    collective.barrier()
    _lifeline.end()
    gc.collect()  # what still refers to the group can make the interpreter abort at its end
    dist.destroy_process_group()


def is_lost(error: BaseException) -> bool:
    """Whether an exception means that another rank cannot be reached, so that this rank's command cannot go on."""
    if _lifeline is None:
        return False
    from registry.collective import LostRank

    return isinstance(error, LostRank)


def failed(error: BaseException | None, message: str, code: int) -> tuple[str, int]:
    """What to print after an error that ends this rank's command (nothing if it is empty), and the exit code."""
    if _lifeline is not None:
        return _lifeline.fail(message, code, lost=error is not None and is_lost(error))
    try:
        speaks = place().rank == 0 or isinstance(error, ResourceError)  # the latter may be of this rank alone
    except UsageError:
        speaks = True
    return message if speaks else "", code


# Agreements


def from_first(make: Callable[[], T]) -> T:
    """What `make` returns on the first rank, which alone calls it. It has to be JSON."""
    if size() == 1:
        return make()
    if is_first():
        value = make()
        share_bytes(json.dumps(value).encode())
        return value
    return json.loads(share_bytes(b""))


def share_bytes(data: bytes, source: int = 0) -> bytes:
    """The data of one rank, by default the first; what the others give is ignored."""
    if size() == 1:
        return data
    import torch

    from registry import collective

    length = torch.tensor(len(data))
    collective.broadcast(length, source)
    buffer = torch.zeros(int(length), dtype=torch.uint8)
    if place().rank == source:
        buffer.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else buffer)
    collective.broadcast(buffer, source)
    return buffer.numpy().tobytes()


@contextlib.contextmanager
def first_goes_first() -> Iterator[None]:
    """Within this context the first rank is alone; the others come when it is through, and find what it has made."""
    if size() == 1:
        yield
        return
    from registry import collective

    if is_first():
        yield
        collective.barrier()
    else:
        collective.barrier()
        yield


def agree(facts: Mapping[str, str]) -> None:
    """Check that all ranks have the same facts.

    Raises:
        InputError: they do not. The message is the same on all of them.
    """
    if size() == 1:
        return
    first, *others = gather(dict(facts))
    for rank, other in enumerate(others, 1):
        for name in {**first, **other}:
            if first.get(name) != other.get(name):
                raise InputError(
                    f"the ranks differ in {name}: {first.get(name)} on rank 0, {other.get(name)} on rank {rank}: all "
                    "need the same data, code and settings (for runs of their own, start each with WORLD_SIZE=1)"
                )


def gather(value: Any) -> list[Any]:
    """What every rank gives, in the order of the ranks. It has to be JSON."""
    if size() == 1:
        return [value]
    import torch

    from registry import collective

    if collective.size() == 1:  # within `collective.alone`
        return [value]
    data = json.dumps(value).encode()
    longest = torch.tensor(len(data))
    collective.all_reduce(longest, largest=True)
    padded = bytearray(data.ljust(int(longest), b"\0") or b"\0")
    rows = collective.all_gather(torch.frombuffer(padded, dtype=torch.uint8))
    return [json.loads(row.numpy().tobytes().rstrip(b"\0")) for row in rows]


def largest(value: int) -> int:
    """The largest of the values that the ranks give."""
    if size() == 1:
        return value
    import torch

    from registry import collective

    shared = torch.tensor(value)
    collective.all_reduce(shared, largest=True)
    return int(shared)
