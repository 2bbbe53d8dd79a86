"""The width at which a derived network has as many weights as others, so that accuracies tell cells, not sizes."""

from __future__ import annotations

import functools
import math

import torch

from ssfnas_cli.artifacts.model import DerivedNetwork, ModelCard
from ssfnas_cli.console import log
from ssfnas_cli.engine.network import build_model
from ssfnas_cli.errors import UsageError
from ssfnas_cli.nets.count import count_params

STEP, MOST = 2, 4096  # channels of the first cells are even


def match_channels(card: ModelCard, num_params: float) -> ModelCard:
    """The card of the same network with the channels whose number of weights is nearest, auxiliary head aside.

    Channels are even, and two more are some 4/channels of the weights: of 20 channels it comes within a tenth.

    Raises:
        UsageError: the narrowest or the widest network is further away than twice.
    """
    assert isinstance(card.network, DerivedNetwork)
    count = functools.cache(functools.partial(_weights, card))
    # Weights grow about as the square of the channels: from a first width that is close to one that is too wide.
    first = card.network.channels * math.sqrt(num_params / count(card.network.channels))
    high = min(max(STEP, round(first) // STEP * STEP), MOST)
    while high < MOST and count(high) < num_params:
        high += STEP
    while high > STEP and count(high - STEP) >= num_params:
        high -= STEP
    counts = {channels: count(channels) for channels in (max(STEP, high - STEP), high)}
    nearest = min(counts, key=lambda channels: abs(counts[channels] - num_params))
    if not 0.5 <= counts[nearest] / num_params <= 2:
        raise UsageError(
            f"--set match_params={num_params:,.0f}: with {nearest} channels this network has {counts[nearest]:,} "
            "weights, and no width comes nearer: match another number"
        )
    log.info("channels: %d, for %s weights (match_params=%s)", nearest, f"{counts[nearest]:,}", f"{num_params:,.0f}")
    return _with_channels(card, nearest)


def _with_channels(card: ModelCard, channels: int) -> ModelCard:
    assert isinstance(card.network, DerivedNetwork)
    return card.model_copy(update={"network": card.network.model_copy(update={"channels": channels})})


def _weights(card: ModelCard, channels: int) -> int:
    with torch.device("meta"):
        model = build_model(_with_channels(card, channels))
    model.aux = None
    return count_params(model)
