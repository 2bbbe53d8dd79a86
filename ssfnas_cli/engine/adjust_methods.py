"""The methods of `adjust`: each changes a finished network, or says what is to be trained of it.

None of them sees a test split. What a method chooses, it chooses on `val`, or on the images that the retraining set
aside (its setting `holdout`), which come first because they were set aside for this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from registry.balance import power_of_prior
from ssfnas_cli.artifacts.dataset import DataSet, Split
from ssfnas_cli.artifacts.model import ModelCard
from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.console import log
from ssfnas_cli.data.augment import Normalise
from ssfnas_cli.data.embedded import find_data
from ssfnas_cli.data.holdout import split_holdout
from ssfnas_cli.engine.corrections import (
    Choice,
    Floats,
    choose_tau,
    choose_temperature,
    likelihood_shift,
    prior_shift,
    tau_normalised,
)
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.network import build_head
from ssfnas_cli.engine.predict import predict
from ssfnas_cli.errors import InputError
from ssfnas_cli.nets.heads import Classifier, Correction
from ssfnas_cli.settings import AdjustSettings, RetrainSettings


@dataclass(frozen=True)
class HeldOut:
    """Images to choose on: rows of a split. `name` is `holdout` or `val`."""

    name: str
    split: Split
    rows: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """The labels [N] of the rows."""
        return self.split.labels[self.rows]


@dataclass
class Work:
    """A network that is being corrected, and what the methods need.

    Attributes:
        run: the finished run that it comes from.
        card: of the network.
        model: the network, which the methods change. It has a correction.
        training: the settings that it was trained with; how it is executed is the correction's.
        settings: of the correction.
        prior: the class prior [C] that its outputs hold; None if it is not known.
    """

    run: RunFolder
    card: ModelCard
    model: Classifier
    training: RetrainSettings
    settings: AdjustSettings
    prior: Floats | None

    @cached_property
    def device(self) -> Device:
        """Where to compute. The network is moved there."""
        device = Device.from_settings(self.training)
        self.model = device.place(self.model)
        return device

    @property
    def correction(self) -> Correction:
        """Of the network."""
        assert self.model.correction is not None
        return self.model.correction

    def data(self, split: str) -> DataSet:
        """The data set of the training, of which this split is there and whole."""
        data = find_data(self.settings.data, self.card.data, self.card.data_sha256, "run", False, (split,))
        data.verify((split,))
        return data

    @cached_property
    def held_out(self) -> HeldOut:
        """The images to choose on.

        Raises:
            InputError: there are none.
        """
        if self.card.holdout:
            split = self.data("train").split("train")
            _, rows = split_holdout(split.labels, len(self.card.class_names), self.card.holdout, self.card.seed)
            return HeldOut("holdout", split, rows)
        data = self.data("val")
        if "val" not in data.splits:
            instead = ", or give --tau" if self.settings.method != "temperature" else ""
            raise InputError(
                f"{self.run.path}: has no images to choose on, which neither it has learned from nor a test needs: "
                f"make the data set with --val-share, or retrain with --set holdout=0.1{instead}"
            )
        split = data.split("val")
        return HeldOut("val", split, np.arange(len(split)))

    def predict(self, score: Callable[[Tensor], Tensor] | None = None) -> Floats:
        """The logits of the images to choose on [N, C], or what `score` makes of images."""
        chosen, normalise, device = self.held_out, Normalise(tuple(self.card.mean), tuple(self.card.std)), self.device
        return predict(self.model, chosen.split, normalise, device, chosen.rows, score)[0].astype(np.float64)


@dataclass(frozen=True)
class Outcome:
    """What a method has done.

    Attributes:
        prior: the class prior [C] that the outputs hold now.
        value: tau or temperature, if the method has one.
        choice: how the value was chosen; None if it was given.
        weights: the tensors that are to be trained yet.
    """

    prior: Floats | Literal["unknown"]
    value: float | None = None
    choice: Choice | None = None
    weights: Sequence[Tensor] = ()


def logit_adjustment(work: Work) -> Outcome:
    """z - tau log pi (Menon et al., 2021): removes the prior that the outputs hold, wholly at tau 1."""
    prior, tau = work.prior, work.settings.tau
    if prior is None:
        raise InputError(
            f"{work.run.path}: what prior its outputs hold is not known (loss {work.card.loss.name}, sampler "
            f"{work.training.sampler.name}): say it with --from-prior train, uniform, or a file of counts"
        )
    if np.allclose(prior, 1 / len(prior), rtol=1e-6):
        raise InputError(
            f"{work.run.path}: its outputs hold no class above another (the uniform prior): there is nothing to adjust"
        )
    choice = None
    if tau == "auto":
        logits = work.predict()
        choice = choose_tau(lambda one: logits + prior_shift(prior, one), work.held_out.labels)
        tau = choice.value
    work.correction.shift += torch.from_numpy(prior_shift(prior, tau)).to(work.correction.shift)
    return Outcome(power_of_prior(prior, 1 - tau), tau, choice)


def tau_normalisation(work: Work) -> Outcome:
    """w / ||w||^tau without bias (Kang et al., 2020): larger classes tend to have longer vectors."""
    head, tau, choice = work.model.head, work.settings.tau, None
    if not isinstance(head, nn.Linear):
        raise InputError(
            f"{work.run.path}: its head '{work.card.head.name}' has no class vectors of different lengths, which "
            "--method tau-norm divides by: take another method"
        )
    weight = head.weight.detach().double().cpu().numpy()
    if tau == "auto":
        features = work.predict(lambda images: work.model.encoder(images).features)
        choice = choose_tau(lambda one: features @ tau_normalised(weight, one).T, work.held_out.labels)
        tau = choice.value
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(tau_normalised(weight, tau)))
        if head.bias is not None:
            head.bias.zero_()
    return Outcome("unknown", tau, choice)


def retrained_classifier(work: Work) -> Outcome:
    """cRT (Kang et al., 2020): a new classifier, drawn by the seed, to be trained on class-balanced samples."""
    torch.manual_seed(work.card.seed)
    head = build_head(work.card, work.model.encoder.num_features)
    if not list(head.parameters()):
        raise InputError(
            f"{work.run.path}: its head '{work.card.head.name}' has no weights that --method crt could train: "
            "take another method, such as lws"
        )
    work.model.head = head
    return Outcome("unknown", weights=list(head.to(work.device.torch).parameters()))


def learned_scaling(work: Work) -> Outcome:
    """LWS (Kang et al., 2020): a factor for each class, to be trained on class-balanced samples."""
    _ = work.device  # moves the correction
    return Outcome("unknown", weights=[work.correction.scale])


def temperature_scaling(work: Work) -> Outcome:
    """z / T (Guo et al., 2017): changes no prediction, only how sure the network says it is."""
    counts = np.bincount(work.held_out.labels, minlength=len(work.card.class_names)).tolist()
    if work.prior is None:
        log.info("what prior the outputs hold is not known: the temperature is that of the plain likelihood")
    shift = likelihood_shift(work.prior, counts)
    choice = choose_temperature(work.predict(), work.held_out.labels, shift)
    work.correction.scale /= choice.value
    work.correction.shift /= choice.value
    return Outcome("unknown" if work.prior is None else work.prior, choice.value, choice)


CORRECT: dict[str, Callable[[Work], Outcome]] = {
    "logit": logit_adjustment,
    "tau-norm": tau_normalisation,
    "crt": retrained_classifier,
    "lws": learned_scaling,
    "temperature": temperature_scaling,
}
