"""The phase of a derivation by perturbation: rounds of decisions, and epochs that tune the supernet between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from registry.space import CELL_TYPES
from registry.strategies.base import Mixing
from ssfnas_cli.artifacts.files import write_json
from ssfnas_cli.artifacts.run import ALPHAS, PERTURBATION
from ssfnas_cli.artifacts.tensors import save_tensors
from ssfnas_cli.console import log
from ssfnas_cli.data.batches import SearchBatch
from ssfnas_cli.engine.loop import cosine
from ssfnas_cli.engine.perturbation import Measured, Perturbation, cross_entropy, without
from ssfnas_cli.engine.predict import accuracy, balanced_accuracy
from ssfnas_cli.engine.search_phase import SearchPhase
from ssfnas_cli.settings import PerturbationSettings

PROGRESS = 1.0  # of the search: relaxations and losses are what they were at its end


class DecidedSupernet(SearchPhase):
    """A search whose supernet computes what has been decided, whatever its strategy proposes."""

    choices: Perturbation
    lr: float | None = None  # of the next step; None: the search's own

    def learning_rate(self, progress: float) -> float:
        """That of the tuning."""
        return super().learning_rate(progress) if self.lr is None else self.lr

    def architecture_step(self, batch: SearchBatch, epoch: int, progress: float) -> dict[str, float]:
        """As in the search, until every op is decided: alphas have no effect any more, and weights of edges stay."""
        if not self.choices.every_op_is_decided:
            return super().architecture_step(batch, epoch, progress)
        self.begin_step(progress)
        return {}

    def weight_objective(
        self, batch: SearchBatch, mixing: Mixing, progress: float, full_precision: bool = False
    ) -> tuple[Tensor, Tensor]:
        """As in the search, with the decisions."""
        return super().weight_objective(batch, self.choices.apply(mixing), progress, full_precision)

    def alpha_objective(
        self, batch: SearchBatch, mixing: Mixing, progress: float, full_precision: bool = False
    ) -> Tensor:
        """As in the search, with the decisions: alphas of edges that are decided get no gradient."""
        return super().alpha_objective(batch, self.choices.apply(mixing), progress, full_precision)


class PerturbationPhase:
    """Decides round by round; after each round but the last, epochs of the search go on with what is left.

    An epoch is either a round, whose steps are measurements on the alpha half, or an epoch of tuning, whose steps are
    those of the search: first the alphas of edges that are not decided, then the weights. In the tuning the learning
    rate falls along a cosine from its start to the search's `lr_min`, and the momentum of SGD begins anew, as in
    DARTS-PT's code.

    Args:
        settings: of the derivation.
        search: in the state of a finished search.
    """

    name = "perturbation"
    is_spread = False

    def __init__(self, settings: PerturbationSettings, search: DecidedSupernet):
        self.settings, self.search = settings, search
        self.seed = search.seed
        self.choices = search.choices = Perturbation(search.settings.ops, search.seed, settings.criterion)
        rounds = len(self.choices.rounds)
        self.tuning_epochs = (rounds - 1) * settings.epochs_between
        self.epochs = rounds + self.tuning_epochs
        self.lr = search.settings.lr / 10 if settings.lr == "auto" else settings.lr
        search.optimizer.state.clear()
        self.weights = {name: values.cpu()[None] for name, values in self.mixing().items()}

    def _place(self, epoch: int) -> tuple[int, int]:
        """The round that an epoch is or follows, and its number among the epochs of tuning behind it: 0 for a round."""
        return divmod(epoch, 1 + self.settings.epochs_between)

    def _tuned(self, epoch: int) -> int | None:
        """How many epochs of tuning come before this one; None if it is a round."""
        number, behind = self._place(epoch)
        return number * self.settings.epochs_between + behind - 1 if behind else None

    def num_steps(self, epoch: int) -> int:
        """The number of measurements of a round, or of steps of an epoch of the search."""
        tuned = self._tuned(epoch)
        if tuned is None:
            return sum(len(decision.parts) for decision in self.choices.rounds[self._place(epoch)[0]])
        return self.search.num_steps(self.search.epochs + tuned)

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        """The batches of an epoch of tuning. A round has none, since each measurement takes the whole alpha half."""
        tuned = self._tuned(epoch)
        if tuned is None:
            yield from [None] * (self.num_steps(epoch) - start)
        else:
            yield from self.search.batches(self.search.epochs + tuned, start)

    @torch.no_grad()
    def mixing(self) -> dict[str, Tensor]:
        """The mixing weights that the supernet is evaluated with, with what is decided."""
        return self.choices.apply(self.search.strategy.mixing(PROGRESS))

    def step(self, epoch: int, step: int, batch: Any) -> dict[str, float]:
        """Measure the supernet without the next part, or take a step of the tuning."""
        tuned = self._tuned(epoch)
        if tuned is not None:
            return self._tune(tuned, step, batch)
        measured = self.measure(without(self.mixing(), *self.choices.next_part()))
        self.choices.measured.append(measured)
        return {f"{name}_without": value for name, value in measured._asdict().items()}

    def _tune(self, tuned: int, step: int, batch: SearchBatch) -> dict[str, float]:
        search, epoch = self.search, self.search.epochs + tuned
        progress = (tuned + step / search.num_steps(epoch)) / self.tuning_epochs
        search.lr = cosine(self.lr, min(self.lr, search.settings.lr_min), progress)
        return search.architecture_step(batch, epoch, PROGRESS) | search.weight_step(batch, PROGRESS)

    def measure(self, mixing: Mixing) -> Measured:
        """What the supernet is on the alpha half, with BN statistics estimated for these weights."""
        search = self.search
        with search.estimated_statistics(mixing):
            scores, labels = search.scores(search.split, search.halves[1], mixing)
        return Measured(accuracy(scores, labels), balanced_accuracy(scores, labels), cross_entropy(scores, labels))

    def end_epoch(self, epoch: int) -> dict[str, Any]:
        """Record the mixing weights, evaluate the supernet with what is decided, and say what a round has decided."""
        mixing, is_round = self.mixing(), self._tuned(epoch) is None
        for name, values in mixing.items():
            self.weights[name] = torch.cat([self.weights[name], values.cpu()[None]])
        name = "accuracy" if self.search.model.probe is None else "probe_accuracy"
        facts: dict[str, Any] = {f"{name}_alpha_half": self.measure(mixing).accuracy}
        if epoch + 1 == self.epochs:  # nothing but the genotype is left
            facts[f"pruned_{name}_alpha_half"] = facts[f"{name}_alpha_half"]
        if not is_round:
            return facts
        decided = self.choices.record()
        for decision in decided[-len(CELL_TYPES) :]:
            log.info("%s", in_words(decision, self.settings.criterion))
        return facts | {"steps": 0, "measurements": self.num_steps(epoch), "decisions": len(decided)}

    def tensors(self) -> dict[str, Tensor]:
        """The state of the search, what was measured, and the recorded mixing weights."""
        recorded = {f"perturbation.weights.{name}": weights for name, weights in self.weights.items()}
        return self.search.tensors() | recorded | {"perturbation.measured": self.choices.tensor()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state that `tensors` returned."""
        self.search.load(tensors)
        self.choices.load(tensors["perturbation.measured"])
        self.weights = {name: tensors[f"perturbation.weights.{name}"].clone() for name in self.weights}

    def publish(self, folder: Path) -> None:
        """Write the mixing weights of all epochs, and the decisions with what was measured."""
        save_tensors(folder / ALPHAS, self.weights)
        write_json(folder / PERTURBATION, {"criterion": self.settings.criterion, "decisions": self.choices.record()})


def in_words(decision: Mapping[str, Any], criterion: str) -> str:
    """A decision as a sentence."""
    losses = [f"{_part(one)} {one[criterion]:.4g}" for one in decision["without"]]
    where = decision["without"][0]
    edge = f"edge {where['from']} -> {where['to']}" if decision["decides"] == "op" else f"node {where['to']}"
    kept = " and ".join(map(_part, decision["kept"]))
    return f"{decision['cell']} cell, {edge}: kept {kept} ({criterion} without {', '.join(losses)})"


def _part(part: Mapping[str, Any]) -> str:
    return str(part["op"]) if "op" in part else f"{part['from']} -> {part['to']}"
