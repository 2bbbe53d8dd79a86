"""The settings of each command: what can be set (`models`), and where it comes from (`layers`)."""

from ssfnas_cli.settings.layers import PRESETS, load_settings, to_toml
from ssfnas_cli.settings.models import (
    PAPER_OPS,
    Execution,
    MakeDatasetSettings,
    PluginSection,
    RetrainSettings,
    SearchSettings,
    SelfSupervised,
    Settings,
    Training,
    Views,
    build_plugin,
    flatten,
    identity_hash,
)

__all__ = [
    "PAPER_OPS",
    "PRESETS",
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
