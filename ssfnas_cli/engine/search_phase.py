"""The bilevel search as the loop sees it: an alpha step on the alpha half, a weight step on the weight half."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from registry import LOSSES, RELAXATIONS
from registry.losses import Objective
from registry.norm import held_statistics
from registry.relaxations import Relaxation
from registry.space import CELL_TYPES, edge_list
from ssfnas_cli.artifacts.dataset import DataSet, Split
from ssfnas_cli.data.batches import (
    Batch,
    BilevelBatches,
    Subset,
    load_from,
    normaliser,
    num_batches,
    plain_batches,
    stratified_halves,
    training_subset,
)
from ssfnas_cli.engine import bilevel
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.loop import cosine, load_module, load_optimizer, module_tensors, optimizer_tensors, set_lr
from ssfnas_cli.nets.search_model import SearchModel
from ssfnas_cli.nets.supernet import Supernet
from ssfnas_cli.settings import PluginSection, SearchSettings


class SearchPhase:
    """A search.

    Args:
        settings: resolved.
        data: its `train` split is halved, class by class.
        device: where it runs.
        publish_alphas: called with every epoch's alphas, {cell type: [epochs + 1, edges, ops]}.
        halves: weight and alpha rows of the training split; by default the stratified, seeded halves.
    """

    name = "search"

    def __init__(
        self,
        settings: SearchSettings,
        data: DataSet,
        device: Device,
        publish_alphas: Callable[[dict[str, Tensor]], None],
        halves: tuple[np.ndarray, np.ndarray] | None = None,
    ):
        self.settings, self.data, self.device, self.publish_alphas = settings, data, device, publish_alphas
        self.epochs, self.seed = settings.epochs, settings.seed
        self.split = data.split("train")
        self.halves = halves or stratified_halves(self.split.labels, data.class_names, settings.seed)
        self.relaxation: Relaxation = build_plugin(RELAXATIONS, settings.relax)
        self.weight_loss = self._objective(settings.loss, self.halves[0])
        own = settings.alpha_loss.name != "none"
        self.alpha_loss = self._objective(settings.alpha_loss if own else settings.loss, self.halves[1])
        self._build_model()
        self._build_optimizers()

    def _objective(self, section: PluginSection, half: np.ndarray) -> Objective:
        counts = np.bincount(self.split.labels[half], minlength=self.data.num_classes)
        return build_plugin(LOSSES, section, num_classes=self.data.num_classes, class_counts=counts.tolist())

    def _build_model(self) -> None:
        settings, data = self.settings, self.data
        torch.manual_seed(settings.seed)
        encoder = Supernet(data.channels, settings.channels, settings.layers, settings.ops, settings.op_options)
        model = SearchModel(encoder, data.num_classes, self.weight_loss, self.alpha_loss)
        self.model = self.device.place(model)
        generator = torch.Generator().manual_seed(settings.seed)
        shape = (len(edge_list()), len(settings.ops))
        self.alphas = {
            kind: self.relaxation.initial_alphas(*shape, generator).to(self.device.torch).requires_grad_()
            for kind in CELL_TYPES
        }
        self.history = {kind: alphas.detach().cpu().clone()[None] for kind, alphas in self.alphas.items()}

    def _build_optimizers(self) -> None:
        settings, relaxation = self.settings, self.relaxation
        self.weights = self.model.weight_parameters()
        self.optimizer = torch.optim.SGD(
            self.weights, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
        self.alpha_optimizer = torch.optim.Adam(
            list(self.alphas.values()),
            lr=relaxation.lr if settings.alpha_lr == "auto" else settings.alpha_lr,
            betas=relaxation.betas if settings.alpha_betas == "auto" else settings.alpha_betas,
            weight_decay=(
                relaxation.weight_decay if settings.alpha_weight_decay == "auto" else settings.alpha_weight_decay
            ),
        )
        self.optimizers = {"weights": self.optimizer, "alphas": self.alpha_optimizer}
        if self.model.probe is not None:
            self.optimizers["probe"] = torch.optim.Adam(self.model.probe.parameters(), lr=settings.probe_lr)

    # Batches

    def _epoch(self, epoch: int) -> BilevelBatches:
        alpha_views = self.alpha_loss.num_views
        # A head that only the alpha step's loss has is trained in the weight step, on that loss's views.
        weight_views = max(self.weight_loss.num_views, alpha_views if self.model.alpha_head is not None else 1)
        return BilevelBatches(
            self._subset(self.halves[0], weight_views),
            self._subset(self.halves[1], alpha_views),
            self.settings.batch_size,
            epoch,
        )

    def _subset(self, rows: np.ndarray, num_views: int) -> Subset:
        compiled = self.device.compiled_views
        return training_subset(self.data, self.split, rows, self.settings, num_views, compiled=compiled)

    def num_steps(self, epoch: int) -> int:
        return num_batches(len(self.halves[0]), self.settings.batch_size)

    def batches(self, epoch: int, start: int) -> Iterator[tuple[Batch, Batch]]:
        """Pairs of a weight-half batch and an alpha-half batch."""
        for train, val in load_from(self._epoch(epoch), start, self.settings.workers):
            yield self.device.move(train), self.device.move(val)

    # Steps

    def step(self, epoch: int, step: int, batch: tuple[Batch, Batch]) -> dict[str, float]:
        """The alpha step, then the weight step (DARTS, Algorithm 1)."""
        train, val = batch
        progress = (epoch + step / self.num_steps(epoch)) / self.epochs
        set_lr(self.optimizer, cosine(self.settings.lr, self.settings.lr_min, progress))
        self.model.train()
        values: dict[str, float] = {}
        if epoch >= self.settings.warmup_epochs:
            values |= self._alpha_step(train, val, progress)
        return values | self._weight_step(train, progress)

    def _alpha_step(self, train: Batch, val: Batch, progress: float) -> dict[str, float]:
        alphas = list(self.alphas.values())
        val_loss = lambda: self._alpha_objective(val, progress)
        with held_statistics(self.model):
            if self.settings.order == 1:
                with _frozen(self.weights):  # their gradients are not even computed
                    gradients, loss = bilevel.first_order(val_loss, alphas)
            else:
                momenta = [self.optimizer.state.get(w, {}).get("momentum_buffer") for w in self.weights]
                gradients, loss = bilevel.second_order(
                    lambda: self._weight_objective(train, progress)[0],
                    val_loss,
                    self.weights,
                    alphas,
                    momenta,
                    lr=self.optimizer.param_groups[0]["lr"],
                    momentum=self.settings.momentum,
                    weight_decay=self.settings.weight_decay,
                )
        regulariser = self.relaxation.regulariser(self.alphas, progress)
        if regulariser.requires_grad:
            pushes = torch.autograd.grad(regulariser, alphas)
            gradients = [gradient + push for gradient, push in zip(gradients, pushes, strict=True)]
        for values, gradient in zip(alphas, gradients, strict=True):
            values.grad = gradient
        self.alpha_optimizer.step()
        self._check_alphas()
        return {"alpha_loss": loss, "regulariser": regulariser.item()}

    def _check_alphas(self) -> None:
        for kind, values in self.alphas.items():
            if not bool(torch.isfinite(values).all()):
                raise FloatingPointError(f"an alpha of the {kind} cell is no longer finite")

    def _weight_step(self, train: Batch, progress: float) -> dict[str, float]:
        loss, features = self._weight_objective(train, progress, detach_alphas=True)
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

    def _mixing(self, progress: float, detach: bool = False, sampled: bool = True) -> dict[str, Tensor]:
        """Mixing weights of both cell types; a sampled relaxation draws the same ones throughout a step."""
        generator = torch.Generator().manual_seed(torch.initial_seed() % 2**63) if sampled else None
        return {
            kind: self.relaxation.weights(alphas.detach() if detach else alphas, progress, generator)
            for kind, alphas in self.alphas.items()
        }

    def _weight_objective(self, batch: Batch, progress: float, detach_alphas: bool = False) -> tuple[Tensor, Tensor]:
        """L_train and the first view's features. The views go through the encoder one after the other."""
        mixing = self._mixing(progress, detach_alphas)
        model = self.model
        with self.device.autocast():
            features = [model.encoder(view, mixing) for view in batch.views]
            outputs = [model.head(feature) for feature in features[: self.weight_loss.num_views]]
            loss = _loss(self.weight_loss, outputs, batch.labels)
            if model.alpha_head is not None:
                apart = [model.alpha_head(feature.detach()) for feature in features[: self.alpha_loss.num_views]]
                loss = loss + _loss(self.alpha_loss, apart, batch.labels)
        return loss, features[0].float()

    def _alpha_objective(self, batch: Batch, progress: float) -> Tensor:
        """L_val, by the alpha step's loss."""
        mixing = self._mixing(progress)
        head = self.model.head if self.model.alpha_head is None else self.model.alpha_head
        with self.device.autocast():
            outputs = [head(self.model.encoder(view, mixing)) for view in batch.views]
        return _loss(self.alpha_loss, outputs, batch.labels)

    # Epochs

    def end_epoch(self, epoch: int) -> dict[str, Any]:
        """Record the alphas; judge the supernet on the alpha half, and on the test splits where asked."""
        for kind, alphas in self.alphas.items():
            self.history[kind] = torch.cat([self.history[kind], alphas.detach().cpu()[None]])
        name = "accuracy" if self.model.probe is None else "probe_accuracy"
        progress = (epoch + 1) / self.epochs
        facts = {
            f"{name}_{place}": self.accuracy(split, rows, progress) for place, (split, rows) in self.judged().items()
        }
        facts["alpha_lr"] = self.alpha_optimizer.param_groups[0]["lr"]
        return facts

    def judged(self) -> dict[str, tuple[Split, np.ndarray]]:
        """What the end of an epoch evaluates: splits, and the rows of them."""
        names = ("test", "test_longtail") if self.settings.track_test else ()
        held_out = {name: self.data.split(name) for name in names}
        whole = {name: (split, np.arange(len(split))) for name, split in held_out.items()}
        return {"alpha_half": (self.split, self.halves[1]), **whole}

    @torch.no_grad()
    def accuracy(self, split: Split, rows: np.ndarray, progress: float) -> float:
        """Top-1 of the head, or of the linear probe (which uses labels), in percent, running statistics."""
        self.model.eval()
        mixing = self._mixing(progress, sampled=False)
        right = 0
        for batch in plain_batches(split, rows, 256, normaliser(self.data)):
            batch = self.device.move(batch)
            with self.device.autocast():
                scores = self.model.classifier()(self.model.encoder(batch.views[0], mixing))
            right += int((scores.argmax(1) == batch.labels).sum())
        return 100 * right / len(rows)

    # State

    def tensors(self) -> dict[str, Tensor]:
        """Weights and buffers, alphas and their history, the optimizers' states."""
        named = module_tensors("model", self.model)
        for kind in CELL_TYPES:
            named[f"alphas.{kind}"] = self.alphas[kind]
            named[f"history.{kind}"] = self.history[kind]
        for name, optimizer in self.optimizers.items():
            named |= optimizer_tensors(f"optimizer.{name}", optimizer)
        return named

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        load_module("model", self.model, tensors)
        for kind in CELL_TYPES:
            self.alphas[kind].data.copy_(tensors[f"alphas.{kind}"])
            self.history[kind] = tensors[f"history.{kind}"].clone()
        for name, optimizer in self.optimizers.items():
            load_optimizer(f"optimizer.{name}", optimizer, tensors)

    def publish(self) -> None:
        """Write every epoch's alphas."""
        self.publish_alphas(self.history)


def build_plugin(registry: Any, section: PluginSection, **context: Any) -> Any:
    """A plugin's object from its section of the settings."""
    plugin = registry.get(section.name)
    return plugin.factory(plugin.parse_options(section.options()), **context)


@contextlib.contextmanager
def _frozen(weights: list[nn.Parameter]) -> Iterator[None]:
    """Within: autograd sees constants."""
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def _loss(objective: Objective, outputs: list[Tensor], labels: Tensor) -> Tensor:
    """The loss in float32; a self-supervised objective never sees the labels."""
    seen = labels if objective.num_views == 1 else None
    return objective.loss([output.float() for output in outputs], seen)
