"""Construction of the network that a model card describes, for training, evaluation and counting weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from registry import HEADS, LOSSES, NETWORKS, SAMPLERS, PluginError
from registry.foreign import differing
from registry.losses import Objective
from registry.networks import Encoder
from registry.samplers import Sampler
from registry.trials import try_features, try_scores
from ssfnas_cli.artifacts.dataset import DataSet
from ssfnas_cli.artifacts.genotype import Genotype
from ssfnas_cli.artifacts.model import MODEL, DerivedNetwork, ModelCard, Part, Preparation, load_model
from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.console import log
from ssfnas_cli.data.holdout import rest_counts
from ssfnas_cli.errors import InputError, UsageError
from ssfnas_cli.nets.count import count_macs, count_params
from ssfnas_cli.nets.derived import DerivedEncoder
from ssfnas_cli.nets.heads import AuxiliaryHead, Classifier, Correction
from ssfnas_cli.nets.stems import StemName, choose_stem
from ssfnas_cli.settings import PluginSection, RetrainSettings, build_plugin


def make_card(genotype: Genotype | None, settings: RetrainSettings, data: DataSet) -> ModelCard:
    """Make the card of the network that a retraining trains.

    Args:
        genotype: the architecture, or None if the settings name a network.
        settings: resolved settings.
        data: the data set to train on.

    Raises:
        UsageError: the loss does not fit the head, or nothing can be set aside as `holdout` says.
    """
    counts = rest_counts(data.counts("train"), settings.holdout)
    if settings.holdout and counts == data.counts("train"):
        raise UsageError(f"--set holdout={settings.holdout:g}: no class has 3 images, of which one could be set aside")
    objective = build_plugin(LOSSES, settings.loss, num_classes=data.num_classes, class_counts=counts)
    network: DerivedNetwork | Part = _to_part(settings.network)
    if genotype is not None:
        stem, _ = choose_stem(settings.stem, data.image_size)
        network = DerivedNetwork(genotype=genotype, channels=settings.channels, layers=settings.layers, stem=stem)
    return ModelCard(
        network=network,
        loss=_to_part(settings.loss),
        head=_to_part(resolve_head(settings.head, objective)),
        aux=settings.aux_weight > 0,
        in_channels=data.channels,
        class_names=list(data.class_names),
        train_counts=counts,
        image_size=data.image_size,
        mean=list(data.mean),
        std=list(data.std),
        preparation=Preparation(pixel_range=data.manifest.pixel_range or "auto"),
        data=str(data.path.resolve()),
        data_sha256=data.sha256,
        seed=settings.seed,
        ema=None if settings.ema == "none" else settings.ema,
        holdout=settings.holdout,
        prior=held_prior(settings, objective),
    )


def held_prior(settings: RetrainSettings, objective: Objective) -> list[float] | Literal["unknown"]:
    """The class prior [C] under which the softmax of the outputs is the posterior, after a training with a loss.

    Re-sampling shows classes more or less often than the loss assumes. What the network makes of that is not known.
    """
    sampler: Sampler = build_plugin(SAMPLERS, settings.sampler, class_counts=objective.class_counts)
    prior = objective.held_prior() if sampler.keeps_prior else None
    return "unknown" if prior is None else prior.tolist()


def _to_part(section: PluginSection) -> Part:
    return Part(name=section.name, options=section.options())


def _to_section(part: Part) -> PluginSection:
    return PluginSection(name=part.name, **part.options)


def build_objective(section: PluginSection, card: ModelCard) -> Objective:
    """Build a loss for the classes of a card."""
    return build_plugin(LOSSES, section, num_classes=len(card.class_names), class_counts=card.train_counts)


def build_encoder(card: ModelCard, drop_path: float = 0.0) -> Encoder:
    """Build the encoder of a card. `drop_path` is the probability that drop path reaches at the end of a training."""
    if isinstance(card.network, DerivedNetwork):
        network = card.network
        shape = network.channels, network.layers
        return DerivedEncoder(network.genotype, card.in_channels, *shape, drop_path, network.stem)
    section = _to_section(card.network)
    network = build_plugin(NETWORKS, section, in_channels=card.in_channels, image_size=card.image_size)
    try_features(NETWORKS.get(section.name), network, card.in_channels, card.image_size)
    return network


def build_model(card: ModelCard, drop_path: float = 0.0) -> Classifier:
    """Build the network of a card: the encoder, the head, the auxiliary head and the correction if it has them."""
    encoder = build_encoder(card, drop_path)
    head = head_builder(_to_section(card.head), build_objective(_to_section(card.loss), card))
    aux = None
    if card.aux and encoder.aux_channels:
        stem = card.network.stem if isinstance(card.network, DerivedNetwork) else "cifar"
        aux = AuxiliaryHead(encoder.aux_channels, head, stem)
    correction = Correction(len(card.class_names)) if card.corrections else None
    return Classifier(encoder, head(encoder.num_features), aux, correction)


def build_head(card: ModelCard, num_features: int) -> nn.Module:
    """Build a new head of the kind that a card describes."""
    return head_builder(_to_section(card.head), build_objective(_to_section(card.loss), card))(num_features)


class NetworkSize(NamedTuple):
    """Weights without those of the auxiliary head, and multiply-adds of one image."""

    num_params: int | None
    num_macs: int | None


def count_card(card: ModelCard) -> NetworkSize:
    """Count the network of a card, from shapes alone; None if it has a plugin that cannot be run without values."""
    try:
        with torch.device("meta"):
            model = build_model(card)
        model.aux = None
        return NetworkSize(count_params(model), count_macs(model, card.in_channels, card.image_size))
    except Exception as error:  # a plugin may raise anything, and a trained network must not be lost by it
        log.debug("the network cannot be counted: %s", error)
        return NetworkSize(None, None)


def describe_network(
    network: Genotype | str,
    channels: int,
    layers: int,
    num_classes: int,
    image_size: int,
    in_channels: int,
    aux: bool,
    stem: StemName = "cifar",
) -> Classifier:
    """A network with a linear head, for counting; `network` is a genotype or the name of a plain network."""
    of_genotype = isinstance(network, Genotype)
    card = ModelCard(
        network=DerivedNetwork(genotype=network, channels=channels, layers=layers, stem=stem)
        if of_genotype
        else Part(name=str(network)),
        loss=Part(name="ce"),
        head=Part(name="linear"),
        aux=aux,
        in_channels=in_channels,
        class_names=[str(label) for label in range(num_classes)],
        train_counts=[1] * num_classes,
        image_size=image_size,
        mean=[0.0] * in_channels,
        std=[1.0] * in_channels,
        data="",
        data_sha256="",
        seed=0,
    )
    return build_model(card)


def head_builder(section: PluginSection, objective: Objective) -> Callable[[int], nn.Module]:
    """A function from the number of features to the configured head; `auto` means the objective's default head."""
    if section.name == "auto":
        return objective.build_head
    plugin = HEADS.get(section.name)
    options = plugin.parse_options(section.options())

    def build(num_features: int) -> nn.Module:
        head = plugin.build(options, num_features, objective.num_classes, objective.class_counts)
        if plugin.facts.gives == "scores":
            try_scores(plugin, head, num_features, objective.num_classes)
        return head

    return build


def resolve_head(section: PluginSection, objective: Objective) -> PluginSection:
    """Resolve `auto` and the options of a head. It stays `auto` if the objective overrides `build_head`.

    Raises:
        UsageError: the objective cannot be computed on that head.
    """
    if section.name == "auto":
        if type(objective).build_head is not Objective.build_head:
            return section
        section = PluginSection(name=objective.default_head, **objective.head_options())
    plugin = HEADS.get(section.name)
    options = plugin.parse_options(section.options()).model_dump(by_alias=True, mode="json")
    if plugin.facts.gives != objective.reads:
        fitting = [name for name in HEADS.names() if _gives(name) == objective.reads]
        raise UsageError(
            f"--set head={section.name}: gives {plugin.facts.gives}, and the loss reads {objective.reads}: "
            f"take {', '.join(fitting)}, or auto for the loss's own"
        )
    if reason := objective.refuses_head(section.name, options):
        raise UsageError(f"--set head={section.name}: {reason}")
    return PluginSection(name=section.name, **options)


def _gives(head: str) -> str | None:
    """What a head gives; None if it is a plugin that cannot be loaded."""
    try:
        return HEADS.get(head).facts.gives
    except PluginError:
        return None


def load_finished(run: RunFolder) -> tuple[Classifier, ModelCard]:
    """Build the network of a finished retraining.

    Raises:
        InputError: the run is unfinished, or its model file is missing or damaged.
    """
    run.refuse_unfinished()
    tensors, card = load_model(run.path / MODEL)
    return load_classifier(tensors, card, run.path / MODEL), card


def load_classifier(tensors: dict[str, Any], card: ModelCard, where: Path) -> Classifier:
    """Build the network of a model file.

    Args:
        tensors: its tensors by name.
        card: its card.
        where: its path, for messages.

    Raises:
        InputError: the tensors do not fit the network that the card describes, or the card describes none.
    """
    try:
        # The initial weights are replaced below. A caller may be about to infer, or have another default type.
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
            model = build_model(card).float()
    except PluginError as error:
        raise InputError(f"{where}: {error}") from None
    if others := differing(card.plugins):
        told = ", ".join(others)
        log.warning("%s: was trained with another version of a plugin, so it may answer otherwise: %s", where, told)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{where}: its tensors do not fit its card: {str(error).splitlines()[-1].strip()}") from None
    return model
