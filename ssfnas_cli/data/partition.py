"""The images of the clients of a federated search: a partition of both halves of the training split.

An image stays in the half in which a search of one process has it. A client has a part of either half, so every image
belongs to one client and is in one half, and the alpha half that a search is evaluated on is the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ssfnas_cli.errors import UsageError
from ssfnas_cli.settings import SearchSettings

Halves = tuple[np.ndarray, np.ndarray]

LEAST_IMAGES = 2  # of a client in each half: a batch needs two


def partition(settings: SearchSettings, labels: np.ndarray, halves: Halves, num_classes: int) -> list[Halves]:
    """Divide both halves among the clients, as `partition` says; the seed decides how.

    Args:
        settings: of a federated search.
        labels: of the training split [N].
        halves: the rows of the weight half and of the alpha half.
        num_classes: C.

    Returns:
        For each client the rows of its part of the weight half and of the alpha half, in ascending order.

    Raises:
        UsageError: a client would have too few images for a batch of each half, or no class of its own.
    """
    num_clients = int(settings.clients)
    if num_clients * LEAST_IMAGES > min(map(len, halves)):
        raise UsageError(
            f"setting 'clients': {num_clients} clients need {LEAST_IMAGES} images each in either half, and the halves "
            f"of the training split have {len(halves[0])} and {len(halves[1])}: take fewer clients"
        )
    if settings.partition == "equal":
        parts = [_equally(settings.seed, number, half, num_clients) for number, half in enumerate(halves)]
    else:
        shares = _class_shares(settings, num_clients, num_classes)
        parts = [_by_shares(settings.seed, number, half, labels, shares) for number, half in enumerate(halves)]
    clients = [(weights, alphas) for weights, alphas in zip(*parts, strict=True)]
    _check_sizes(settings, clients)
    return clients


def _generator(seed: int, purpose: int, label: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, 6], counter=[0, 0, label, purpose]))


def _equally(seed: int, number: int, half: np.ndarray, num_clients: int) -> list[np.ndarray]:
    """Parts of a half whose sizes differ by at most one."""
    shuffled = _generator(seed, number).permutation(half)
    return [np.sort(part) for part in np.array_split(shuffled, num_clients)]


def _class_shares(settings: SearchSettings, num_clients: int, num_classes: int) -> NDArray[np.float64]:
    """Which share of every class each client has [C, K]; it is the same in both halves."""
    draw = _generator(settings.seed, 2)
    if settings.partition == "dirichlet":
        return draw.dirichlet(np.full(num_clients, settings.partition_alpha), num_classes)
    if num_clients > num_classes:
        raise UsageError(
            f"setting 'clients': partition=by_class gives every client classes of its own, and there are {num_classes} "
            f"for {num_clients} clients: take fewer clients, or partition=dirichlet"
        )
    owner = np.empty(num_classes, np.int64)
    owner[draw.permutation(num_classes)] = np.arange(num_classes) % num_clients
    return np.eye(num_clients)[owner]


def _by_shares(
    seed: int, number: int, half: np.ndarray, labels: np.ndarray, shares: NDArray[np.float64]
) -> list[np.ndarray]:
    """Parts of a half in which every class is divided by its shares [C, K], rounded to whole images."""
    parts: list[list[np.ndarray]] = [[] for _ in range(shares.shape[1])]
    for label, of_class in enumerate(shares):
        members = half[labels[half] == label]
        shuffled = _generator(seed, number, label).permutation(members)
        cuts = np.rint(np.cumsum(of_class)[:-1] * len(members)).astype(np.int64)
        for part, images in zip(parts, np.split(shuffled, cuts), strict=True):
            part.append(images)
    return [np.sort(np.concatenate(part)) for part in parts]


def _check_sizes(settings: SearchSettings, clients: Sequence[Halves]) -> None:
    for number, (weights, alphas) in enumerate(clients):
        if min(len(weights), len(alphas)) < LEAST_IMAGES:
            larger = "a larger partition_alpha, " if settings.partition == "dirichlet" else ""
            raise UsageError(
                f"setting 'partition': with {settings.partition} client {number} of {len(clients)} has {len(weights)} "
                f"images of the weight half and {len(alphas)} of the alpha half, and a batch needs {LEAST_IMAGES} of "
                f"each: take {larger}fewer clients or another seed"
            )
