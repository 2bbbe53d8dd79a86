"""The phase of a self-supervised pretraining or of a supervised training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from registry import SAMPLERS
from registry.losses import Objective
from registry.networks import Encoder
from registry.samplers import Sampler
from registry.state import load_module, load_optimizer, module_tensors, optimizer_tensors
from ssfnas_cli.artifacts.dataset import DataSet, Split
from ssfnas_cli.data.batches import Batch, TrainingBatches, load_batches, normaliser, num_batches, training_subset
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.loop import cosine, set_lr
from ssfnas_cli.engine.predict import accuracy, predict
from ssfnas_cli.nets.heads import Classifier
from ssfnas_cli.settings import RetrainSettings, build_plugin


class PretrainingModel(nn.Module):
    """An encoder with the head of a self-supervised objective."""

    aux: nn.Module | None = None

    def __init__(self, encoder: Encoder, head: nn.Module):
        super().__init__()
        self.encoder, self.head = encoder, head


@dataclass(frozen=True)
class Schedule:
    """The settings that differ between pretraining and training.

    `regularised` says whether the encoder is told its progress, on which the probability of drop path depends.
    """

    name: str
    epochs: int
    lr: float
    regularised: bool = False
    cutout: float = 0.0
    aux_weight: float = 0.0


class TrainPhase:
    """Trains `model.encoder`, `model.head` and `model.aux` (if it exists) on the training split."""

    def __init__(
        self,
        schedule: Schedule,
        settings: RetrainSettings,
        data: DataSet,
        device: Device,
        model: Classifier | PretrainingModel,
        objective: Objective,
    ):
        self.schedule, self.settings, self.data, self.device = schedule, settings, data, device
        self.name, self.epochs, self.seed = schedule.name, schedule.epochs, settings.seed
        self.objective = objective
        self.split = data.split("train")
        self.sampler: Sampler = build_plugin(SAMPLERS, settings.sampler, class_counts=data.counts("train"))
        self.model = device.place(model)
        self.optimizer = torch.optim.SGD(
            model.parameters(), schedule.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )

    def _epoch(self, epoch: int) -> TrainingBatches:
        subset = training_subset(
            self.data,
            self.split,
            np.arange(len(self.split)),
            self.settings,
            self.name,
            self.objective.num_views,
            self.schedule.cutout,
            self.device.compiled_views,
        )
        order = self.sampler.order(self.split.labels, subset.seed, epoch, epoch / self.epochs)
        return TrainingBatches(subset, order, self.settings.batch_size, epoch)

    def num_steps(self, epoch: int) -> int:
        return num_batches(self.sampler.length(epoch / self.epochs), self.settings.batch_size)

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """Yield the batches of the epoch from `start` on."""
        for batch in load_batches(self._epoch(epoch), start, self.settings.workers):
            yield self.device.move(batch)

    def step(self, epoch: int, step: int, batch: Batch) -> dict[str, float]:
        """Take one SGD step. The learning rate changes with every step, the encoder's progress with every epoch."""
        progress = (epoch + step / self.num_steps(epoch)) / self.epochs
        lr = cosine(self.schedule.lr, self.settings.lr_min, progress)
        set_lr(self.optimizer, lr)
        self.model.train()
        self.model.encoder.set_progress(epoch / self.epochs if self.schedule.regularised else 0.0)
        loss, train_accuracy = self._loss(batch, progress)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizer.step()
        return {"loss": loss.item(), "lr": lr} | train_accuracy

    def _loss(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, float]]:
        """The loss, including the auxiliary head's, and the accuracy on the batch if the objective is supervised."""
        objective, model = self.objective, self.model
        with self.device.autocast():
            encoded = [model.encoder(view) for view in batch.views]
            outputs = [model.head(view.features) for view in encoded]
            loss = objective(outputs, batch.labels, progress)
            if model.aux is not None:
                aux = model.aux(encoded[0].aux_map)
                loss = loss + self.schedule.aux_weight * objective([aux], batch.labels, progress)
        if not objective.supervised:
            return loss, {}
        correct = (outputs[0].detach().argmax(1) == batch.labels).float().mean().item()
        return loss, {"train_accuracy": 100 * correct}

    def evaluation_rows(self) -> dict[str, tuple[Split, np.ndarray]]:
        """The splits, and the rows of them, that the end of an epoch evaluates."""
        if not self.settings.track_test or not self.objective.supervised:
            return {}
        splits = {name: self.data.split(name) for name in self.data.held_out}
        return {name: (split, np.arange(len(split))) for name, split in splits.items()}

    def end_epoch(self, epoch: int) -> dict[str, Any]:
        """Compute the accuracy on the held-out splits, if configured."""
        return {
            f"accuracy_{name}": self.accuracy(split, rows) for name, (split, rows) in self.evaluation_rows().items()
        }

    def accuracy(self, split: Split, rows: np.ndarray) -> float:
        """Top-1 accuracy in percent."""
        return accuracy(*predict(self.model, split, normaliser(self.data), self.device, rows))

    def tensors(self) -> dict[str, Tensor]:
        """The weights and buffers, and the state of the optimizer."""
        return module_tensors("model", self.model) | optimizer_tensors("optimizer", self.optimizer)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state that `tensors` returned."""
        load_module("model", self.model, tensors)
        load_optimizer("optimizer", self.optimizer, tensors)

    def publish(self, folder: Path) -> None:
        """Write nothing: the model is written at the end of the training."""
