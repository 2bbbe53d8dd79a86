"""The phase of a search. In each step the strategy updates the architecture, and then the weights take a step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from registry import LOSSES, SAMPLERS, collective
from registry.cost import SearchCost
from registry.gpu import reported
from registry.losses import Objective
from registry.norm import average_running_statistics, estimated_statistics, held_statistics
from registry.optimizers import SGD, Adam, Optimizer
from registry.samplers import Instance, Sampler
from registry.state import load_module, load_optimizer, module_tensors, optimizer_tensors
from registry.strategies.base import Mixing, Stage
from registry.trials import order_of
from ssfnas_cli.artifacts.dataset import DataSet, Split
from ssfnas_cli.artifacts.run import ALPHAS
from ssfnas_cli.artifacts.tensors import save_tensors
from ssfnas_cli.console import log
from ssfnas_cli.data.batches import (
    Batch,
    BilevelBatches,
    SearchBatch,
    Subset,
    TrainingBatches,
    cut_batches,
    load_batches,
    normaliser,
    num_batches,
    plain_batches,
    stratified_halves,
    training_subset,
)
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.loop import cosine, set_lr
from ssfnas_cli.engine.mix import Mix, build_mix
from ssfnas_cli.engine.predict import Scores, accuracy, predict
from ssfnas_cli.engine.probe import train_probe
from ssfnas_cli.engine.ranks import check_shares, sampled_lengths
from ssfnas_cli.engine.search_health import epoch_health, newest_genotype, pruned_mixing
from ssfnas_cli.engine.search_network import build_search_model
from ssfnas_cli.engine.search_step import CurrentStep, step_generator
from ssfnas_cli.engine.strategy import build_strategy
from ssfnas_cli.engine.tracking import Tracking
from ssfnas_cli.settings import PluginSection, SearchSettings, build_plugin


class SearchPhase:
    """Trains a supernet and lets a strategy search it.

    Args:
        settings: resolved settings.
        data: the data set, whose `train` split is divided into two halves, class by class.
        device: where to compute.
        halves: the rows of the training split for the weights and for the alphas; by default stratified halves that
            depend on the seed.
        cost: the cost that the strategy minds, or None.
    """

    name = "search"
    is_spread = False

    def __init__(
        self,
        settings: SearchSettings,
        data: DataSet,
        device: Device,
        halves: tuple[np.ndarray, np.ndarray] | None = None,
        cost: SearchCost | None = None,
    ):
        self.settings, self.data, self.device, self.cost = settings, data, device, cost
        self.advice = device.advice()
        self.epochs, self.seed = settings.epochs, settings.seed
        self.split = data.split("train")
        self.halves = halves or stratified_halves(self.split.labels, data.class_names, settings.seed)
        self.weight_loss = self._objective(settings.loss, self.halves[0])
        own = settings.alpha_loss.name != "none"
        self.alpha_loss = self._objective(settings.alpha_loss if own else settings.loss, self.halves[1])
        self.mix = build_mix(settings, self.weight_loss, "--loss", self._counts(self.halves[0]))
        self.alpha_mix = None if own else self.mix
        self.sampler, self.alpha_sampler = (
            self._sampler(section, half)
            for section, half in zip((settings.sampler, settings.alpha_sampler), self.halves, strict=True)
        )
        self._check_shares()
        self._build_model(settings.seed, settings.layers)
        self.strategy = build_strategy(settings, device.torch, cost)
        self.device.compile(self.model.encoder, self.strategy.ops_change)
        self._build_optimizers()

    def _counts(self, half: np.ndarray) -> list[int]:
        return np.bincount(self.split.labels[half], minlength=self.data.num_classes).tolist()

    def _sampler(self, section: PluginSection, half: np.ndarray) -> Sampler:
        return build_plugin(SAMPLERS, section, class_counts=self._counts(half))

    def _check_shares(self) -> None:
        weight_half, alpha_half = self.halves
        lengths = {len(weight_half)} | sampled_lengths(self.sampler, self.epochs)
        check_shares(self.settings, "the weight half", lengths)
        alpha_batch = min(self.settings.batch_size, len(alpha_half))
        check_shares(self.settings, "the alpha half", [alpha_batch])

    def _objective(self, section: PluginSection, half: np.ndarray) -> Objective:
        return build_plugin(LOSSES, section, num_classes=self.data.num_classes, class_counts=self._counts(half))

    def _enter_stage(self, number: int) -> None:
        """Go on to another stage, if this is one: its supernet begins anew."""
        if number != self.strategy.stage:
            self.strategy.begin_stage(number)
            self.begin_anew(number)
            log.info("stage %d of %d: a new supernet of %d cells", number + 1, len(self.strategy.stages()), self.layers)

    @property
    def layers(self) -> int:
        """The number of cells."""
        return self.settings.layers + self.strategy.stages()[self.strategy.stage].more_layers

    def begin_anew(self, number: int) -> None:
        """Draw all weights anew, by the seed and a number, and forget the state of their optimizers."""
        seeds = np.random.SeedSequence([self.settings.seed, number]).generate_state(1, np.uint64)
        with torch.random.fork_rng(devices=[]):
            self._build_model(int(seeds[0] >> np.uint64(1)), self.layers)
        self.device.compile(self.model.encoder, self.strategy.ops_change)
        self._build_optimizers()

    def _build_model(self, seed: int, layers: int) -> None:
        torch.manual_seed(seed)
        model = build_search_model(self.settings, self.data, layers, self.weight_loss, self.alpha_loss, self.mix)
        self.model = self.device.place(model)
        kept: dict[str, list[nn.Module]] = {"head": [model.encoder], "none": [model]}  # of another search
        self.frozen = kept.get(self.settings.adapt, []) if self.settings.init_from else []
        for part in self.frozen:
            part.requires_grad_(False)

    def _build_optimizers(self) -> None:
        settings = self.settings
        self.weight_groups = self.model.weight_groups()
        self.weights = [weight for group in self.weight_groups for weight in group]
        weights = [{"params": self.weights}]  # a group may be empty, if all weights are frozen
        self.optimizer = SGD(weights, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
        self.optimizers: dict[str, Optimizer] = {"weights": self.optimizer}
        if self.model.probe is not None and self.weights:
            self.optimizers["probe"] = Adam(self.model.probe.parameters(), lr=settings.probe_lr)
        parameters = {name: optimizer.param_groups[0]["params"] for name, optimizer in self.optimizers.items()}
        self.gradient_sums = {name: collective.GradientSums(of_one) for name, of_one in parameters.items()}

    # Batches

    def epoch_batches(self, epoch: int) -> BilevelBatches:
        """The batches of an epoch, which are made when they are asked for."""
        weight_half, alpha_half = self.halves
        weights = self._subset(weight_half, "search weights", self.weight_loss, self.mix)
        progress = self._progress(epoch)
        order = order_of(self.sampler, self.split.labels[weight_half], weights.seed, epoch, progress)
        size = self.settings.batch_size
        head_views = None
        if self.model.alpha_head is not None:  # the weight step trains it on the views of its own loss
            head_views = self._subset(weight_half, "search alpha head", self.alpha_loss)
        alphas = self._subset(alpha_half, "search alphas", self.alpha_loss, self.alpha_mix)
        alpha_order = None
        if not isinstance(self.alpha_sampler, Instance):
            labels = self.split.labels[alpha_half]
            alpha_order = order_of(self.alpha_sampler, labels, alphas.seed, epoch, progress)
        return BilevelBatches(TrainingBatches(weights, order, size, epoch), alphas, size, head_views, alpha_order)

    def _subset(self, rows: np.ndarray, stream: str, loss: Objective, mix: Mix | None = None) -> Subset:
        compiled = self.device.compiled_views
        make = partial(training_subset, self.data, self.split, rows, self.settings, compiled=compiled)
        beside = None if mix is None else make(stream=f"{stream} beside", num_views=mix.objective.num_views)
        return make(stream=stream, num_views=loss.num_views, beside=beside)

    def _progress(self, epoch: int) -> float:
        """Of samplers: from 0 to 1 in a stage, and 1 in epochs that follow a search."""
        return self._stage_of(epoch).progress(epoch)

    def _stage_of(self, epoch: int) -> Stage:
        """The stage of an epoch. A client's passes over its images are of one stage."""
        stages = self.strategy.stages()
        return stages[self.strategy.stage_of(epoch)] if len(stages) > 1 else Stage(0, self.epochs)

    def num_steps(self, epoch: int) -> int:
        return num_batches(self.sampler.length(self._progress(epoch)), self.settings.batch_size)

    def batches(self, epoch: int, start: int) -> Iterator[SearchBatch]:
        """Yield the batches of the epoch's steps from `start` on."""
        workers, time_limit = self.settings.workers, self.settings.time_limit
        yield from map(self.moved, load_batches(self.epoch_batches(epoch), start, workers, time_limit))

    def moved(self, batch: SearchBatch) -> SearchBatch:
        """The batches of a step, on the device."""
        weights, alphas, head_views = batch
        move = self.device.move
        return SearchBatch(move(weights), move(alphas), None if head_views is None else move(head_views))

    # Steps

    def step(self, epoch: int, step: int, batch: SearchBatch) -> dict[str, float]:
        """Update the architecture, then take a weight step (DARTS, Algorithm 1)."""
        self._enter_stage(self.strategy.stage_of(epoch))
        progress = self._stage_of(epoch).progress(epoch + step / self.num_steps(epoch))
        return self.architecture_step(batch, epoch, progress) | self.weight_step(batch, progress)

    def architecture_step(self, batch: SearchBatch, epoch: int, progress: float) -> dict[str, float]:
        """Let the strategy learn from the batches, as the first half of a step."""
        self.begin_step(progress)
        return self.strategy.update(CurrentStep(self, batch, epoch, progress))

    def begin_step(self, progress: float) -> None:
        """Set the learning rate, and let batch normalisation take its statistics of the batch."""
        set_lr(self.optimizer, self.learning_rate(progress))
        if not self.model.training:  # it takes as long as a cell
            self.model.train()

    def learning_rate(self, progress: float) -> float:
        """The learning rate of the weights, which falls along a cosine."""
        return cosine(self.settings.lr, self.settings.lr_min, progress)

    def weight_step(self, batch: SearchBatch, progress: float) -> dict[str, float]:
        """Train the weights by the strategy's mixing weights, as the second half of a step; none if all are frozen."""
        if not self.weights:
            return {}
        with torch.no_grad():
            mixing = self.strategy.mixing(progress, step_generator())
        loss, features = self.weight_objective(batch, mixing, progress)
        self.optimizer.zero_grad(set_to_none=True)
        with self.gradient_sums["weights"]:
            loss.backward()
        for group in self.weight_groups:
            nn.utils.clip_grad_norm_(group, self.settings.clip)
        self.optimizer.step()
        values = {"weight_loss": reported(loss), "lr": self.optimizer.param_groups[0]["lr"]}
        if self.model.probe is not None:
            optimizer, sums = self.optimizers["probe"], self.gradient_sums["probe"]
            values["probe_loss"] = train_probe(self.model.probe, optimizer, sums, features.detach(), batch.weights)
        for part in self._learning_parts():
            average_running_statistics(part, batch.weights.share)
        return values

    # Objectives

    def weight_objective(
        self, batch: SearchBatch, mixing: Mixing, progress: float, full_precision: bool = False
    ) -> tuple[Tensor, Tensor]:
        """L_train and the features of the first view. The encoder processes one view at a time.

        A separate head of the alpha step is trained in the same step, on its own views and on detached features: it
        changes neither the weights of the encoder nor its running statistics.
        """
        model, weights, head_views = self.model, batch.weights, batch.alpha_head
        mixing = collective.replicated(mixing)
        with self._precision(full_precision), collective.sharing(weights.share):
            # A frozen backbone normalises by its batch and keeps its running averages.
            with held_statistics(model.encoder) if self.frozen else contextlib.nullcontext():
                features = [model.encoder(view, mixing) for view in weights.views]
            loss = self.weight_loss([model.head(feature) for feature in features], weights.labels, progress)
            loss = loss + self._mixed(self.mix, weights, mixing, progress)
            if model.alpha_head is not None and head_views is not None:
                with torch.no_grad(), held_statistics(model.encoder):
                    detached = [model.encoder(view, mixing) for view in head_views.views]
                outputs = [model.alpha_head(feature) for feature in detached]
                loss = loss + self.alpha_loss(outputs, head_views.labels, progress)
        first = features[0].to(torch.promote_types(features[0].dtype, torch.float32))
        return collective.global_loss(loss, weights.share), first

    def _learning_parts(self) -> list[nn.Module]:
        """The model, or those of its parts that are not frozen."""
        if not self.frozen:
            return [self.model]
        return [part for part in self.model.children() if part not in self.frozen]

    def alpha_objective(
        self, batch: SearchBatch, mixing: Mixing, progress: float, full_precision: bool = False
    ) -> Tensor:
        """L_val, the loss that the architecture is to minimise."""
        head = self.model.head if self.model.alpha_head is None else self.model.alpha_head
        alphas, mixing = batch.alphas, collective.replicated(mixing)
        with collective.sharing(alphas.share):
            with self._precision(full_precision):
                outputs = [head(self.model.encoder(view, mixing)) for view in alphas.views]
                mixed = self._mixed(self.alpha_mix, alphas, mixing, progress)
            loss = self.alpha_loss(outputs, alphas.labels, progress) + mixed
        return collective.global_loss(loss, alphas.share)

    def _mixed(self, mix: Mix | None, batch: Batch, mixing: Mixing, progress: float) -> Tensor | float:
        """The share of the self-supervised loss beside the supervised one; 0 if there is none."""
        if mix is None:
            return 0.0
        encoder, head = self.model.encoder, self.model.ssl_head
        assert head is not None
        return mix.loss(encoder, lambda images: encoder(images, mixing), head, batch.beside, progress)

    def _precision(self, full_precision: bool) -> contextlib.AbstractContextManager[Any]:
        return self.device.full_precision() if full_precision else self.device.autocast()

    # Epochs

    def end_epoch(self, epoch: int) -> dict[str, Any]:
        """Record the architecture and the search's health, and evaluate the supernet.

        It is evaluated on the alpha half and, if configured, on held-out splits. After the last epoch the supernet
        that is pruned to the genotype is evaluated, too.
        """
        facts = self.strategy.end_epoch()
        name = "accuracy" if self.model.probe is None else "probe_accuracy"
        mixing = self.strategy.mixing(self._stage_of(epoch).progress(epoch + 1))
        with self.estimated_statistics(mixing):
            accuracies = {f"{name}_alpha_half": self.accuracy(self.split, self.halves[1], mixing)}
            tracked = self.tracking.accuracies(epoch, lambda split: self.scores(split, None, mixing))
            accuracies |= {f"{name}_{split}": value for split, value in tracked.items()}
        if epoch + 1 == self.epochs and (pruned := self._pruned_accuracy()) is not None:
            accuracies[f"pruned_{name}_alpha_half"] = pruned
        stage = {"stage": self.strategy.stage + 1, "layers": self.layers} if len(self.strategy.stages()) > 1 else {}
        return accuracies | facts | stage | epoch_health(self.strategy, self.settings.ops)

    def _pruned_accuracy(self) -> float | None:
        """Accuracy on the alpha half of the supernet that is left with the derived genotype's ops, each of weight 1."""
        genotype = newest_genotype(self.strategy, self.settings.ops)
        if genotype is None:
            return None
        mixing = pruned_mixing(genotype, self.settings.ops, self.device.torch)
        with self.estimated_statistics(mixing):
            return self.accuracy(self.split, self.halves[1], mixing)

    @cached_property
    def tracking(self) -> Tracking:
        """The splits whose accuracy is tracked. `val` is for the retraining; the search has the alpha half."""
        names = [name for name in self.data.held_out if name != "val"]
        views = self.weight_loss.num_views + self.alpha_loss.num_views
        return Tracking(self.settings, self.data, names, self.epochs, views * self.sampler.length(0.0))

    def evaluation_rows(self, epoch: int) -> dict[str, tuple[Split, np.ndarray]]:
        """The splits, and the rows of them, that the supernet is run on at the end of an epoch."""
        return {"alpha_half": (self.split, self.halves[1]), **self.tracking.rows(epoch)}

    def estimated_statistics(self, mixing: Mixing) -> contextlib.AbstractContextManager[None]:
        """A context in which batch normalisation uses statistics of some images of the weight half.

        The images are those of `statistics_batches` batches, without augmentation, and always the same. The running
        averages are restored at the end of the context.
        """
        half, size = self.halves[0], self.settings.batch_size
        order = np.random.Generator(np.random.Philox(key=[self.seed, 3])).permutation(len(half))
        chosen = [half[places] for places in cut_batches(order, size)[: self.settings.statistics_batches]]

        def run(rows: np.ndarray) -> None:
            if (share := collective.my_share(len(rows))) is not None:
                rows = rows[share.start : share.stop]
            (batch,) = plain_batches(self.split, rows, len(rows), normaliser(self.data))
            with self.device.autocast():
                self.model.classifier()(self.model.encoder(self.device.move(batch).views[0], mixing))

        return estimated_statistics(self.model, (partial(run, rows) for rows in chosen))

    def accuracy(self, split: Split, rows: np.ndarray, mixing: Mixing) -> float:
        """Top-1 accuracy in percent of the head, or of the linear probe if the loss is self-supervised."""
        return accuracy(*self.scores(split, rows, mixing))

    def scores(self, split: Split, rows: np.ndarray | None, mixing: Mixing) -> Scores:
        """The class scores that `accuracy` judges, and the labels; `rows` None means the whole split."""
        score = lambda images: self.model.classifier()(self.model.encoder(images, mixing))
        return predict(self.model, split, normaliser(self.data), self.device, rows, score)

    # State

    def tensors(self) -> dict[str, Tensor]:
        """The weights and buffers, the tensors of the strategy and the states of the optimizers."""
        named = module_tensors("model", self.model) | self.strategy.tensors()
        for name, optimizer in self.optimizers.items():
            named |= optimizer_tensors(f"optimizer.{name}", optimizer)
        return named

    def fit(self, tensors: Mapping[str, Tensor]) -> None:
        """Have the supernet of the stage in which `tensors` were returned."""
        self._enter_stage(self.strategy.stage_in(tensors))

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state that `tensors` returned."""
        self.fit(tensors)
        load_module("model", self.model, tensors)
        self.strategy.load(tensors)
        for name, optimizer in self.optimizers.items():
            load_optimizer(f"optimizer.{name}", optimizer, tensors)

    def publish(self, folder: Path) -> None:
        """Write the strategy's record of all epochs."""
        save_tensors(folder / ALPHAS, self.strategy.record())
