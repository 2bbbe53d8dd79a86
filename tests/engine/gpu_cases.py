"""Searches and retrainings of which a step is taken on the CPU and on a GPU, and what else runs in steps."""

import numpy as np
import torch

from registry import LOSSES
from registry.cost import SearchCost
from ssfnas_cli.artifacts.named import named_genotype
from ssfnas_cli.data.build import build_dataset
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.loop import seed_for_step
from ssfnas_cli.engine.network import make_card
from ssfnas_cli.engine.retrain import build_phases
from ssfnas_cli.engine.search_phase import SearchPhase
from ssfnas_cli.settings import MakeDatasetSettings, RetrainSettings, SearchSettings, load_settings

SEARCH = {
    "channels": 4,
    "layers": 3,
    "batch_size": 8,
    "epochs": 3,
    "ops": ("none", "max_pool_3x3", "skip_connect"),
    "alpha_lr": 0.05,
}
RETRAIN = {"channels": 4, "layers": 3, "batch_size": 8, "epochs": 3}

# What is set beside these; flags stand without a dot.
SEARCHES = {
    "softmax": {"ops": ("none", "max_pool_3x3", "skip_connect", "dil_conv_3x3")},
    "softmax, second order": {"order": 2},
    "sigmoid, barlow": {"relax": "sigmoid", "loss": "barlow"},
    "dirichlet": {"relax": "dirichlet", "relax.kl_weight": 0.1},
    "gumbel": {"relax": "gumbel"},
    "partial channels, a self-supervised loss beside": {
        "partial_channels": 2,
        "edge_weights": False,
        "ssl.loss": "simsiam",
        "alpha_optimizer": "sgd",
    },
    "weights of edges, second order, two losses": {
        "partial_channels": 2,
        "edge_weights": True,
        "order": 2,
        "loss": "vicreg",
        "alpha_loss": "ce",
    },
    "progressive, skip dropout, beta decay": {
        "strategy": "progressive",
        "ops": ("none", "max_pool_3x3", "skip_connect", "avg_pool_3x3"),
        "strategy.ops": "4,3,2",
        "strategy.add_layers": "0,0,0",
        "strategy.skip_dropout": "0.5,0.5,0.5",
        "strategy.beta_decay": 1.0,
    },
    "single paths": {"strategy": "random"},
}
RETRAININGS = {
    "retrain, everything": {
        "aux_weight": 0.4,
        "drop_path": 0.2,
        "mixup": 0.5,
        "ema": 0.9,
        "loss.label_smoothing": 0.1,
        "sampler": "class_balanced",
    },
    "retrain, a self-supervised loss beside": {"cutmix": 1.0, "ssl.loss": "barlow"},
    "pretrain": {"pretrain": "barlow"},
}
CASES = SEARCHES | RETRAININGS


def digits(folder):
    """A long-tailed data set of grey digits of 8x8 pixels."""
    return build_dataset(MakeDatasetSettings(mu=0.5, max_per_class=8), folder, lambda line: None)


def build(name, data, device):
    """The first phase of a case."""
    given = CASES[name]
    sets = [f"{key}={value}" for key, value in given.items() if "." in key]
    flags = {key: value for key, value in given.items() if "." not in key}
    if name in SEARCHES:
        settings = load_settings(SearchSettings, sets=sets, flags={**SEARCH, **flags}).resolve_plugins()
        return SearchPhase(settings, data, device)
    settings = load_settings(RetrainSettings, sets=sets, flags={**RETRAIN, **flags}).resolve_plugins()
    genotype = None if "network" in flags else named_genotype("DARTS_V2")
    phases, _ = build_phases(make_card(genotype, settings, data), settings, data, device)
    return phases[0]


def run(phase):
    """What its first step reports."""
    seed_for_step(phase.seed, 0, 0)
    return phase.step(0, 0, next(iter(phase.batches(0, 0))))


def take_step(name, data, device: Device):
    """What the first step of a case reports, as numbers."""
    return {key: float(value) for key, value in run(build(name, data, device)).items()}


def loss_of(name, device):
    """A loss of three classes on random outputs of its head, and its gradient."""
    plugin = LOSSES.get(name)
    objective = plugin.factory(plugin.parse_options({}), num_classes=3, class_counts=[9, 4, 2])
    numbers = torch.Generator().manual_seed(0)
    outputs = [torch.randn(8, 3, generator=numbers).to(device, non_blocking=True) for _ in range(4)]
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0]).to(device, non_blocking=True)
    leaves = [output.requires_grad_() for output in outputs]
    views = [tuple(leaves[:2]), tuple(leaves[2:])] if objective.reads == "pairs" else leaves[: objective.num_views]
    loss = objective(views, labels, 1.0)
    loss.backward()
    return loss


def cost_of(device):
    """The penalty of an expected cost, and its gradient."""
    cost = SearchCost({"normal": np.arange(42.0).reshape(14, 3)}, fixed=1.0, choices=[1, 2], kept=2, weight=0.5)
    alphas = torch.linspace(-1, 1, 42).reshape(14, 3).to(device, non_blocking=True).requires_grad_()
    weights = torch.softmax(alphas, dim=-1)
    penalty = cost.penalty(cost.expected({"normal": weights}), {"normal": weights})
    penalty.backward()
    return penalty
