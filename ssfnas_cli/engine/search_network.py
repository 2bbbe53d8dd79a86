"""Construction of the supernet with its heads from the settings of a search."""

from __future__ import annotations

from registry.losses import Objective
from ssfnas_cli.artifacts.dataset import DataSet
from ssfnas_cli.engine.mix import Mix
from ssfnas_cli.engine.network import head_builder, resolve_head
from ssfnas_cli.nets.search_model import SearchModel
from ssfnas_cli.nets.stems import choose_stem
from ssfnas_cli.nets.supernet import Supernet
from ssfnas_cli.settings import PluginSection, SearchSettings


def build_search_model(
    settings: SearchSettings,
    data: DataSet,
    layers: int,
    weight_loss: Objective,
    alpha_loss: Objective,
    mix: Mix | None,
) -> SearchModel:
    """Build the supernet of a search, with so many cells, and its heads. torch's generator draws their weights."""
    stem, _ = choose_stem(settings.stem, data.image_size)
    shape = (data.channels, settings.channels, layers)
    encoder = Supernet(*shape, settings.ops, settings.op_options, stem, settings.partial_channels)
    head, alpha_head = _head_sections(settings, weight_loss, alpha_loss)
    return SearchModel(
        encoder,
        data.num_classes,
        weight_loss,
        head_builder(head, weight_loss),
        None if alpha_head is None else head_builder(alpha_head, alpha_loss),
        None if mix is None else mix.objective.build_head,
    )


def _head_sections(
    settings: SearchSettings, weight_loss: Objective, alpha_loss: Objective
) -> tuple[PluginSection, PluginSection | None]:
    """The heads of the weights' loss and of the alphas' loss; None for the latter if both share one.

    They share a head only if both heads would be identical.
    """
    head = resolve_head(settings.head, weight_loss)
    if settings.alpha_loss.name == "none":
        return head, None
    own = resolve_head(PluginSection(name="auto"), alpha_loss)
    return head, None if own == head and own.name != "auto" else own
