"""Training a derived network: a self-supervised pretraining or a supervised (fine-)training, as the loop sees it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from registry.losses import Objective
from ssfnas_cli.artifacts.dataset import DataSet
from ssfnas_cli.data.batches import (
    Batch,
    TrainingBatches,
    load_from,
    normaliser,
    num_batches,
    plain_batches,
    training_subset,
)
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.loop import cosine, load_module, load_optimizer, module_tensors, optimizer_tensors, set_lr
from ssfnas_cli.nets.derived import DerivedEncoder
from ssfnas_cli.nets.heads import Classifier
from ssfnas_cli.settings import RetrainSettings


class Pretrained(nn.Module):
    """An encoder with a self-supervised objective's head."""

    def __init__(self, encoder: DerivedEncoder, head: nn.Module):
        super().__init__()
        self.encoder, self.head = encoder, head


@dataclass(frozen=True)
class Schedule:
    """What differs between pretraining and training."""

    name: str
    epochs: int
    lr: float
    drop_path: float = 0.0
    cutout: float = 0.0
    aux_weight: float = 0.0


class TrainPhase:
    """Trains `model.encoder` and `model.head` (and `model.aux`) on all of the training split."""

    def __init__(
        self,
        schedule: Schedule,
        settings: RetrainSettings,
        data: DataSet,
        device: Device,
        model: Classifier | Pretrained,
        objective: Objective,
    ):
        self.schedule, self.settings, self.data, self.device = schedule, settings, data, device
        self.name, self.epochs, self.seed = schedule.name, schedule.epochs, settings.seed
        self.objective = objective
        self.split = data.split("train")
        self.model = device.place(model)
        self.optimizer = torch.optim.SGD(
            model.parameters(), schedule.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )

    def _epoch(self, epoch: int) -> TrainingBatches:
        rows = np.arange(len(self.split))
        subset = training_subset(
            self.data,
            self.split,
            rows,
            self.settings,
            self.objective.num_views,
            self.schedule.cutout,
            self.device.compiled_views,
        )
        return TrainingBatches(subset, self.settings.batch_size, epoch)

    def num_steps(self, epoch: int) -> int:
        return num_batches(len(self.split), self.settings.batch_size)

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """The epoch's batches from `start` on."""
        for batch in load_from(self._epoch(epoch), start, self.settings.workers):
            yield self.device.move(batch)

    def step(self, epoch: int, step: int, batch: Batch) -> dict[str, float]:
        """One SGD step; the rate falls along a cosine, drop path rises in a straight line from epoch to epoch."""
        progress = (epoch + step / self.num_steps(epoch)) / self.epochs
        lr = cosine(self.schedule.lr, self.settings.lr_min, progress)
        set_lr(self.optimizer, lr)
        self.model.train()
        self.model.encoder.drop_path = self.schedule.drop_path * epoch / self.epochs
        loss, right = self._loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizer.step()
        return {"loss": loss.item(), "lr": lr} | right

    def _loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The objective, plus the auxiliary head's share; and the batch's training accuracy where supervised."""
        objective, model = self.objective, self.model
        with self.device.autocast():
            encoded = [model.encoder(view) for view in batch.views]
            outputs = [model.head(one.features).float() for one in encoded]
            if objective.num_views > 1:
                return objective.loss(outputs, None), {}
            loss = objective.loss(outputs, batch.labels)
            if isinstance(model, Classifier) and model.aux is not None:
                aux = model.aux(encoded[0].aux_map).float()
                loss = loss + self.schedule.aux_weight * objective.loss([aux], batch.labels)
        right = (outputs[0].detach().argmax(1) == batch.labels).float().mean().item()
        return loss, {"train_accuracy": 100 * right}

    def end_epoch(self, epoch: int) -> dict[str, Any]:
        """Accuracy on the held-out splits, where asked."""
        if not self.settings.track_test or not isinstance(self.model, Classifier):
            return {}
        splits = [name for name in ("val", "test", "test_longtail") if name in self.data.splits]
        return {f"accuracy_{name}": self.accuracy(name) for name in splits}

    def accuracy(self, split: str) -> float:
        """Top-1 in percent."""
        scores, labels = predict(self.model, self.data, split, self.device)
        return 100 * float((scores.argmax(1) == labels).mean())

    def tensors(self) -> dict[str, Tensor]:
        """Weights and buffers, and the optimizer's state."""
        return module_tensors("model", self.model) | optimizer_tensors("optimizer", self.optimizer)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        load_module("model", self.model, tensors)
        load_optimizer("optimizer", self.optimizer, tensors)

    def publish(self) -> None:
        """Nothing: the model is written when training is done."""


@torch.no_grad()
def predict(
    model: nn.Module, data: DataSet, split_name: str, device: Device, batch_size: int = 256
) -> tuple[np.ndarray, np.ndarray]:
    """Class scores [N, num_classes] (logits) and labels [N] of a whole split, in order."""
    model.eval()
    split = data.split(split_name)
    scores, labels = [], []
    for batch in plain_batches(split, np.arange(len(split)), batch_size, normaliser(data)):
        batch = device.move(batch)
        with device.autocast():
            scores.append(model(batch.views[0]).float().cpu().numpy())
        labels.append(batch.labels.cpu().numpy())
    return np.concatenate(scores), np.concatenate(labels)
