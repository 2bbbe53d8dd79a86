"""The reference of the settings, from their models, and of the plugins, from their registries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from generator.commands import flags_by_name
from generator.markdown import code, table, text
from generator.schemas import Described, show_value
from registry import REGISTRIES
from ssfnas_cli.commands.plugins import describe_plugin
from ssfnas_cli.settings import (
    PRESETS,
    RECIPES,
    AdjustSettings,
    MakeDatasetSettings,
    PerturbationSettings,
    RetrainSettings,
    SearchSettings,
)
from ssfnas_cli.settings.base import Settings, flatten
from ssfnas_cli.settings.cost import CostAware
from ssfnas_cli.settings.execution import Execution
from ssfnas_cli.settings.federated import Federated
from ssfnas_cli.settings.models import SelfSupervised, Training, Views
from ssfnas_cli.settings.partial import Partial


class Group(NamedTuple):
    """Settings that are listed together: the fields that a model adds to those that it inherits."""

    title: str
    model: type[Settings]
    commands: tuple[str, ...]
    prefix: str = ""


GROUPS = (
    Group("make-dataset", MakeDatasetSettings, ("make-dataset",)),
    Group("search", SearchSettings, ("search",)),
    Group("A federated search", Federated, ("search",)),
    Group("Partial channels", Partial, ("search",)),
    Group("The cost of the derived network", CostAware, ("search",)),
    Group("retrain", RetrainSettings, ("retrain",)),
    Group("search and retrain", Training, ("search", "retrain")),
    Group("Self-supervised views", Views, (), "views."),
    Group("A self-supervised loss beside the supervised one", SelfSupervised, (), "ssl."),
    Group("adjust", AdjustSettings, ("adjust",)),
    Group("derive --rule perturbation", PerturbationSettings, ("derive",)),
    Group("How a run is executed", Execution, ("search", "retrain", "adjust", "derive")),
)


KINDS = MakeDatasetSettings.PLUGIN_KINDS | SearchSettings.PLUGIN_KINDS | RetrainSettings.PLUGIN_KINDS


def names(group: Group) -> list[str]:
    """The settings of a group.

    `epochs` and the like, which `Training` only declares, are with the models that give them their defaults. Settings
    within others are a group of their own.
    """
    own = vars(group.model)["__annotations__"]
    return [
        name
        for name, field in group.model.model_fields.items()
        if name in own
        and not isinstance(field.default, Settings)
        and not (group.model is Training and field.is_required())
    ]


def tables() -> str:
    """A section and a table for every group of settings."""
    return "\n".join(f"## {group.title}\n\n{_table(group)}" for group in GROUPS)


def presets() -> str:
    """What each preset sets, for search and for retraining."""
    parts = []
    for command, model in {"search": SearchSettings, "retrain": RetrainSettings}.items():
        changes = {name: flatten(values) for name, values in (PRESETS[model] | RECIPES.get(model, {})).items()}
        parts += [f"### Presets of {command}\n", _preset_table(model, changes)]
    return "\n".join(parts)


def _preset_table(model: type[Settings], changes: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each setting that a preset changes; a preset that leaves it alone has the default, a recipe nothing."""
    keys = dict.fromkeys(key for values in changes.values() for key in values)
    rows = []
    for key in keys:
        cells = [
            show_value(values[key]) if key in values else _default(model, key) if name in PRESETS[model] else ""
            for name, values in changes.items()
        ]
        rows.append([code(key), *cells])
    return table(["setting", *map(code, changes)], rows)


def _default(model: type[Settings], key: str) -> str:
    first, _, rest = key.partition(".")
    value = model.model_fields[first].default
    return show_value(getattr(value, rest, None) if rest else value)


def _table(group: Group) -> str:
    described = Described(group.model)
    flags: dict[str, str] = {}
    for command in group.commands:
        flags |= flags_by_name(command)
    rows = []
    for name in names(group):
        kind = KINDS.get(name) if group.prefix == "" else group.model.PLUGIN_KINDS.get(name)
        values = described.values(name) if kind is None else f"a [{kind}](plugins.md#{kind})"
        flag = f"<br>{code(flags[name])}" if name in flags else ""
        rows.append([code(group.prefix + name) + flag, values, described.default(name), described.what(name)])
    return table(["setting", "values", "default", "what it is"], rows)


def plugins() -> str:
    """A section for every kind of plugin, with the built-in ones and their options."""
    return "\n".join(_kind(kind) for kind in REGISTRIES)


def _kind(kind: str) -> str:
    entries = [describe_plugin(kind, name) for name in REGISTRIES[kind].names()]
    builtin = [entry for entry in entries if entry.get("origin") == "builtin"]
    rows = [[_names(same), _summary(same), _options(same[0]["options"])] for same in _alike(builtin)]
    return f"## {kind}\n\n{table(['name', 'what it is', 'options'], rows)}"


def _alike(entries: Iterable[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Plugins that have the same words and options, such as torchvision's networks, in one row."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        rows.setdefault(f"{_nameless(entry)}{entry['options']}", []).append(entry)
    return list(rows.values())


def _summary(entries: Sequence[Mapping[str, Any]]) -> str:
    return text(entries[0]["summary"] if len(entries) == 1 else _nameless(entries[0]))


def _nameless(entry: Mapping[str, Any]) -> str:
    return str(entry["summary"]).replace(f"torchvision's {entry['name']}", "torchvision's network of that name")


def _names(entries: Iterable[Mapping[str, Any]]) -> str:
    return ", ".join(code(entry["name"]) for entry in entries)


def _options(options: Mapping[str, Mapping[str, Any]]) -> str:
    return "<br>".join(
        f"{code(name)} ({show_value(option['default'])}): {text(option['description'])}"
        for name, option in options.items()
    )
