"""Building the network that a model card describes: the one way to it, for training, evaluation and counting."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from registry import HEADS, LOSSES, NETWORKS, PluginError
from registry.losses import Objective
from registry.networks import Encoder
from ssfnas_cli.artifacts.dataset import DataSet
from ssfnas_cli.artifacts.genotype import Genotype
from ssfnas_cli.artifacts.model import DerivedNetwork, ModelCard, Part
from ssfnas_cli.errors import InputError, UsageError
from ssfnas_cli.nets.derived import DerivedEncoder
from ssfnas_cli.nets.heads import AuxiliaryHead, Classifier
from ssfnas_cli.settings import PluginSection, RetrainSettings, build_plugin


def make_card(genotype: Genotype | None, settings: RetrainSettings, data: DataSet) -> ModelCard:
    """The card of the network that a retraining makes.

    Args:
        genotype: None if the settings name a network instead.
        settings: resolved.
    """
    counts = data.counts("train")
    objective = build_plugin(LOSSES, settings.loss, num_classes=data.num_classes, class_counts=counts)
    network: DerivedNetwork | Part = _part(settings.network)
    if genotype is not None:
        network = DerivedNetwork(genotype=genotype, channels=settings.channels, layers=settings.layers)
    return ModelCard(
        network=network,
        loss=_part(settings.loss),
        head=_part(resolve_head(settings.head, objective)),
        aux=settings.aux_weight > 0,
        in_channels=data.channels,
        class_names=list(data.class_names),
        train_counts=counts,
        image_size=data.image_size,
        mean=list(data.mean),
        std=list(data.std),
        data=str(data.path.resolve()),
        data_sha256=data.sha256,
        seed=settings.seed,
    )


def _part(section: PluginSection) -> Part:
    return Part(name=section.name, options=section.options())


def _section(part: Part) -> PluginSection:
    return PluginSection(name=part.name, **part.options)


def build_objective(section: PluginSection, card: ModelCard) -> Objective:
    """A loss for the classes of a card."""
    return build_plugin(LOSSES, section, num_classes=len(card.class_names), class_counts=card.train_counts)


def build_encoder(card: ModelCard, drop_path: float = 0.0) -> Encoder:
    """The encoder of a card's network. `drop_path` is the probability at the end of a training."""
    if isinstance(card.network, DerivedNetwork):
        network = card.network
        return DerivedEncoder(network.genotype, card.in_channels, network.channels, network.layers, drop_path)
    return build_plugin(NETWORKS, _section(card.network), in_channels=card.in_channels, image_size=card.image_size)


def build_model(card: ModelCard, drop_path: float = 0.0) -> Classifier:
    """The whole network of a card: encoder, head, and the auxiliary head if there is one."""
    encoder = build_encoder(card, drop_path)
    head = head_builder(_section(card.head), build_objective(_section(card.loss), card))
    aux = AuxiliaryHead(encoder.aux_channels, head) if card.aux and encoder.aux_channels else None
    return Classifier(encoder, head(encoder.num_features), aux)


def plain_classifier(name: str, in_channels: int, image_size: int, num_classes: int) -> Classifier:
    """A plain network with a linear head."""
    encoder = build_plugin(NETWORKS, PluginSection(name=name), in_channels=in_channels, image_size=image_size)
    return Classifier(encoder, nn.Linear(encoder.num_features, num_classes))


def head_builder(section: PluginSection, objective: Objective) -> Callable[[int], nn.Module]:
    """From a number of features to the head that the settings name; `auto` is the objective's default head."""
    if section.name == "auto":
        return objective.build_head
    plugin = HEADS.get(section.name)
    context = {"num_classes": objective.num_classes, "class_counts": objective.class_counts}
    return partial(plugin.factory, plugin.parse_options(section.options()), **context)


def resolve_head(section: PluginSection, objective: Objective) -> PluginSection:
    """The head that a section names, with its options; it stays `auto` if the objective builds one of its own kind.

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


def load_classifier(tensors: dict[str, Any], card: ModelCard, where: Path) -> Classifier:
    """The network of a model file.

    Raises:
        InputError: its tensors are not those of the network its card describes, or no network is as it says.
    """
    try:
        with torch.random.fork_rng(devices=[]):  # the weights that are drawn here are replaced
            model = build_model(card)
    except PluginError as error:
        raise InputError(f"{where}: {error}") from None
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{where}: its tensors do not fit its card: {str(error).splitlines()[-1].strip()}") from None
    return model
