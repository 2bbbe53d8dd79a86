"""Candidates that are trained by themselves, one after the other: a search without a supernet.

A candidate is a supernet whose mixing weights are 1 for its ops and 0 for all others: these are not computed, and their
weights do not move. It begins with weights that follow from the seed and the candidate's number, is trained for the
epochs of the settings on the weight half, and judged on the alpha half.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from registry.strategies.candidates import CandidateStrategy
from ssfnas_cli.artifacts.dataset import Split
from ssfnas_cli.engine.candidate_rounds import CandidateRounds, candidate_accuracies, publish_judged
from ssfnas_cli.engine.loop import Phase
from ssfnas_cli.engine.search_health import epoch_health
from ssfnas_cli.engine.search_phase import SearchPhase


class CandidateTrainings:
    """A search phase whose strategy has its candidates trained. An epoch of the loop is the whole training of one.

    All candidates see the same images in the same order. A stopped search goes on in the midst of a candidate's
    training.

    Attributes:
        training: the phase that trains a candidate.
        best_accuracy: of the best candidate so far, in percent on the alpha half.
    """

    name, unit = "search", "candidate"

    def __init__(self, training: SearchPhase):
        assert isinstance(training.strategy, CandidateStrategy)
        self.training, self.strategy, self.settings = training, training.strategy, training.settings
        self.seed, self.is_spread = training.seed, training.is_spread
        self.epochs = self.strategy.num_candidates
        self.best_accuracy = 0.0
        steps = [training.num_steps(number) for number in range(training.epochs)]
        self.starts = [0, *accumulate(steps)]  # of each epoch of a candidate, its first step; the last is the end

    def num_steps(self, epoch: int) -> int:
        """The number of steps of a candidate's training."""
        return self.starts[-1]

    def _place(self, step: int) -> tuple[int, int]:
        """The epoch of the candidate that a step belongs to, and its number there."""
        number = int(np.searchsorted(self.starts, step, side="right")) - 1
        return number, step - self.starts[number]

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        """The batches of a candidate's training from a step on."""
        first, within = self._place(start)
        for number in range(first, self.training.epochs):
            yield from self.training.batches(number, within if number == first else 0)

    def step(self, epoch: int, step: int, batch: Any) -> dict[str, float]:
        """Take a step of the training of candidate number `epoch`; before the first one its weights are drawn."""
        if step == 0:
            self.training.begin_anew(epoch)
        return self.training.step(*self._place(step), batch)

    def end_epoch(self, epoch: int) -> dict[str, Any]:
        """Judge the candidate, and say how good the best of all so far is."""
        accuracies = candidate_accuracies(self.training, self.strategy.candidate())
        values: dict[str, Any] = self.strategy.judge(accuracies) | self.strategy.end_epoch()
        if self.strategy.best_number == epoch:
            self.best_accuracy = accuracies["accuracy"]
        name = "accuracy" if self.training.model.probe is None else "probe_accuracy"
        health = epoch_health(self.strategy, self.settings.ops)
        return {f"{name}_alpha_half": self.best_accuracy, **values, "candidates": 1, **health}

    def evaluation_rows(self, epoch: int) -> dict[str, tuple[Split, np.ndarray]]:
        """The rows that a candidate is judged on."""
        return self.training.evaluation_rows(epoch)

    def tensors(self) -> dict[str, Tensor]:
        """The state of the candidate's training and of the strategy."""
        return self.training.tensors() | {"best_accuracy": torch.tensor([self.best_accuracy], dtype=torch.float64)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state that `tensors` returned."""
        self.training.load(tensors)
        self.best_accuracy = tensors["best_accuracy"].item()

    def publish(self, folder: Path) -> None:
        """Write the strategy's record, and the candidates that it has judged."""
        self.training.publish(folder)
        publish_judged(self.strategy, folder)


def whole_phase(training: SearchPhase) -> Phase:
    """The phase of a search: the training of its supernet, with the candidates that are judged, or their trainings."""
    if training.strategy.trains_candidates:
        return CandidateTrainings(training)
    return CandidateRounds(training) if training.strategy.num_candidates else training
