"""Construction of the strategy of a search from its settings."""

from __future__ import annotations

import torch

from registry import RELAXATIONS, STRATEGIES
from registry.cost import SearchCost
from registry.relaxations import Relaxation
from registry.strategies.base import SearchContext, Strategy
from ssfnas_cli.settings import SearchSettings, build_plugin


def build_strategy(
    settings: SearchSettings, device: torch.device | str = "cpu", cost: SearchCost | None = None
) -> Strategy:
    """Build the strategy of a search. `auto` in the settings of the alphas means the relaxation's default.

    Without `cost` it does nothing about the cost that the settings name: to read a record, or to ask a supernet.
    """
    relaxation: Relaxation = build_plugin(RELAXATIONS, settings.relax)
    decay = settings.alpha_weight_decay
    context = SearchContext(
        ops=settings.ops,
        epochs=settings.epochs,
        seed=settings.seed,
        device=torch.device(device),
        relaxation=relaxation,
        order=settings.order,
        warmup_epochs=settings.warmup_epochs,
        alpha_lr=relaxation.lr if settings.alpha_lr == "auto" else settings.alpha_lr,
        alpha_betas=relaxation.betas if settings.alpha_betas == "auto" else settings.alpha_betas,
        alpha_weight_decay=relaxation.weight_decay if decay == "auto" else decay,
        alpha_optimizer=settings.alpha_optimizer,
        partial_channels=settings.partial_channels,
        edge_weights=settings.weighs_edges,
        cost=cost,
    )
    return build_plugin(STRATEGIES, settings.strategy, context=context)
