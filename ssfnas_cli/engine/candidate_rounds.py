"""Rounds of candidates, which follow the epochs of a search whose strategy judges architectures one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from registry.strategies.base import CANDIDATES_A_ROUND, Mixing, Strategy
from ssfnas_cli.artifacts.run import CANDIDATES
from ssfnas_cli.artifacts.tensors import save_tensors
from ssfnas_cli.engine.predict import accuracy, balanced_accuracy
from ssfnas_cli.engine.search_phase import SearchPhase


class CandidateRounds:
    """A search phase, and after its epochs the rounds of its strategy as further epochs. A candidate is a step.

    The weights stay as they are while candidates are judged. A stopped search goes on with the next candidate.

    Attributes:
        training: the phase that trains the supernet.
        epochs: the epochs of the training and the rounds.
    """

    def __init__(self, training: SearchPhase):
        self.training, self.strategy = training, training.strategy
        self.name, self.seed, self.is_spread = training.name, training.seed, training.is_spread
        self.epochs = training.epochs + self.strategy.num_rounds

    def _is_round(self, epoch: int) -> bool:
        return epoch >= self.training.epochs

    def num_steps(self, epoch: int) -> int:
        """The number of weight steps of an epoch, or of candidates of a round."""
        if not self._is_round(epoch):
            return self.training.num_steps(epoch)
        before = CANDIDATES_A_ROUND * (epoch - self.training.epochs)
        return min(CANDIDATES_A_ROUND, self.strategy.num_candidates - before)

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        """The batches of an epoch. A round has none, since a candidate is judged on the whole alpha half."""
        if self._is_round(epoch):
            yield from [None] * (self.num_steps(epoch) - start)
        else:
            yield from self.training.batches(epoch, start)

    def step(self, epoch: int, step: int, batch: Any) -> dict[str, float]:
        """A step of the training, or judge the next candidate."""
        if not self._is_round(epoch):
            return self.training.step(epoch, step, batch)
        return self.strategy.judge(candidate_accuracies(self.training, self.strategy.candidate()))

    def end_epoch(self, epoch: int) -> dict[str, Any]:
        """As every epoch of a search: record, and evaluate what the strategy thinks best. A round trains no step."""
        facts = self.training.end_epoch(epoch)
        return facts | ({"steps": 0, "candidates": self.num_steps(epoch)} if self._is_round(epoch) else {})

    def tensors(self) -> dict[str, Tensor]:
        """The state of the training and of its strategy."""
        return self.training.tensors()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state that `tensors` returned."""
        self.training.load(tensors)

    def publish(self, folder: Path) -> None:
        """Write the strategy's record, and the candidates that it has judged."""
        self.training.publish(folder)
        publish_judged(self.strategy, folder)


def publish_judged(strategy: Strategy, folder: Path) -> None:
    """Write the candidates that a strategy has judged so far."""
    if judged := strategy.judged():
        save_tensors(folder / CANDIDATES, judged)


def candidate_accuracies(phase: SearchPhase, mixing: Mixing) -> dict[str, float]:
    """Accuracy, and its mean over classes, in percent on the alpha half, with BN statistics for these weights."""
    with phase.estimated_statistics(mixing):
        scores, labels = phase.scores(phase.split, phase.halves[1], mixing)
    return {"accuracy": accuracy(scores, labels), "balanced_accuracy": balanced_accuracy(scores, labels)}
