"""The phase of a correction that trains: a new classifier, or a factor for each class, on frozen features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from registry import SAMPLERS
from registry.gpu import reported
from registry.samplers import Sampler
from registry.state import load_module, load_optimizer, module_tensors, optimizer_tensors
from registry.trials import order_of
from ssfnas_cli.artifacts.dataset import DataSet
from ssfnas_cli.data.batches import Batch, TrainingBatches, load_batches, num_batches, training_subset
from ssfnas_cli.data.holdout import rest_counts, split_holdout
from ssfnas_cli.data.policies import build_policy
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.loop import set_lr
from ssfnas_cli.engine.sgd import build_optimizer, learning_rate
from ssfnas_cli.nets.heads import Classifier, Correction
from ssfnas_cli.settings import AdjustSettings, PluginSection, RetrainSettings, build_plugin

BALANCED = PluginSection(name="class_balanced")


class HeadPhase:
    """Trains some tensors behind the features of a network by cross-entropy of class-balanced samples.

    Images are augmented as in the training that the network comes from, but not mixed. The encoder is in evaluation
    mode and gets no gradient, so none of its tensors changes. With a new head this is cRT, with the correction's scale
    LWS (Kang et al., 2020, section 4); their code leaves batch normalisation in training mode.

    Args:
        settings: of the correction.
        training: the settings that the network was trained with.
        data: the data set that it was trained on.
        device: where to compute.
        model: the network, with a correction; it is on the device.
        weights: the tensors to train.
    """

    name = "adjust"
    is_spread = False

    def __init__(
        self,
        settings: AdjustSettings,
        training: RetrainSettings,
        data: DataSet,
        device: Device,
        model: Classifier,
        weights: Sequence[Tensor],
    ):
        assert isinstance(model.correction, Correction)
        self.training, self.data, self.device = training, data, device
        self.epochs, self.seed, self.lr = settings.epochs, training.seed, settings.lr
        self.batch_size = training.batch_size if settings.batch_size == "auto" else settings.batch_size
        self.split = data.split("train")
        self.rows, _ = split_holdout(self.split.labels, data.num_classes, training.holdout, training.seed)
        counts = rest_counts(data.counts("train"), training.holdout)
        self.sampler: Sampler = build_plugin(SAMPLERS, BALANCED, class_counts=counts)
        self.model = model.requires_grad_(False).eval()
        self.head, self.correction = model.head, model.correction
        self.weights = [weight.requires_grad_(True) for weight in weights]
        self.head.train(any(weight.requires_grad for weight in self.head.parameters()))  # a plugin's may have BN
        self.optimizer = build_optimizer(self.weights, settings.lr, training)
        self.policy = build_policy(training, data.image_size)

    def num_steps(self, epoch: int) -> int:
        return num_batches(self.sampler.length(epoch / self.epochs), self.batch_size)

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """Yield the batches of the epoch from `start` on."""
        subset = training_subset(
            self.data,
            self.split,
            self.rows,
            self.training,
            stream=self.name,
            num_views=1,
            cutout=self.training.cutout,
            compiled=self.device.compiled_views,
            policy=self.policy,
        )
        order = order_of(self.sampler, self.split.labels[self.rows], subset.seed, epoch, epoch / self.epochs)
        batches = TrainingBatches(subset, order, self.batch_size, epoch)
        for batch in load_batches(batches, start, self.training.workers, self.training.time_limit):
            yield self.device.move(batch)

    def step(self, epoch: int, step: int, batch: Batch) -> dict[str, float]:
        """Take one SGD step, at a rate that falls to 0 along a cosine."""
        lr = learning_rate(self.lr, 0.0, epoch, step, self.num_steps(epoch), self.epochs)
        set_lr(self.optimizer, lr)
        with self.device.autocast():
            with torch.no_grad():
                features = self.model.encoder(batch.views[0]).features
            logits = self.model.logits(features).float()
        loss = F.cross_entropy(logits, batch.labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, self.training.clip)
        self.optimizer.step()
        correct = reported((logits.detach().argmax(1) == batch.labels).float().mean().double())
        return {"loss": reported(loss), "lr": lr, "train_accuracy": 100 * correct}

    def end_epoch(self, epoch: int) -> dict[str, Any]:
        """Evaluate nothing: no epoch is chosen."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """The head, the correction and the state of the optimizer. The encoder is in the run that is corrected."""
        modules = module_tensors("head", self.head) | module_tensors("correction", self.correction)
        return modules | optimizer_tensors("optimizer", self.optimizer)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state that `tensors` returned."""
        load_module("head", self.head, tensors)
        load_module("correction", self.correction, tensors)
        load_optimizer("optimizer", self.optimizer, tensors)

    def publish(self, folder: Path) -> None:
        """Write nothing: the model is written at the end."""
