"""The settings of each command: what can be set (`base`, `dataset`, `models`), and where it comes from (`layers`)."""

from ssfnas_cli.settings.adjust import ADJUST_METHODS, AdjustSettings, refuse_useless
from ssfnas_cli.settings.base import PluginSection, Settings, build_plugin, flatten, identity_hash
from ssfnas_cli.settings.cost import CostName, parse_amount, show_amount
from ssfnas_cli.settings.dataset import MakeDatasetSettings
from ssfnas_cli.settings.layers import (
    PRESETS,
    RECIPES,
    load_settings,
    merge,
    merge_layers,
    parse_set,
    read_configs,
    read_toml,
    to_toml,
)
from ssfnas_cli.settings.models import (
    PAPER_OPS,
    Execution,
    RetrainSettings,
    SearchSettings,
    SelfSupervised,
    Training,
    Views,
)
from ssfnas_cli.settings.perturbation import PERTURBATION_RULE, PerturbationSettings

__all__ = [
    "ADJUST_METHODS",
    "PAPER_OPS",
    "PERTURBATION_RULE",
    "PRESETS",
    "RECIPES",
    "AdjustSettings",
    "CostName",
    "Execution",
    "MakeDatasetSettings",
    "PerturbationSettings",
    "PluginSection",
    "RetrainSettings",
    "SearchSettings",
    "SelfSupervised",
    "Settings",
    "Training",
    "Views",
    "build_plugin",
    "flatten",
    "identity_hash",
    "load_settings",
    "merge",
    "merge_layers",
    "parse_amount",
    "parse_set",
    "read_configs",
    "read_toml",
    "refuse_useless",
    "show_amount",
    "to_toml",
]
