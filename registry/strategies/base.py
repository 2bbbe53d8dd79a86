"""What a search strategy is, and what it can ask of the supernet that it searches.

Mixing weights are the one language: `{cell type: [num_edges, num_ops]}`, edges ordered as in `registry.space`. A
candidate op whose weight is exactly zero is not computed. A strategy proposes mixing weights, learns from what the
bench tells it, and publishes a record of every epoch from which an architecture can be derived.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from registry.core import Options
from registry.relaxations import Relaxation

Mixing = Mapping[str, Tensor]


@dataclass(frozen=True)
class SearchContext:
    """What a strategy is built with, beside its own options.

    Attributes:
        ops: names of the candidate ops, in the order of the mixing weights' columns.
        epochs: of the whole search.
        seed: of the search.
        device: where mixing weights live.
        relaxation: what `--relax` names. A strategy without alphas ignores it, and the settings below.
        order: of the alpha step's gradient, 1 or 2.
        warmup_epochs: epochs at the start in which the architecture stays as it is.
        alpha_lr, alpha_betas, alpha_weight_decay: of the alphas' optimizer.
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


class WeightStep(NamedTuple):
    """The SGD step that the weights take next: w - lr * (momentum * buffer + clipped gradient + weight_decay * w).

    `momenta` are the buffers in the order of the weights, None before the first step; `clip` is the largest norm of a
    group's gradient.
    """

    lr: float
    momentum: float
    weight_decay: float
    clip: float
    momenta: list[Tensor | None]


class Bench(Protocol):
    """A supernet at one step of its training, with this step's batches. Losses are scalars with gradients."""

    epoch: int
    progress: float  # of the search, from 0 to 1

    @property
    def weight_groups(self) -> list[list[nn.Parameter]]:
        """The lower level's parameters, in groups whose gradients are clipped apart."""

    def generator(self) -> torch.Generator:
        """This step's random numbers, from their beginning: every call within a step draws the same ones."""

    def train_loss(self, mixing: Mixing) -> Tensor:
        """The weights' loss on this step's batch of the weight half."""

    def val_loss(self, mixing: Mixing) -> Tensor:
        """The architecture's loss on this step's batch of the alpha half."""

    def accuracy(self, mixing: Mixing) -> float:
        """Top-1 in percent over the alpha half, with statistics of batch normalisation estimated for these weights."""

    def weight_step(self) -> WeightStep:
        """The step that the weights are about to take."""

    def held_statistics(self) -> contextlib.AbstractContextManager[None]:
        """Within: passes leave running statistics of batch normalisation as they are."""

    def exact(self) -> contextlib.AbstractContextManager[None]:
        """Within: passes are computed in float32, whatever the precision of the search."""


class Strategy(abc.ABC):
    """Base of every search strategy."""

    default_rule: str = "darts"  # how its record is derived unless `derive --rule` names another rule
    record_names: ClassVar[tuple[str, ...]] = ("normal", "reduce")

    def __init__(self, options: Options, context: SearchContext):
        self.options, self.context = options, context

    @abc.abstractmethod
    def mixing(self, progress: float, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Mixing weights that the next weight step trains, or, without a generator, those to judge (no noise)."""

    @abc.abstractmethod
    def update(self, bench: Bench) -> dict[str, float]:
        """Learn from this step's batches, before the weight step; values to average over the epoch's metrics."""

    @abc.abstractmethod
    def end_epoch(self) -> dict[str, float]:
        """Add this epoch to the record; facts for the epoch's metrics."""

    @abc.abstractmethod
    def record(self) -> dict[str, Tensor]:
        """What is published: `record_names` -> [epochs so far + 1, num_edges, num_ops], the start included."""

    @abc.abstractmethod
    def weights_at(self, record: Mapping[str, Tensor], epoch: int) -> dict[str, NDArray]:
        """Mixing weights in float64 of a record's epoch, from which a genotype is derived."""

    @abc.abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Everything that a search changes here, the record included, by name.

        Names must not begin with `model.`, `optimizer.weights.` or `optimizer.probe.`, which are the supernet's.
        """

    @abc.abstractmethod
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what `tensors` gave, bit for bit."""
