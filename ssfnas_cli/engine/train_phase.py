"""The phase of a self-supervised pretraining or of a supervised training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from registry import SAMPLERS, collective
from registry.gpu import reported
from registry.losses import Objective
from registry.networks import Encoder
from registry.norm import average_running_statistics
from registry.samplers import Sampler
from registry.state import load_module, load_optimizer, module_tensors, optimizer_tensors
from registry.trials import order_of
from ssfnas_cli.artifacts.dataset import DataSet, Split
from ssfnas_cli.data.batches import (
    Batch,
    TrainingBatches,
    load_batches,
    normaliser,
    num_batches,
    stream_seed,
    training_subset,
)
from ssfnas_cli.data.holdout import rest_counts, split_holdout
from ssfnas_cli.data.mixing import Mixing
from ssfnas_cli.data.policies import Policy, build_policy
from ssfnas_cli.engine.averaging import MovingAverage
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.loop import set_lr
from ssfnas_cli.engine.mix import Mix
from ssfnas_cli.engine.predict import Scores, accuracy, predict
from ssfnas_cli.engine.ranks import check_shares, sampled_lengths
from ssfnas_cli.engine.sgd import build_optimizer, learning_rate
from ssfnas_cli.engine.tracking import Tracking
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

    `regularised` says whether the encoder is told its progress, on which the probability of drop path depends. `ema` is
    the decay of a moving average of the weights, or None.
    """

    name: str
    epochs: int
    lr: float
    regularised: bool = False
    cutout: float = 0.0
    aux_weight: float = 0.0
    warmup_epochs: int = 0
    policy: Policy | None = None
    mixing: Mixing | None = None
    ema: float | None = None
    optimizer: str = "sgd"

    @classmethod
    def of_training(cls, settings: RetrainSettings, image_size: int) -> Schedule:
        """The schedule of a supervised training."""
        mixup, cutmix = (None if alpha == "none" else alpha for alpha in (settings.mixup, settings.cutmix))
        return cls(
            "train",
            settings.epochs,
            settings.lr,
            regularised=True,
            cutout=settings.cutout,
            aux_weight=settings.aux_weight,
            warmup_epochs=settings.lr_warmup_epochs,
            policy=build_policy(settings, image_size),
            mixing=Mixing(mixup, cutmix, stream_seed(settings.seed, "train mixing")) if settings.mixes else None,
            ema=None if settings.ema == "none" else settings.ema,
        )


def mixed_loss(objective: Objective, outputs: Sequence[Tensor], batch: Batch, progress: float) -> Tensor:
    """The loss of a batch; of mixed images it is lam * loss(y_a) + (1 - lam) * loss(y_b), lam the first ones' share."""
    loss = objective(outputs, batch.labels, progress)
    if batch.mixed is None:
        return loss
    share = batch.mixed.share
    return share * loss + (1 - share) * objective(outputs, batch.mixed.labels, progress)


def _share_of(right: Tensor) -> Any:
    """The share of images that are classified rightly, as a step reports it."""
    return reported(right.float().mean().double())


class TrainPhase:
    """Trains `model.encoder`, `model.head` and `model.aux` (if it exists) on the training split.

    A self-supervised loss beside the supervised one has a separate head, `ssl_head`, which is part of the checkpoints
    but not of the trained model. A self-supervised phase visits each image once per epoch, because a sampler would use
    labels. No phase sees the share of the split that `holdout` sets aside.

    With a moving average of the weights, that one is evaluated and kept, and the model trains on.
    """

    is_spread = False

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
        self.advice = device.advice()
        self.name, self.epochs, self.seed = schedule.name, schedule.epochs, settings.seed
        self.objective, self.mix = objective, mix
        self.split = data.split("train")
        self.rows, _ = split_holdout(self.split.labels, data.num_classes, settings.holdout, settings.seed)
        section = settings.sampler if objective.supervised else INSTANCE
        counts = rest_counts(data.counts("train"), settings.holdout)
        self.sampler: Sampler = build_plugin(SAMPLERS, section, class_counts=counts)
        check_shares(settings, "the training split", sampled_lengths(self.sampler, self.epochs))
        self.model = device.place(model)
        device.compile(model.encoder)
        self.ssl_head = None
        if mix is not None:
            self.ssl_head = mix.objective.build_head(model.encoder.num_features).to(device.torch)
        parts = [part for part in (model, self.ssl_head) if part is not None]
        self.weights = [weight for part in parts for weight in part.parameters()]
        self.optimizer = build_optimizer(self.weights, schedule.lr, settings, schedule.optimizer)
        self.gradient_sums = collective.GradientSums(self.weights)
        self.average = None if schedule.ema is None else MovingAverage(model, schedule.ema)

    def _epoch(self, epoch: int) -> TrainingBatches:
        compiled = self.device.compiled_views
        make = partial(training_subset, self.data, self.split, self.rows, self.settings, compiled=compiled)
        beside = (
            None if self.mix is None else make(stream=f"{self.name} beside", num_views=self.mix.objective.num_views)
        )
        schedule = self.schedule
        subset = make(
            stream=self.name,
            num_views=self.objective.num_views,
            cutout=schedule.cutout,
            beside=beside,
            policy=schedule.policy,
        )
        order = order_of(self.sampler, self.split.labels[self.rows], subset.seed, epoch, epoch / self.epochs)
        return TrainingBatches(subset, order, self.settings.batch_size, epoch, schedule.mixing)

    def num_steps(self, epoch: int) -> int:
        return num_batches(self.sampler.length(epoch / self.epochs), self.settings.batch_size)

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """Yield the batches of the epoch from `start` on."""
        for batch in load_batches(self._epoch(epoch), start, self.settings.workers, self.settings.time_limit):
            yield self.device.move(batch)

    def step(self, epoch: int, step: int, batch: Batch) -> dict[str, float]:
        """Take one SGD step. The learning rate changes with every step, the encoder's progress with every epoch."""
        schedule, num_steps = self.schedule, self.num_steps(epoch)
        progress = (epoch + step / num_steps) / self.epochs
        lr = learning_rate(
            schedule.lr, self.settings.lr_min, epoch, step, num_steps, self.epochs, schedule.warmup_epochs
        )
        set_lr(self.optimizer, lr)
        if not self.model.training:
            self.model.train()
        self.model.encoder.set_progress(epoch / self.epochs if schedule.regularised else 0.0)
        with collective.sharing(batch.share):
            loss, train_accuracy = self._loss(batch, progress)
        self.optimizer.zero_grad(set_to_none=True)
        with self.gradient_sums:
            loss.backward()
        nn.utils.clip_grad_norm_(self.weights, self.settings.clip)
        self.optimizer.step()
        for part in (self.model, self.ssl_head):
            if part is not None:
                average_running_statistics(part, batch.share)
        if self.average is not None:
            self.average.update(self.model)
        return {"loss": reported(loss), "lr": lr} | train_accuracy

    def _loss(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, float]]:
        """The loss, including the auxiliary head's, and the accuracy on the batch if the objective is supervised.

        Both are those of the global batch. The accuracy on mixed images counts both labels by their shares.
        """
        model = self.model
        with self.device.autocast():
            encoded = [model.encoder(view) for view in batch.views]
            outputs = [model.head(view.features) for view in encoded]
            loss = mixed_loss(self.objective, outputs, batch, progress)
            if model.aux is not None:
                aux = model.aux(encoded[0].aux_map)
                loss = loss + self.schedule.aux_weight * mixed_loss(self.objective, [aux], batch, progress)
            if self.mix is not None and self.ssl_head is not None:
                features = lambda images: model.encoder(images).features
                loss = loss + self.mix.loss(model.encoder, features, self.ssl_head, batch.beside, progress)
        loss = collective.global_loss(loss, batch.share)
        if not self.objective.supervised:
            return loss, {}
        predicted = outputs[0].detach().argmax(1)
        correct = _share_of(predicted == batch.labels)
        if batch.mixed is not None:
            share = batch.mixed.share
            correct = share * correct + (1 - share) * _share_of(predicted == batch.mixed.labels)
        return loss, {"train_accuracy": 100 * collective.global_mean(correct, batch.share)}

    @cached_property
    def tracking(self) -> Tracking:
        """The held-out splits whose accuracy is tracked, in a supervised phase."""
        names = self.data.held_out if self.objective.supervised else []
        views = self.objective.num_views + (0 if self.mix is None else self.mix.objective.num_views)
        return Tracking(self.settings, self.data, names, self.epochs, views * self.sampler.length(0.0))

    def evaluation_rows(self, epoch: int) -> dict[str, tuple[Split, np.ndarray]]:
        """The splits, and the rows of them, that the network is run on at the end of an epoch."""
        return self.tracking.rows(epoch)

    def end_epoch(self, epoch: int) -> dict[str, Any]:
        """Compute the accuracy on the held-out splits, if configured."""
        return {f"accuracy_{name}": value for name, value in self.tracking.accuracies(epoch, self.scores).items()}

    def accuracy(self, split: Split, rows: np.ndarray) -> float:
        """Top-1 accuracy in percent, of the moving average if there is one."""
        return accuracy(*self.scores(split, rows))

    def scores(self, split: Split, rows: np.ndarray | None = None) -> Scores:
        """Class scores and labels of a split, or of some rows of it; of the moving average if there is one."""
        with contextlib.nullcontext() if self.average is None else self.average.applied(self.model):
            return predict(self.model, split, normaliser(self.data), self.device, rows)

    def trained(self) -> dict[str, Tensor]:
        """The weights and buffers to keep of the model: the moving average's if there is one, else its own."""
        return self.model.state_dict() if self.average is None else self.average.values

    def tensors(self) -> dict[str, Tensor]:
        """The weights and buffers, the state of the optimizer, and the moving average."""
        named = module_tensors("model", self.model) | optimizer_tensors("optimizer", self.optimizer)
        if self.average is not None:
            named |= self.average.tensors()
        return named if self.ssl_head is None else named | module_tensors("ssl_head", self.ssl_head)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state that `tensors` returned."""
        load_module("model", self.model, tensors)
        if self.ssl_head is not None:
            load_module("ssl_head", self.ssl_head, tensors)
        if self.average is not None:
            self.average.load(tensors)
        load_optimizer("optimizer", self.optimizer, tensors)

    def publish(self, folder: Path) -> None:
        """Write nothing: the model is written at the end of the training."""
