"""The layers that settings come from: flags > `--set key=value` > `--config FILE.toml` > the preset > the defaults.

A plugin is a section: its `name` and its options, so that `--set loss.lambda=0.005` sits beside `--loss barlow`. A
section whose name a higher layer changes forgets the options of the lower layers.
"""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from registry.core import did_you_mean
from ssfnas_cli.console import decode_text
from ssfnas_cli.errors import InputError, UsageError
from ssfnas_cli.settings.base import Model, PluginSection, Settings, as_section, flatten, nest
from ssfnas_cli.settings.dataset import MakeDatasetSettings
from ssfnas_cli.settings.models import RetrainSettings, SearchSettings

_FORMS = {"float", "int", "bool", "str"}  # how pydantic names the forms of a union in an error's place

# Many small steps on small networks, which some hundred photos on two cores allow. An alpha makes few steps, so it
# makes large ones.
_SMALL_SEARCH = {"batch_size": 32, "channels": 8, "layers": 4, "alpha_lr": 0.03, "views": {"min_scale": 0.5}}
_SMALL_RETRAINING = {"batch_size": 32, "layers": 5, "cutout": 0.25, "views": {"min_scale": 0.5}}

# `quick` is a trial of a minute or two. `standard` takes 5 to 15 minutes, for search and retraining together, on two
# cores and a few thousand small images. `paper` is what the paper states.
PRESETS: dict[type[Settings], dict[str, dict[str, Any]]] = {
    SearchSettings: {
        "quick": _SMALL_SEARCH | {"epochs": 3},
        "standard": _SMALL_SEARCH | {"epochs": 8},
        "paper": {"alpha_lr": 3e-4, "alpha_weight_decay": 1e-3},
    },
    RetrainSettings: {
        "quick": _SMALL_RETRAINING | {"epochs": 8, "pretrain_epochs": 6, "channels": 12, "drop_path": 0.0},
        "standard": _SMALL_RETRAINING | {"epochs": 40, "pretrain_epochs": 20, "channels": 16, "drop_path": 0.1},
        "paper": {},
    },
    MakeDatasetSettings: {},
}

# A recipe lies over one of the presets above, whose budget it keeps: `--preset paper --preset strong`. It has the parts
# that help in the tables of docs/longtail.md.
RECIPES: dict[type[Settings], dict[str, dict[str, Any]]] = {
    RetrainSettings: {
        "strong": {
            "loss": {"label_smoothing": 0.1},  # of `ce`; another loss forgets it, as it does every option of `ce`
            "lr_warmup_epochs": 2,
            "nesterov": True,
            "decay_bn": False,
        },
    },
}


class ConfigFile(NamedTuple):
    """A TOML file of settings. It is read once, since it may be a pipe."""

    name: str  # what messages call it
    layer: dict[str, Any]


def read_configs(paths: Sequence[Path] | None) -> list[ConfigFile]:
    """The files that `--config` names.

    Raises:
        InputError: one cannot be read, or is not TOML.
    """
    return [ConfigFile(f"--config {path}", read_toml(path, f"--config {path}")) for path in paths or ()]


def load_settings(
    model: type[Model],
    *,
    preset: str | Sequence[str] | None = None,
    configs: Sequence[ConfigFile] = (),
    sets: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    fixed: Mapping[str, str] | None = None,
) -> Model:
    """Settings from their layers.

    Args:
        preset: at most one of PRESETS, and any of RECIPES, which lie over it in the given order.
        configs: files, the later ones over those before them.
        flags: those whose value is None were not given.
        fixed: settings that nobody may give here, each with the reason. A preset's value for one is left out.

    Raises:
        UsageError: an unknown preset or setting, or a value out of range, named as the user wrote it.
    """
    presets = _preset_layers(model, [preset] if isinstance(preset, str) else preset or ())
    presets = [{key: value for key, value in layer.items() if key not in (fixed or {})} for layer in presets]
    for file in configs:
        _check_keys(model, file.layer, f"{file.name}: ")
    files = [file.layer for file in configs]
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    command_line = [*(parse_set(text) for text in sets), given]
    for layer in (*files, *command_line):
        for key in (fixed or {}).keys() & layer.keys():
            shown = f"--{key.replace('_', '-')}" if key in given else f"setting '{key}'"
            raise UsageError(f"{shown}: {(fixed or {})[key]}")
    defaults = model.plugin_defaults()
    merged = nest({path: {"name": name} for path, name in defaults.items()})
    for layer in (*presets, *files, _plugin_names(command_line, set(defaults)), *command_line):
        _check_keys(model, layer)
        merged = merge(merged, layer, set(defaults))
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        wrong = next(iter(error.errors()[0]["loc"]), "")
        said = [file.name for file in configs if wrong in file.layer and not any(wrong in one for one in command_line)]
        raise UsageError(": ".join([*said[-1:], _explain(error, set(given))])) from None


def _preset_layers(model: type[Settings], names: Sequence[str]) -> list[dict[str, Any]]:
    """The named presets as layers, the recipes last.

    Raises:
        UsageError: a name is unknown, or two of PRESETS are named, each of which sets the whole budget.
    """
    budgets, recipes = PRESETS.get(model, {}), RECIPES.get(model, {})
    known = [*budgets, *recipes]
    for name in names:
        if name not in known:
            raise UsageError(
                f"--preset: unknown preset '{name}'.{did_you_mean(name, known)} Available: {', '.join(known) or 'none'}"
            )
    chosen = [name for name in dict.fromkeys(names) if name in budgets]
    if len(chosen) > 1:
        raise UsageError(f"--preset: '{chosen[0]}' and '{chosen[1]}' each set the whole budget: give one of them")
    return [budgets[name] for name in chosen] + [recipes[name] for name in dict.fromkeys(names) if name in recipes]


def merge_layers(model: type[Settings], layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Layers of settings as one, the later ones winning, as `load_settings` lays them over each other.

    Args:
        model: what they are settings of.
        layers: trees, whose keys may also be paths with dots: `{"loss": "ldam", "loss.defer": 0.8}`.

    Returns:
        The settings that the layers give, as a flat dictionary; a plugin's name is under its section's path.
    """
    defaults = model.plugin_defaults()
    merged = nest({path: {"name": name} for path, name in defaults.items()})
    for layer in layers:
        for path in sorted(layer, key=lambda path: path.count(".")):  # a plugin's name before its options
            merged = merge(merged, nest({path: layer[path]}), set(defaults))
    usual = {f"{path}.name": name for path, name in defaults.items()}
    flat = {key: value for key, value in flatten(merged).items() if usual.get(key, ...) != value}
    return {key.removesuffix(".name") if key in usual else key: value for key, value in flat.items()}


def to_toml(settings: Settings) -> str:
    """All settings that mean something here, as TOML that `--config` reads back. None is not in it."""
    import tomli_w

    return tomli_w.dumps(_without_none(settings.model_dump(mode="json", exclude=set(settings.refused()))))


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value


def read_toml(path: Path, named: str) -> dict[str, Any]:
    """A TOML file; `named` is what messages call it.

    Raises:
        InputError: the file cannot be read, or is not TOML.
    """
    try:
        return _parse_toml(decode_text(path.read_bytes()))
    except FileNotFoundError:
        raise InputError(f"{named}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{named}: is a folder: name a TOML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{named}: cannot be read: {error}") from None
    except ValueError as error:
        raise InputError(f"{named}: is not TOML: {error}") from None


def _parse_toml(text: str) -> dict[str, Any]:
    """TOML.

    Raises:
        ValueError: it is none, is nested too deeply, or has a number of more digits than Python reads.
    """
    try:
        return tomllib.loads(text.replace("\r\n", "\n"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except tomllib.TOMLDecodeError:
        raise
    except ValueError:
        raise ValueError("it holds a number of too many digits") from None


def parse_set(text: str) -> dict[str, Any]:
    """`KEY=VALUE` as a layer of settings. A value is TOML, or else a bare word.

    Raises:
        UsageError: it has no `=`, or holds a number of more digits than Python reads.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set {text}: should look like key=value")
    try:
        parsed: Any = _parse_toml(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value  # a bare word
    except ValueError as error:
        raise UsageError(f"--set {key.strip()}: {error}") from None
    if isinstance(parsed, (datetime.date, datetime.time)):
        parsed = value  # 03:50:00 is a time of day to TOML, a duration to us
    tree: Any = parsed
    for part in reversed(key.strip().split(".")):
        tree = {part: tree}
    return tree


def _plugin_names(layers: Sequence[Mapping[str, Any]], sections: set[str]) -> dict[str, Any]:
    """The plugin of each section that the command line names, the last word if it names several.

    `--set relax.zero_one=l2` belongs to the plugin of `--relax sigmoid` beside it, though the flag ranks higher: so
    the names come before the options.
    """
    names: dict[str, Any] = {}
    for layer in layers:
        for path in sections:
            value: Any = layer
            for key in path.split("."):
                value = value.get(key) if isinstance(value, Mapping) else None
            value = as_section(value)
            if isinstance(value, Mapping) and "name" in value:
                names[path] = {"name": value["name"]}
    return nest(names)


def _check_keys(model: type[Settings], layer: Mapping[str, Any], where: str = "") -> None:
    known = sorted(model.model_fields)
    for key in layer:
        if key not in known and (plain := key.partition(".")[0]) in known:
            raise UsageError(f"{where}unknown setting '{key}': write it without quotes, or in the table [{plain}]")
        if key not in known:
            raise UsageError(f"{where}unknown setting '{key}'.{did_you_mean(key, known)} Known: {', '.join(known)}")


def merge(
    low: Mapping[str, Any], high: Mapping[str, Any], sections: Collection[str] = (), prefix: str = ""
) -> dict[str, Any]:
    """`high` over `low`; a plugin section whose name changes starts afresh. `sections` are paths, as `prefix` is."""
    merged = dict(low)
    for key, value in high.items():
        if prefix + key in sections:
            value, before = as_section(value), merged[key]
            if not isinstance(value, Mapping):  # neither a name nor a section: for the validation to refuse
                return {**merged, key: value}
            renamed = "name" in value and value["name"] != before.get("name", value["name"])
            merged[key] = dict(value) if renamed else {**before, **value}
        elif isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value, sections, f"{prefix}{key}.")
        else:
            merged[key] = value
    return merged


def _explain(error: ValidationError, flags: set[str]) -> str:
    """One line for the first setting that is wrong; a setting of several forms names them all."""
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else "settings"
    key = ".".join(str(part) for part in first["loc"] if str(part).isidentifier() and part not in _FORMS)
    if first["type"] == "extra_forbidden":
        return f"unknown setting '{key}'"
    shown = f"--{name.replace('_', '-')}" if name in flags else f"setting '{key}'"
    forms = [one for one in error.errors() if one["loc"][:1] == first["loc"][:1]]
    messages = [one["msg"].removeprefix("Value error, ") for one in forms]
    told = " or ".join(message.removeprefix("Input ") if place else message for place, message in enumerate(messages))
    got = "" if isinstance(first["input"], Mapping | PluginSection) else f" (got {first['input']!r})"
    return f"{shown}: {told}{got}"
