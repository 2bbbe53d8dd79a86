"""The interfaces of a search strategy and of the supernet that it searches.

They communicate by mixing weights: `{cell type: [num_edges, num_ops]}`, with the edges in the order of
`registry.space`. A candidate op whose weight is exactly zero is not computed. A strategy proposes mixing weights,
learns from the losses that they lead to, and records every epoch. An architecture is derived from the record.

Beside them there may be weights of whole edges, `{EDGE_WEIGHTS[cell type]: [num_edges]}`. Each multiplies all that its
edge gives to a node: the ops, and with partial channels those channels that pass by them. Where there are none, an edge
counts once if any of its ops has a weight (`none` included), and is not there otherwise.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from registry.core import Options
from registry.cost import SearchCost
from registry.relaxations import Relaxation

Mixing = Mapping[str, Tensor]

CANDIDATES_A_ROUND = 10


@dataclass(frozen=True)
class SearchContext:
    """What a strategy is built with besides its own options.

    Attributes:
        ops: names of the candidate ops, in the order of the mixing weights' columns.
        epochs: number of epochs of the search.
        seed: the search's seed.
        device: the device of the mixing weights.
        relaxation: the relaxation that `--relax` names. A strategy without alphas ignores it and the settings below.
        order: the order of the alpha step's gradient, 1 or 2.
        warmup_epochs: number of epochs at the start in which the alphas do not change.
        alpha_lr, alpha_betas, alpha_weight_decay: settings of the alphas' optimizer.
        alpha_optimizer: `adam`, or `sgd`, which has neither momentum nor betas.
        partial_channels: K, if ops see only one of every K channels of a node (PC-DARTS); 1: all of them.
        edge_weights: whether edges are to have weights of their own.
        cost: the cost that the search minds, or None. A strategy that does something about it has `minds_cost`.
    """

    ops: Sequence[str]
    epochs: int
    seed: int
    device: torch.device
    relaxation: Relaxation
    order: int
    warmup_epochs: int
    alpha_lr: float
    alpha_betas: tuple[float, float]
    alpha_weight_decay: float
    alpha_optimizer: Literal["adam", "sgd"] = "adam"
    partial_channels: int = 1
    edge_weights: bool = False
    cost: SearchCost | None = None


class Stage(NamedTuple):
    """A part of a search, which begins with new weights of a supernet of its own depth, as a search does.

    Learning rates and all that depends on the progress of the search are of the stage.
    """

    first: int  # its first epoch
    epochs: int
    more_layers: int = 0  # cells beside those that the settings say

    def progress(self, epochs: float) -> float:
        """From 0 to 1, after so many epochs of the search; 1 after its end."""
        return min(1.0, (epochs - self.first) / self.epochs)


class WeightStep(NamedTuple):
    """The next SGD step of the weights: w - lr * (momentum * buffer + clipped gradient + weight_decay * w).

    `momenta` are the buffers in the order of the weights; they are None before the first step. `clip` is the maximum
    norm of the gradient of a group.
    """

    lr: float
    momentum: float
    weight_decay: float
    clip: float
    momenta: list[Tensor | None]


class SearchStep(Protocol):
    """One step of a search: the supernet and the batches of this step. Losses are scalars with gradients."""

    epoch: int
    progress: float  # of the search, from 0 to 1

    @property
    def weight_groups(self) -> list[list[nn.Parameter]]:
        """The parameters of the lower level, in groups whose gradients are clipped separately."""

    def generator(self) -> torch.Generator:
        """A new generator with the seed of this step, so that every call within a step draws the same numbers."""

    def train_loss(self, mixing: Mixing) -> Tensor:
        """L_train, the weights' loss on this step's batch of the weight half."""

    def val_loss(self, mixing: Mixing) -> Tensor:
        """L_val, the architecture's loss on this step's batch of the alpha half."""

    def accuracy(self, mixing: Mixing) -> float:
        """Top-1 accuracy in percent on the alpha half, with BN statistics estimated for these mixing weights."""

    def weight_step(self) -> WeightStep:
        """The SGD step that the weights take after the strategy's update."""

    def held_statistics(self) -> contextlib.AbstractContextManager[None]:
        """A context in which forward passes do not change the running statistics of batch normalisation."""

    def full_precision(self) -> contextlib.AbstractContextManager[None]:
        """A context in which losses are computed in float32, whatever the precision of the search."""


class Strategy(abc.ABC):
    """Base class of search strategies."""

    default_rule: str = "darts"  # the derivation rule unless `derive --rule` names another one
    record_names: tuple[str, ...] = ("normal", "reduce")  # the names in `record`
    minds_cost: bool = False  # whether it does something about the context's `cost`
    num_candidates: int = 0  # how many architectures are judged, one by one, when the weights have been trained
    trains_candidates: bool = False  # whether each of them is trained by itself, so that there is no supernet to train

    stage: int = 0  # the number of the stage that it is in

    def __init__(self, options: Options, context: SearchContext):
        self.options, self.context = options, context

    def stages(self) -> list[Stage]:
        """The stages of the search, in order; one if it is no progressive one."""
        return [Stage(0, self.context.epochs)]

    def stage_of(self, epoch: int) -> int:
        """The number of the stage that an epoch belongs to; the last one after the search."""
        return max(number for number, stage in enumerate(self.stages()) if stage.first <= epoch)

    def begin_stage(self, number: int) -> None:
        """Go on to a stage: the supernet begins anew."""
        raise NotImplementedError

    def stage_in(self, tensors: Mapping[str, Tensor]) -> int:
        """The number of the stage that `tensors` were returned in."""
        return 0

    @property
    def ops_change(self) -> bool:
        """Whether the steps compute different ops, because weights that are exactly zero differ from step to step."""
        return True

    @abc.abstractmethod
    def mixing(self, progress: float, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The mixing weights of the next weight step or, without a generator, those to evaluate (without noise).

        If candidates are trained, those of a weight step are the candidate's.
        """

    @abc.abstractmethod
    def update(self, step: SearchStep) -> dict[str, float]:
        """Update the architecture before the weight step. Return values whose means enter the epoch's metrics."""

    @abc.abstractmethod
    def end_epoch(self) -> dict[str, float]:
        """Add this epoch, or round of candidates, to the record. Return values for the epoch's metrics."""

    @abc.abstractmethod
    def record(self) -> dict[str, Tensor]:
        """The published record, by name: [epochs so far + 1, num_edges, num_ops]. Index 0 is the initial state.

        That of edges' own weights is [epochs so far + 1, num_edges]. Rounds count as epochs.
        """

    @abc.abstractmethod
    def weights_at(self, record: Mapping[str, Tensor], epoch: int) -> dict[str, NDArray]:
        """The mixing weights of an epoch of a record, in float64, from which a genotype is derived.

        Those of ops are zero where nothing has been chosen yet.
        """

    def started_with(self, record: Mapping[str, Tensor], epoch: int) -> dict[str, NDArray]:
        """The mixing weights that the stage of an epoch of the record began with, as `weights_at`."""
        return self.weights_at(record, 0)

    @abc.abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """All tensors that the search changes, by name, including the record.

        Names must not begin with `model.`, `optimizer.weights.` or `optimizer.probe.`, which belong to the supernet.
        """

    @abc.abstractmethod
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state that `tensors` returned, bit for bit."""

    def averaged(self) -> dict[str, Tensor]:
        """Those of `tensors` that the clients of a federated search average, as they are and not as copies.

        They are what such a search finds. The others stay with each client. A strategy that gives none cannot be
        used in one.
        """
        return {}

    def candidate(self) -> dict[str, Tensor]:
        """The mixing weights of the next architecture to judge, of a strategy that has `num_candidates`.

        They stay the same until it is judged.
        """
        raise NotImplementedError

    def judge(self, accuracies: Mapping[str, float]) -> dict[str, float]:
        """Learn how good the architecture is that `candidate` proposed last.

        Args:
            accuracies: `accuracy` and `balanced_accuracy`, in percent on the alpha half, with BN statistics estimated
                for it.

        Returns:
            Values whose means enter the round's metrics.
        """
        raise NotImplementedError

    def judged(self) -> dict[str, Tensor]:
        """What is published of the candidates judged so far, by name; `CandidateStrategy` has the names."""
        return {}

    @property
    def supernet_epochs(self) -> int:
        """The number of epochs in which a supernet is trained. If candidates are trained, each takes the epochs."""
        return 0 if self.trains_candidates else self.context.epochs

    @property
    def candidates_a_round(self) -> int:
        """How many candidates a round has; the last one perhaps less."""
        return 1 if self.trains_candidates else CANDIDATES_A_ROUND

    @property
    def num_rounds(self) -> int:
        """The number of rounds of candidates that follow those epochs."""
        return -(-self.num_candidates // self.candidates_a_round)
