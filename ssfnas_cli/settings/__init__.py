"""The settings of each command: what can be set (`base`, `models`), and where it comes from (`layers`)."""

from ssfnas_cli.settings.base import PluginSection, Settings, build_plugin, flatten, identity_hash
from ssfnas_cli.settings.layers import PRESETS, RECIPES, load_settings, to_toml
from ssfnas_cli.settings.models import (
    PAPER_OPS,
    Execution,
    MakeDatasetSettings,
    RetrainSettings,
    SearchSettings,
    SelfSupervised,
    Training,
    Views,
)

__all__ = [
    "PAPER_OPS",
    "PRESETS",
    "RECIPES",
    "Execution",
    "MakeDatasetSettings",
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
    "to_toml",
]
