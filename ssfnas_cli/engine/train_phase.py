"""Training a network: a self-supervised pretraining or a supervised (fine-)training, as the loop sees it."""

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
from ssfnas_cli.data.batches import Batch, TrainingBatches, load_from, normaliser, num_batches, training_subset
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.loop import cosine, set_lr
from ssfnas_cli.engine.mix import Mix
from ssfnas_cli.engine.predict import accuracy, predict
from ssfnas_cli.nets.heads import Classifier
from ssfnas_cli.settings import PluginSection, RetrainSettings, build_plugin

INSTANCE = PluginSection(name="instance")


class Pretrained(nn.Module):
    """An encoder with a self-supervised objective's head."""

    aux: nn.Module | None = None

    def __init__(self, encoder: Encoder, head: nn.Module):
        super().__init__()
        self.encoder, self.head = encoder, head


@dataclass(frozen=True)
class Schedule:
    """What differs between pretraining and training. `regularised` says whether the encoder's schedule runs."""

    name: str
    epochs: int
    lr: float
    regularised: bool = False
    cutout: float = 0.0
    aux_weight: float = 0.0


class TrainPhase:
    """Trains `model.encoder` and `model.head` (and `model.aux`) on the training split.

    A self-supervised loss beside the supervised one has a head of its own, `ssl_head`. It is part of the checkpoints
    and not of the model that the run makes. A self-supervised phase shows every image once an epoch, as a sampler
    would use labels.
    """

    def __init__(
        self,
        schedule: Schedule,
        settings: RetrainSettings,
        data: DataSet,
        device: Device,
        model: Classifier | Pretrained,
        objective: Objective,
        mix: Mix | None = None,
    ):
        self.schedule, self.settings, self.data, self.device = schedule, settings, data, device
        self.name, self.epochs, self.seed = schedule.name, schedule.epochs, settings.seed
        self.objective, self.mix = objective, mix
        self.split = data.split("train")
        section = settings.sampler if objective.supervised else INSTANCE
        self.sampler: Sampler = build_plugin(SAMPLERS, section, class_counts=data.counts("train"))
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
        rows, compiled = np.arange(len(self.split)), self.device.compiled_views
        make = partial(training_subset, self.data, self.split, rows, self.settings, compiled=compiled)
        beside = (
            None if self.mix is None else make(stream=f"{self.name} beside", num_views=self.mix.objective.num_views)
        )
        subset = make(stream=self.name, num_views=self.objective.num_views, cutout=self.schedule.cutout, beside=beside)
        order = self.sampler.order(self.split.labels, subset.seed, epoch, epoch / self.epochs)
        return TrainingBatches(subset, order, self.settings.batch_size, epoch)

    def num_steps(self, epoch: int) -> int:
        return num_batches(self.sampler.length(epoch / self.epochs), self.settings.batch_size)

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """The epoch's batches from `start` on."""
        for batch in load_from(self._epoch(epoch), start, self.settings.workers):
            yield self.device.move(batch)

    def step(self, epoch: int, step: int, batch: Batch) -> dict[str, float]:
        """One SGD step. The rate falls along a cosine; the encoder's own schedule moves from epoch to epoch."""
        progress = (epoch + step / self.num_steps(epoch)) / self.epochs
        lr = cosine(self.schedule.lr, self.settings.lr_min, progress)
        set_lr(self.optimizer, lr)
        self.model.train()
        self.model.encoder.set_progress(epoch / self.epochs if self.schedule.regularised else 0.0)
        loss, right = self._loss(batch, progress)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, self.settings.clip)
        self.optimizer.step()
        return {"loss": loss.item(), "lr": lr} | right

    def _loss(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, float]]:
        """The objective plus the auxiliary head's share, and the batch's training accuracy if supervised."""
        objective, model = self.objective, self.model
        with self.device.autocast():
            encoded = [model.encoder(view) for view in batch.views]
            outputs = [model.head(one.features) for one in encoded]
            loss = objective(outputs, batch.labels, progress)
            if model.aux is not None:
                aux = model.aux(encoded[0].aux_map)
                loss = loss + self.schedule.aux_weight * objective([aux], batch.labels, progress)
            if self.mix is not None and self.ssl_head is not None:
                features = lambda images: model.encoder(images).features
                loss = loss + self.mix.loss(model.encoder, features, self.ssl_head, batch.beside, progress)
        if not objective.supervised:
            return loss, {}
        right = (outputs[0].detach().argmax(1) == batch.labels).float().mean().item()
        return loss, {"train_accuracy": 100 * right}

    def evaluated(self) -> dict[str, tuple[Split, np.ndarray]]:
        """What the end of an epoch evaluates: splits, and which rows of them."""
        if not self.settings.track_test or not self.objective.supervised:
            return {}
        splits = {name: self.data.split(name) for name in self.data.held_out}
        return {name: (split, np.arange(len(split))) for name, split in splits.items()}

    def end_epoch(self, epoch: int) -> dict[str, Any]:
        """Accuracy on the held-out splits, if asked."""
        return {f"accuracy_{name}": self.accuracy(split, rows) for name, (split, rows) in self.evaluated().items()}

    def accuracy(self, split: Split, rows: np.ndarray) -> float:
        """Top-1 in percent."""
        return accuracy(*predict(self.model, split, normaliser(self.data), self.device, rows))

    def tensors(self) -> dict[str, Tensor]:
        """Weights and buffers, and the optimizer's state."""
        named = module_tensors("model", self.model) | optimizer_tensors("optimizer", self.optimizer)
        return named if self.ssl_head is None else named | module_tensors("ssl_head", self.ssl_head)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what `tensors` gave."""
        load_module("model", self.model, tensors)
        if self.ssl_head is not None:
            load_module("ssl_head", self.ssl_head, tensors)
        load_optimizer("optimizer", self.optimizer, tensors)

    def publish(self, folder: Path) -> None:
        """Nothing: the model is written when training is done."""
