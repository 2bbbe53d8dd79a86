"""The commands of the stages: what their tables may hold, how settings become flags, and whether a command takes them.

A command is checked by the settings that it itself reads, from the same words, so that nothing is begun that would be
refused hours later. Torch is imported only where options of plugins are to be checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from registry import NETWORKS
from ssfnas_cli.errors import UsageError
from ssfnas_cli.settings import (
    PERTURBATION_RULE,
    PRESETS,
    AdjustSettings,
    MakeDatasetSettings,
    RetrainSettings,
    SearchSettings,
    Settings,
    Training,
    load_settings,
    merge_layers,
    parse_set,
    refuse_useless,
)
from ssfnas_cli.settings.base import MAX_LAYERS, Channels
from ssfnas_cli.settings.cost import Amount
from ssfnas_cli.sweep.axes import PRESET


class DeriveSettings(Settings):
    """The flags of `derive`."""

    rule: str = ""
    threshold: Literal["auto"] | float = "auto"
    epoch: int = Field(0, ge=0)
    max_skips: int = Field(0, ge=0)
    candidate: int = Field(0, ge=0)
    max_params: Amount = 1.0
    max_macs: Amount = 1.0
    cost_channels: Channels = 36
    cost_layers: int = Field(20, ge=1, le=MAX_LAYERS)


class EvaluateSettings(Settings):
    """The flags of `evaluate`, and the splits, of which a list is no axis."""

    split: tuple[Literal["train", "val", "test", "test_longtail"], ...] = ()
    device: str = "auto"
    threads: int = Field(0, ge=0, le=1024)


MODELS: dict[str, type[Settings]] = {
    "data": MakeDatasetSettings,
    "search": SearchSettings,
    "derive": DeriveSettings,
    "retrain": RetrainSettings,
    "adjust": AdjustSettings,
    "evaluate": EvaluateSettings,
}
COMMANDS = {"data": "make-dataset"}  # where a stage's command has another name than its table
_TRAINING = ("epochs", "batch_size", "channels", "layers", "stem", "seed", "device", "workers", "precision")
FLAGS = {  # the settings that have a flag; the others are given by --set
    "data": ("source", "root", "dist", "mu", "max_per_class", "test_share", "val_share", "image_size", "seed"),
    "search": (
        *("strategy", "relax", "loss", "order", *_TRAINING),
        *("cost", "cost_target", "cost_channels", "cost_layers", "cost_table"),
    ),
    "derive": tuple(DeriveSettings.model_fields),
    "retrain": ("loss", "pretrain", "pretrain_epochs", *_TRAINING),
    "adjust": ("method", "tau", "from_prior", "epochs", "batch_size", "lr", "device", "workers"),
    "evaluate": tuple(EvaluateSettings.model_fields),
}
OWN = {  # what the sweep itself decides
    "data": "[data] names the data set, and each stage gets the one that it belongs to",
    "network": "networks are named in [networks]",
    "max_time": "the sweep has --max-time",
}
_BARE = re.compile(r"[A-Za-z0-9_./+-]+")


def flat_settings(stage: str, layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings of a command, flat, from layers of which the later ones win; presets stand apart.

    Raises:
        UsageError: a setting is one that the sweep decides.
    """
    layers = [{key: value for key, value in layer.items() if key != PRESET} for layer in layers]
    for layer in layers:
        for key, why in OWN.items():
            if key in layer and stage != "data":
                raise UsageError(f"{key}: {why}")
    return merge_layers(MODELS[stage], layers)


def presets_of(layers: Sequence[Mapping[str, Any]]) -> list[str]:
    """The presets of the layers, each once: those of a later layer lie over those of an earlier one."""
    named: dict[str, None] = {}
    for layer in layers:
        value = layer.get(PRESET, [])
        named |= dict.fromkeys(value if isinstance(value, list) else [value])
    if wrong := [name for name in named if not isinstance(name, str)]:
        raise UsageError(f"{PRESET}: {wrong[0]!r} is no name of a preset")
    return list(named)


def flags_of(stage: str, settings: Mapping[str, Any], presets: Sequence[str] = ()) -> list[str]:
    """Settings as words of a command line: flags where there are some, else `--set KEY=VALUE`."""
    words = [word for name in presets for word in ("--preset", name)]
    for key, value in settings.items():
        if stage == "evaluate" and key == "split":
            words += [word for name in value for word in ("--split", str(name))]
        elif key in FLAGS[stage] and not isinstance(value, dict | list):
            words += [f"--{key.replace('_', '-')}", word_of(value)]
        elif key == "threads" and stage != "data":
            words += ["--threads", word_of(value)]
        else:
            words += ["--set", f"{key}={toml_value(value, key)}"]
    return words


def word_of(value: Any) -> str:
    """A value as a flag takes it."""
    return value if isinstance(value, str) else toml_value(value)


def toml_value(value: Any, key: str = "") -> str:
    """A value as `--set` reads it: TOML, or a bare word where that is read as the same.

    Args:
        value: from TOML.
        key: that of the setting if it may be a bare word; within a list it may not.
    """
    if isinstance(value, str):
        is_bare = bool(key) and _BARE.fullmatch(value) is not None and parse_set(f"key={value}") == {"key": value}
        return value if is_bare else json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(name)} = {toml_value(one)}' for name, one in value.items())}}}"
    return json.dumps(value) if isinstance(value, bool | int | float) else str(value)


def check_settings(
    stage: str, settings: Mapping[str, Any], presets: Sequence[str], network: str | None, has_data: bool
) -> Settings:
    """The settings as the stage's command will read them, refused if it would refuse them.

    Args:
        stage: the stage.
        settings: flat.
        presets: their names.
        network: the name of a plain network that is trained, or None.
        has_data: whether the command is given a data set; without it the preset is the one for the embedded digits.

    Raises:
        UsageError: the message names the setting.
        PluginError: so does it, if an option of a plugin is wrong.
    """
    model = MODELS[stage]
    if stage == "evaluate":
        settings = {key: _as_list(value) if key == "split" else value for key, value in settings.items()}
    sets = [f"{key}={toml_value(value, key)}" for key, value in settings.items()]
    fixed = {} if network is None else {key: f"'{network}' has its own" for key in RetrainSettings.OF_CELLS}
    if issubclass(model, Training):
        has_budget = any(name in PRESETS[model] for name in presets)
        presets = presets if has_budget else ["standard" if has_data else "quick", *presets]
    loaded = load_settings(model, preset=presets, sets=sets, flags={"network": network}, fixed=fixed)
    if isinstance(loaded, AdjustSettings):
        refuse_useless(loaded)
    if isinstance(loaded, DeriveSettings) and loaded.rule:
        _check_rule(loaded.rule)
    if _has_options(model, settings):
        loaded.resolve_plugins()
    return loaded


def last_epoch(search: SearchSettings) -> int:
    """The last epoch that `derive` finds in a finished search; rounds of candidates count as epochs."""
    if search.strategy.name == "gradient":  # which needs no torch to tell
        return search.epochs
    from ssfnas_cli.engine.strategy import build_strategy

    strategy = build_strategy(search.resolve_plugins())
    return strategy.supernet_epochs + strategy.num_rounds


def is_plain(network: str) -> bool:
    """Whether a name is that of a network in the registry, which has a width and a depth of its own."""
    return network in NETWORKS.names()


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _check_rule(rule: str) -> None:
    from ssfnas_cli.engine.rules import RULES

    if rule == PERTURBATION_RULE:
        raise UsageError(f"rule: '{rule}' is a run of its own, which no sweep makes: derive by it with 'ssfnas derive'")
    if rule not in RULES:
        raise UsageError(f"rule: unknown rule '{rule}'. Known: {', '.join(RULES)}")


def _has_options(model: type[Settings], settings: Mapping[str, Any]) -> bool:
    """Whether the settings hold an option of a plugin or of an op."""
    sections = (*model.plugin_defaults(), "op_options")
    return any(key.startswith(f"{section}.") for key in settings for section in sections)
