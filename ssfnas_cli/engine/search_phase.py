"""The bilevel search as the loop sees it: the strategy learns from the alpha half, then the weights take a step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from registry import LOSSES, SAMPLERS
from registry.losses import Objective
from registry.norm import held_statistics
from registry.samplers import Sampler
from registry.state import load_module, load_optimizer, module_tensors, optimizer_tensors
from registry.strategies.base import Mixing, WeightStep
from ssfnas_cli.artifacts.dataset import DataSet, Split
from ssfnas_cli.artifacts.run import ALPHAS
from ssfnas_cli.artifacts.tensors import save_tensors
from ssfnas_cli.data.batches import (
    Batch,
    BilevelBatches,
    Subset,
    TrainingBatches,
    load_from,
    normaliser,
    num_batches,
    stratified_halves,
    training_subset,
)
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.loop import cosine, set_lr
from ssfnas_cli.engine.network import head_builder
from ssfnas_cli.engine.predict import accuracy, predict
from ssfnas_cli.engine.strategy import build_strategy
from ssfnas_cli.nets.search_model import SearchModel
from ssfnas_cli.nets.supernet import Supernet
from ssfnas_cli.settings import PluginSection, SearchSettings, build_plugin


class SearchPhase:
    """A search.

    Args:
        settings: resolved.
        data: its `train` split is halved, class by class.
        device: where it runs.
        halves: weight and alpha rows of the training split; by default the stratified, seeded halves.
    """

    name = "search"

    def __init__(
        self,
        settings: SearchSettings,
        data: DataSet,
        device: Device,
        halves: tuple[np.ndarray, np.ndarray] | None = None,
    ):
        self.settings, self.data, self.device = settings, data, device
        self.epochs, self.seed = settings.epochs, settings.seed
        self.split = data.split("train")
        self.halves = halves or stratified_halves(self.split.labels, data.class_names, settings.seed)
        self.weight_loss = self._objective(settings.loss, self.halves[0])
        own = settings.alpha_loss.name != "none"
        self.alpha_loss = self._objective(settings.alpha_loss if own else settings.loss, self.halves[1])
        counts = self._counts(self.halves[0])
        self.sampler: Sampler = build_plugin(SAMPLERS, settings.sampler, class_counts=counts)
        self._build_model()
        self.strategy = build_strategy(settings, device.torch)
        self._build_optimizers()

    def _counts(self, half: np.ndarray) -> list[int]:
        return np.bincount(self.split.labels[half], minlength=self.data.num_classes).tolist()

    def _objective(self, section: PluginSection, half: np.ndarray) -> Objective:
        return build_plugin(LOSSES, section, num_classes=self.data.num_classes, class_counts=self._counts(half))

    def _build_model(self) -> None:
        settings, data = self.settings, self.data
        torch.manual_seed(settings.seed)
        encoder = Supernet(data.channels, settings.channels, settings.layers, settings.ops, settings.op_options)
        build_head = head_builder(settings.head, self.weight_loss)
        model = SearchModel(encoder, data.num_classes, self.weight_loss, self.alpha_loss, build_head)
        self.model = self.device.place(model)

    def _build_optimizers(self) -> None:
        settings = self.settings
        self.weights = self.model.weight_parameters()
        self.optimizer = torch.optim.SGD(
            self.weights, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
        self.optimizers: dict[str, torch.optim.Optimizer] = {"weights": self.optimizer}
        if self.model.probe is not None:
            self.optimizers["probe"] = torch.optim.Adam(self.model.probe.parameters(), lr=settings.probe_lr)

    # Batches

    def _epoch(self, epoch: int) -> BilevelBatches:
        alpha_views = self.alpha_loss.num_views
        # A head that only the alpha step's loss has is trained in the weight step, on that loss's views.
        weight_views = max(self.weight_loss.num_views, alpha_views if self.model.alpha_head is not None else 1)
        labels = self.split.labels[self.halves[0]]
        order = self.sampler.order(labels, self.seed, epoch, epoch / self.epochs)
        return BilevelBatches(
            TrainingBatches(self._subset(self.halves[0], weight_views), order, self.settings.batch_size, epoch),
            self._subset(self.halves[1], alpha_views),
            self.settings.batch_size,
        )

    def _subset(self, rows: np.ndarray, num_views: int) -> Subset:
        compiled = self.device.compiled_views
        return training_subset(self.data, self.split, rows, self.settings, num_views, compiled=compiled)

    def num_steps(self, epoch: int) -> int:
        return num_batches(self.sampler.length(epoch / self.epochs), self.settings.batch_size)

    def batches(self, epoch: int, start: int) -> Iterator[tuple[Batch, Batch]]:
        """Pairs of a weight-half batch and an alpha-half batch."""
        for train, val in load_from(self._epoch(epoch), start, self.settings.workers):
            yield self.device.move(train), self.device.move(val)

    # Steps

    def step(self, epoch: int, step: int, batch: tuple[Batch, Batch]) -> dict[str, float]:
        """The strategy's step, then the weight step (DARTS, Algorithm 1)."""
        train, val = batch
        progress = (epoch + step / self.num_steps(epoch)) / self.epochs
        set_lr(self.optimizer, cosine(self.settings.lr, self.settings.lr_min, progress))
        self.model.train()
        values = self.strategy.update(StepBench(self, train, val, epoch, progress))
        return values | self._weight_step(train, progress)

    def _weight_step(self, train: Batch, progress: float) -> dict[str, float]:
        with torch.no_grad():
            mixing = self.strategy.mixing(progress, step_generator())
        loss, features = self.weight_objective(train, mixing, progress)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, self.settings.clip)
        self.optimizer.step()
        values = {"weight_loss": loss.item(), "lr": self.optimizer.param_groups[0]["lr"]}
        if self.model.probe is not None:
            values["probe_loss"] = self._probe_step(features.detach(), train.labels)
        return values

    def _probe_step(self, features: Tensor, labels: Tensor) -> float:
        assert self.model.probe is not None
        loss = F.cross_entropy(self.model.probe(features), labels)
        self.optimizers["probe"].zero_grad(set_to_none=True)
        loss.backward()
        self.optimizers["probe"].step()
        return loss.item()

    # Objectives

    def weight_objective(self, batch: Batch, mixing: Mixing, progress: float) -> tuple[Tensor, Tensor]:
        """L_train and the first view's features. The views go through the encoder one after the other."""
        model = self.model
        with self.device.autocast():
            features = [model.encoder(view, mixing) for view in batch.views]
            outputs = [model.head(feature) for feature in features[: self.weight_loss.num_views]]
            loss = self.weight_loss(outputs, batch.labels, progress)
            if model.alpha_head is not None:
                apart = [model.alpha_head(feature.detach()) for feature in features[: self.alpha_loss.num_views]]
                loss = loss + self.alpha_loss(apart, batch.labels, progress)
        return loss, features[0].float()

    def alpha_objective(self, batch: Batch, mixing: Mixing, progress: float) -> Tensor:
        """L_val, the loss of the architecture's step."""
        head = self.model.head if self.model.alpha_head is None else self.model.alpha_head
        with self.device.autocast():
            outputs = [head(self.model.encoder(view, mixing)) for view in batch.views]
        return self.alpha_loss(outputs, batch.labels, progress)

    # Epochs

    def end_epoch(self, epoch: int) -> dict[str, Any]:
        """Record the architecture; evaluate the supernet on the alpha half, and on the held-out splits if asked."""
        facts = self.strategy.end_epoch()
        name = "accuracy" if self.model.probe is None else "probe_accuracy"
        mixing = self.strategy.mixing((epoch + 1) / self.epochs)
        measured = {
            f"{name}_{place}": self.accuracy(split, rows, mixing) for place, (split, rows) in self.evaluated().items()
        }
        return measured | facts

    def evaluated(self) -> dict[str, tuple[Split, np.ndarray]]:
        """What the end of an epoch evaluates: splits, and which rows of them."""
        # `val` belongs to the retraining: the search has the alpha half.
        names = [name for name in self.data.held_out if name != "val"] if self.settings.track_test else []
        held_out = {name: self.data.split(name) for name in names}
        whole = {name: (split, np.arange(len(split))) for name, split in held_out.items()}
        return {"alpha_half": (self.split, self.halves[1]), **whole}

    def accuracy(self, split: Split, rows: np.ndarray, mixing: Mixing) -> float:
        """Top-1 of the head, or of the linear probe (which uses labels), in percent."""
        score = lambda images: self.model.classifier()(self.model.encoder(images, mixing))
        return accuracy(*predict(self.model, split, normaliser(self.data), self.device, rows, score))

    # State

    def tensors(self) -> dict[str, Tensor]:
        """Weights and buffers, the strategy's tensors, the optimizers' states."""
        named = module_tensors("model", self.model) | self.strategy.tensors()
        for name, optimizer in self.optimizers.items():
            named |= optimizer_tensors(f"optimizer.{name}", optimizer)
        return named

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what `tensors` gave."""
        load_module("model", self.model, tensors)
        self.strategy.load(tensors)
        for name, optimizer in self.optimizers.items():
            load_optimizer(f"optimizer.{name}", optimizer, tensors)

    def publish(self, folder: Path) -> None:
        """Write the record of every epoch."""
        save_tensors(folder / ALPHAS, self.strategy.record())


@dataclass
class StepBench:
    """The supernet at one step of a search: what a strategy sees of it (`registry.strategies.base.Bench`)."""

    phase: SearchPhase
    train: Batch
    val: Batch
    epoch: int
    progress: float

    @property
    def weights(self) -> list[nn.Parameter]:
        """The lower level's parameters."""
        return self.phase.weights

    def generator(self) -> torch.Generator:
        """This step's random numbers from their beginning."""
        return step_generator()

    def train_loss(self, mixing: Mixing) -> Tensor:
        """The weights' loss on this step's batch of the weight half."""
        return self.phase.weight_objective(self.train, mixing, self.progress)[0]

    def val_loss(self, mixing: Mixing) -> Tensor:
        """The architecture's loss on this step's batch of the alpha half."""
        return self.phase.alpha_objective(self.val, mixing, self.progress)

    def accuracy(self, mixing: Mixing) -> float:
        """Top-1 in percent over the alpha half; the model is back in training mode afterwards."""
        value = self.phase.accuracy(self.phase.split, self.phase.halves[1], mixing)
        self.phase.model.train()
        return value

    def weight_step(self) -> WeightStep:
        """The SGD step that follows."""
        settings, optimizer = self.phase.settings, self.phase.optimizer
        momenta = [optimizer.state.get(weight, {}).get("momentum_buffer") for weight in self.weights]
        lr = optimizer.param_groups[0]["lr"]
        return WeightStep(lr, settings.momentum, settings.weight_decay, settings.clip, momenta)

    def held_statistics(self) -> contextlib.AbstractContextManager[None]:
        """Within: running statistics stay as they are."""
        return held_statistics(self.phase.model)


def step_generator() -> torch.Generator:
    """Random numbers that follow from the seed of the step, the same at every call within it."""
    return torch.Generator().manual_seed(torch.initial_seed() % 2**63)
