"""Strategies on a space of a few ops, without a search."""

from collections.abc import Sequence
from typing import Any

import torch

from registry import RELAXATIONS, STRATEGIES
from registry.strategies.base import SearchContext, Strategy


def build_strategy(
    name: str, options: dict[str, Any], ops: Sequence[str], seed: int = 0, relax: str = "softmax", **relax_options: Any
) -> Strategy:
    """A strategy for four epochs, with a relaxation for those that take one."""
    plugin, relaxation = STRATEGIES.get(name), RELAXATIONS.get(relax)
    context = SearchContext(
        ops=tuple(ops),
        epochs=4,
        seed=seed,
        device=torch.device("cpu"),
        relaxation=relaxation.factory(relaxation.parse_options(relax_options)),
        order=1,
        warmup_epochs=0,
        alpha_lr=0.1,
        alpha_betas=(0.5, 0.999),
        alpha_weight_decay=0.0,
    )
    return plugin.factory(plugin.parse_options(options), context=context)
