"""The phase of a self-supervised pretraining or of a supervised training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
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
from ssfnas_cli.data.holdout import rest_counts, split_holdout
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.loop import cosine, set_lr
from ssfnas_cli.engine.mix import Mix
from ssfnas_cli.engine.predict import accuracy, predict
from ssfnas_cli.nets.heads import Classifier
from ssfnas_cli.settings import PluginSection, RetrainSettings, build_plugin

INSTANCE = PluginSection(name="instance")


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
    """Trains `model.encoder`, `model.head` and `model.aux` (if it exists) on the training split.

    A self-supervised loss beside the supervised one has a separate head, `ssl_head`, which is part of the checkpoints
    but not of the trained model. A self-supervised phase visits each image once per epoch, because a sampler would use
    labels. No phase sees the share of the split that `holdout` sets aside.
    """

    def __init__(
        self,
        schedule: Schedule,
        settings: RetrainSettings,
        data: DataSet,
        device: Device,
        model: Classifier | PretrainingModel,
        objective: Objective,
        mix: Mix | None = None,
    ):
        self.schedule, self.settings, self.data, self.device = schedule, settings, data, device
        self.name, self.epochs, self.seed = schedule.name, schedule.epochs, settings.seed
        self.objective, self.mix = objective, mix
        self.split = data.split("train")
        self.rows, _ = split_holdout(self.split.labels, data.num_classes, settings.holdout, settings.seed)
        section = settings.sampler if objective.supervised else INSTANCE
        counts = rest_counts(data.counts("train"), settings.holdout)
        self.sampler: Sampler = build_plugin(SAMPLERS, section, class_counts=counts)
        self.model = device.place(model)
        self.ssl_head = None
        if mix is not None:
            self.ssl_head = mix.objective.build_head(model.encoder.num_features).to(device.torch)
        parts = [part for part in (model, self.ssl_head) if part is not None]
        self.weights = [weight for part in parts for weight in part.parameters()]
        self.optimizer = torch.optim.SGD(
            self.weights, schedule.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )

    def _epoch(self, epoch: int) -> TrainingBatches:
        compiled = self.device.compiled_views
        make = partial(training_subset, self.data, self.split, self.rows, self.settings, compiled=compiled)
        beside = (
            None if self.mix is None else make(stream=f"{self.name} beside", num_views=self.mix.objective.num_views)
        )
        subset = make(stream=self.name, num_views=self.objective.num_views, cutout=self.schedule.cutout, beside=beside)
        order = self.sampler.order(self.split.labels[self.rows], subset.seed, epoch, epoch / self.epochs)
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
        nn.utils.clip_grad_norm_(self.weights, self.settings.clip)
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
            if self.mix is not None and self.ssl_head is not None:
                features = lambda images: model.encoder(images).features
                loss = loss + self.mix.loss(model.encoder, features, self.ssl_head, batch.beside, progress)
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
        named = module_tensors("model", self.model) | optimizer_tensors("optimizer", self.optimizer)
        return named if self.ssl_head is None else named | module_tensors("ssl_head", self.ssl_head)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state that `tensors` returned."""
        load_module("model", self.model, tensors)
        if self.ssl_head is not None:
            load_module("ssl_head", self.ssl_head, tensors)
        load_optimizer("optimizer", self.optimizer, tensors)

    def publish(self, folder: Path) -> None:
        """Write nothing: the model is written at the end of the training."""
