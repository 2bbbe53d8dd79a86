"""Federated search: clients search on images of their own, and their weights and alphas are averaged (FedNAS).

He, Annavaram and Avestimehr (2020), "Towards Non-I.I.D. and Invisible Data with FedNAS". In every round some clients
are drawn. Each of them starts from the global weights, running statistics and alphas, and takes some steps of the
search on its own images, weight half and alpha half. The global ones are then the mean of theirs, weighted by their
numbers of images. Momenta, and the state of the alphas' optimizer, stay with each client.

A step changes the alphas first, and then the weights by the new alphas. So alphas are averaged before the last weight
step of a round, and weights after it: then a round of one step is a step of data-parallel ranks, which is impossible
if both are averaged at its end, as in FedNAS. The messages are as large.

One process computes the clients of a round one after the other. Of several ranks each has some of the clients, and
messages are needed only for the means. Both compute the same, up to the order of the sums.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from registry import collective
from registry.cost import SearchCost
from registry.state import module_tensors, under
from registry.strategies.base import Mixing
from ssfnas_cli import world
from ssfnas_cli.artifacts.dataset import DataSet
from ssfnas_cli.data.batches import BilevelBatches, SearchBatch, load_batches
from ssfnas_cli.data.partition import Halves, partition
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.loop import seed_for_step
from ssfnas_cli.engine.ranks import all_parts
from ssfnas_cli.engine.search_phase import SearchPhase
from ssfnas_cli.errors import UsageError
from ssfnas_cli.settings import SearchSettings

Tensors = Callable[[SearchPhase], dict[str, Tensor]]  # some of a search's tensors, as they are and not as copies


class Rounds:
    """The rounds of a federated search: which clients are drawn for each, and what they have done before.

    An epoch has so many rounds that the clients drawn take together at least the steps of one process.

    Args:
        settings: of the search.
        steps: how many steps one process takes in each epoch.

    Attributes:
        local_steps: how many steps a client takes in a round.
        num_drawn: how many clients are drawn for a round.
        per_epoch: the number of rounds of each epoch.
        total: how many steps each client takes in the whole search [K].
    """

    def __init__(self, settings: SearchSettings, steps: Sequence[int]):
        self.seed, self.num_clients = settings.seed, int(settings.clients)
        everyone = settings.clients_per_round == "all"
        self.num_drawn = self.num_clients if everyone else int(settings.clients_per_round)
        self.local_steps = settings.local_steps
        self.per_epoch = [-(-num // (self.num_drawn * self.local_steps)) for num in steps]
        self.total = np.zeros(self.num_clients, np.int64)
        self._before: list[np.ndarray] = []
        for epoch, num in enumerate(self.per_epoch):
            self._before.append(self.total.copy())
            for number in range(num):
                self.total[self.drawn(epoch, number)] += self.local_steps

    def drawn(self, epoch: int, number: int) -> list[int]:
        """The clients of a round, of which each is in it once, in ascending order."""
        if self.num_drawn == self.num_clients:
            return list(range(self.num_clients))
        draw = np.random.Generator(np.random.Philox(key=[self.seed, 7], counter=[0, epoch, number, 0]))
        return sorted(draw.choice(self.num_clients, self.num_drawn, replace=False).tolist())

    def taken(self, epoch: int) -> np.ndarray:
        """How many steps each client has taken before an epoch [K]."""
        return self._before[epoch].copy()


class LocalBatches(Dataset):
    """The batches of one epoch. Item k has those of the clients' step k: places in the passes over their images."""

    def __init__(self, items: Sequence[Sequence[tuple[BilevelBatches, int]]]):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> list[SearchBatch]:
        with collective.alone():
            return [batches[place] for batches, place in self.items[number]]


class FederatedSearch(SearchPhase):
    """A search phase whose steps are taken by clients. It holds what is global, and evaluates it as any search does.

    A step of it is a step of every client that is drawn for the round, so that a search can stop, and go on, within a
    round. A client is a search phase of its own images, with a seed of its own. It goes through its images pass by
    pass, whatever the epoch of the search is.

    Args:
        settings: resolved settings.
        data: the data set, whose `train` split is divided among the clients.
        device: where to compute.
        halves, cost: as for every search.

    Attributes:
        parts: for each client its rows of the weight half and of the alpha half.
        clients: those that this rank computes, by number.

    Raises:
        UsageError: a client has too few images, or the strategy has nothing to average.
    """

    is_spread = True

    def __init__(
        self,
        settings: SearchSettings,
        data: DataSet,
        device: Device,
        halves: Halves | None = None,
        cost: SearchCost | None = None,
    ):
        rank, num_ranks = collective.place()
        with collective.alone():  # a client is one process
            super().__init__(settings, data, device, halves, cost)
            if not self.strategy.averaged():
                name = settings.strategy.name
                raise UsageError(f"setting 'sync': the strategy '{name}' has no alphas to average: set sync=step")
            if len(self.strategy.stages()) > 1:
                raise UsageError(
                    f"setting 'sync': the supernet of the strategy '{settings.strategy.name}' begins anew in each "
                    "stage, and clients have one: set sync=step"
                )
            self.parts = partition(settings, self.split.labels, self.halves, data.num_classes)
            self.rounds = Rounds(settings, [super(FederatedSearch, self).num_steps(e) for e in range(self.epochs)])
            mine = range(rank, self.rounds.num_clients, num_ranks)
            self.clients = {number: self._build_client(number) for number in mine}
        self._under_way: list[int] = []  # the clients of a round that is not yet averaged
        self._hand_out(list(self.clients), averaged)

    def _build_client(self, number: int) -> SearchPhase:
        mixed = np.random.SeedSequence(self.seed, spawn_key=(number,)).generate_state(1, np.uint64)
        settings = self.settings.model_copy(update={"seed": int(mixed[0] >> np.uint64(1))})
        client = SearchPhase(settings, self.data, self.device, self.parts[number], self.cost)
        # Its epochs are the passes over its images, on which samplers depend.
        total = int(self.rounds.total[number])
        client.epochs = max(1, -(-total // client.num_steps(0)))
        while sum(map(client.num_steps, range(client.epochs))) < total:  # later passes may be shorter
            client.epochs += 1
        return client

    # Batches

    def num_steps(self, epoch: int) -> int:
        """The steps of the rounds of an epoch, which all clients of a round take together."""
        return self.rounds.per_epoch[epoch] * self.rounds.local_steps

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        """Yield, for each step from `start` on, the batches of this rank's clients that take part in it."""
        workers, time_limit = self.settings.workers, self.settings.time_limit
        for several in load_batches(LocalBatches(self._places(epoch)), start, workers, time_limit):
            yield list(map(self.moved, several))

    def _places(self, epoch: int) -> list[list[tuple[BilevelBatches, int]]]:
        """For each step of an epoch the batches that this rank's clients are at."""
        passes: dict[tuple[int, int], BilevelBatches] = {}

        def find(number: int, step: int) -> tuple[BilevelBatches, int]:
            client, done = self.clients[number], 0
            while step >= (length := client.num_steps(done)):
                step, done = step - length, done + 1
            if (number, done) not in passes:
                passes[number, done] = client.epoch_batches(done)
            return passes[number, done], step

        taken, places = self.rounds.taken(epoch), []
        for round_number in range(self.rounds.per_epoch[epoch]):
            drawn = self.rounds.drawn(epoch, round_number)
            for local in range(self.rounds.local_steps):
                places.append([find(number, int(taken[number]) + local) for number in self._mine(drawn)])
            taken[drawn] += self.rounds.local_steps
        return places

    def _mine(self, drawn: Sequence[int]) -> list[int]:
        return [number for number in drawn if number in self.clients]

    # Steps

    def step(self, epoch: int, step: int, batch: Sequence[SearchBatch]) -> dict[str, float]:  # type: ignore[override]
        """Let every client of the round take a step. The first step begins at what is global, the last one averages.

        Returns:
            The means of the clients' values, weighted by their numbers of images.
        """
        number, local = divmod(step, self.rounds.local_steps)
        drawn, last = self.rounds.drawn(epoch, number), local + 1 == self.rounds.local_steps
        if local == 0:
            self._hand_out(drawn, averaged)
        self._under_way = [] if last else drawn
        shares = self._shares(drawn)
        progress = (epoch + step / self.num_steps(epoch)) / self.epochs
        values: dict[str, float] = {}

        def take(half: Callable[[SearchPhase, SearchBatch], dict[str, float]]) -> None:
            with collective.alone():
                for client, its_batch in zip(self._mine(drawn), batch, strict=True):
                    seed_for_step(self.clients[client].seed, epoch, step)
                    for name, value in half(self.clients[client], its_batch).items():
                        values[name] = values.get(name, 0.0) + shares[client] * value

        take(lambda client, its_batch: client.architecture_step(its_batch, epoch, progress))
        if last:
            self._average(shares, alphas_of)
            self._hand_out(drawn, alphas_of)
        take(lambda client, its_batch: client.weight_step(its_batch, progress))
        if last:
            self._average(shares, weights_of)
        parts = world.gather({n: float(v) for n, v in values.items()}) if world.size() > 1 else [values]
        return {name: sum(part.get(name, 0.0) for part in parts) for name in dict.fromkeys(n for p in parts for n in p)}

    def _shares(self, drawn: Sequence[int]) -> dict[int, float]:
        """The weight of each client of a round in the mean: its images over those of all of them."""
        images = {number: sum(map(len, self.parts[number])) for number in drawn}
        return {number: num / sum(images.values()) for number, num in images.items()}

    @torch.no_grad()
    def _hand_out(self, drawn: Sequence[int], what: Tensors) -> None:
        """Let clients go on with what is global."""
        source = what(self)
        for number in self._mine(drawn):
            for name, tensor in what(self.clients[number]).items():
                tensor.copy_(source[name])

    @torch.no_grad()
    def _average(self, shares: Mapping[int, float], what: Tensors) -> None:
        """Make what is global the mean of the clients of a round, summed in float64."""
        target = what(self)
        sizes = [tensor.numel() for tensor in target.values()]
        total = torch.zeros(sum(sizes), dtype=torch.float64, device=self.device.torch)
        for number in self._mine(list(shares)):
            own = what(self.clients[number])
            total += shares[number] * torch.cat([own[name].reshape(-1).double() for name in target])
        collective.sum_in_place([total])
        for tensor, part in zip(target.values(), total.split(sizes), strict=True):
            tensor.copy_(part.view(tensor.shape))

    # Epochs

    def end_epoch(self, epoch: int) -> dict[str, Any]:
        """As for every search; and the number of rounds, and what a round sends."""
        return super().end_epoch(epoch) | {"rounds": self.rounds.per_epoch[epoch], "round_bytes": self.round_bytes}

    @property
    def round_bytes(self) -> int:
        """The bytes that a round sends to the clients drawn and back: weights, running statistics and alphas."""
        once = sum(tensor.numel() * tensor.element_size() for tensor in averaged(self).values())
        return 2 * self.rounds.num_drawn * once

    @contextlib.contextmanager
    def estimated_statistics(self, mixing: Mixing) -> Iterator[None]:
        """As for every search. Each rank computes them of whole batches, and then its share of the evaluation."""
        with contextlib.ExitStack() as stack:
            with collective.alone():
                stack.enter_context(super().estimated_statistics(mixing))
            yield

    def equip_clients(self) -> None:
        """Give clients that were not drawn yet an optimizer's state, so that all take the memory that they end with."""
        equipped = next(client for client in self.clients.values() if client.optimizer.state)
        for client in self.clients.values():
            if not client.optimizer.state:
                client.load({**client.tensors(), **equipped.tensors()})

    # State

    def description(self) -> str:
        """The clients and rounds, in a line for the log."""
        settings, rounds, images = self.settings, self.rounds, [sum(map(len, part)) for part in self.parts]
        return (
            f"{rounds.num_clients} clients with {min(images)} to {max(images)} images (partition={settings.partition})"
            f"; a round: {rounds.num_drawn} clients, local_steps={rounds.local_steps}, "
            f"{self.round_bytes / 1e6:.2f} MB; {rounds.per_epoch[0]} rounds an epoch"
        )

    def facts(self) -> dict[str, Any]:
        """What config.json records of the clients: their images in each half, and of each class in both."""
        counts = [self._counts(np.concatenate(part)) for part in self.parts]
        return {
            "clients": [
                {"weight_half": len(weights), "alpha_half": len(alphas), "class_counts": of_class}
                for (weights, alphas), of_class in zip(self.parts, counts, strict=True)
            ]
        }

    def tensors(self) -> dict[str, Tensor]:
        """What is global, and under `clients.NUMBER` what each client keeps; all ranks have to ask for it together.

        Within a round the weights and alphas of its clients belong to that, too.
        """
        global_names = averaged(self).keys()
        kept = {
            number: {
                name: tensor
                for name, tensor in client.tensors().items()
                if name not in global_names or number in self._under_way
            }
            for number, client in self.clients.items()
        }
        parts = all_parts(kept, self.rounds.num_clients)
        of_clients = {f"clients.{k}.{name}": tensor for k, part in parts.items() for name, tensor in part.items()}
        return super().tensors() | of_clients

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state that `tensors` returned."""
        super().load(tensors)
        first = next(iter(averaged(self)))
        numbers = range(self.rounds.num_clients)
        self._under_way = [number for number in numbers if f"clients.{number}.{first}" in tensors]
        for number, client in self.clients.items():
            client.load({**super().tensors(), **under(f"clients.{number}", tensors)})


def weights_of(phase: SearchPhase) -> dict[str, Tensor]:
    """The weights and running statistics of a search, by name.

    The numbers of batches that batch normalisations have seen stay with each client.
    """
    of_model = module_tensors("model", phase.model).items()
    return {name: tensor for name, tensor in of_model if tensor.is_floating_point()}


def alphas_of(phase: SearchPhase) -> dict[str, Tensor]:
    """The alphas of a search, or what else its strategy lets clients average, by name."""
    return phase.strategy.averaged()


def averaged(phase: SearchPhase) -> dict[str, Tensor]:
    """All tensors of a search that clients average, by name."""
    return weights_of(phase) | alphas_of(phase)
