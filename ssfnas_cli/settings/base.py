"""What settings are: a model of names, defaults and bounds, in which a plugin is a section; `models.py` lists them."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from registry import REGISTRIES, PluginError
from registry.checked import Checked
from ssfnas_cli.console import log

Model = TypeVar("Model", bound="Settings")

# Far beyond what any machine trains, so that a slip of the finger is refused before memory is asked for.
PositiveInt = Annotated[int, Field(ge=1, le=1_000_000)]
Channels = Annotated[int, Field(ge=2, le=65_536, multiple_of=2)]
MAX_LAYERS = 1000


class PluginSection(BaseModel):
    """A plugin's name and its options, as given; `resolve_plugins` checks and completes them."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    def options(self) -> dict[str, Any]:
        """The options given beside the name."""
        return dict(self.model_extra or {})


def as_section(value: Any) -> Any:
    """A plugin's bare name as a section."""
    return {"name": value} if isinstance(value, str) else value


Section = Annotated[PluginSection, BeforeValidator(as_section)]


class Settings(Checked):
    """Base of every command's settings: unknown keys and numbers that are not finite are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    PLUGIN_KINDS: ClassVar[dict[str, str]] = {}  # section -> registry
    PLACE: ClassVar[str] = ""  # how a setting of settings that lie within others begins

    @classmethod
    def plugin_defaults(cls) -> dict[str, str]:
        """The path of every plugin's section, such as `loss` or `ssl.loss`, and the name that it has by default."""
        paths = {section: cls.model_fields[section].default.name for section in cls.PLUGIN_KINDS}
        for name, field in cls.model_fields.items():
            if isinstance(field.default, Settings):
                paths |= {f"{name}.{path}": default for path, default in type(field.default).plugin_defaults().items()}
        return paths

    def plugin_names(self) -> dict[str, str]:
        """The path of every plugin's section, and the name that it has here."""
        sections: dict[str, Any] = {
            path: functools.reduce(getattr, path.split("."), self) for path in self.plugin_defaults()
        }
        return {path: section.name for path, section in sections.items()}

    @field_validator("*", mode="after")
    @classmethod
    def _plugin_is_known(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, PluginSection) or info.field_name not in cls.PLUGIN_KINDS:
            return value
        if is_placeholder(value):
            if value.name != cls.model_fields[info.field_name].default.name:
                REGISTRIES[cls.PLUGIN_KINDS[info.field_name]].get(value.name)  # raises: no plugin has that name
            if value.options():
                raise ValueError(f"options without a plugin: name one with '--set {cls.PLACE}{info.field_name}=NAME'")
            return value
        kind = REGISTRIES[cls.PLUGIN_KINDS[info.field_name]]
        if value.name not in kind.names():
            kind.get(value.name)  # raises, with a suggestion
        return value

    def refused(self) -> frozenset[str]:
        """The settings that may not be given beside the others, so `--show-settings` leaves them out."""
        return frozenset()

    def unused(self) -> frozenset[str]:
        """The paths of the settings that mean nothing beside the others, `refused` ones among them.

        They are no part of a run's identity, and runs that differ in them are compared as equal.
        """
        inner = {name: value for name, value in self if isinstance(value, Settings)}
        return self.refused() | {f"{name}.{path}" for name, value in inner.items() for path in value.unused()}

    def resolve_plugins(self: Model) -> Model:
        """The same settings with every option of every plugin spelled out. Imports the plugins, so torch."""
        inner = {name: value for name, value in self if isinstance(value, Settings)}
        changes: dict[str, Any] = {name: value.resolve_plugins() for name, value in inner.items()}
        for field, kind in self.PLUGIN_KINDS.items():
            section = getattr(self, field)
            if is_placeholder(section):
                continue
            _warn_of_clash(kind, section.name)
            plugin = REGISTRIES[kind].get(section.name)
            try:
                options = plugin.parse_options(section.options())
            except PluginError as error:
                named = f"{field}.{error.option}" if error.option else field  # it may be of several options together
                raise PluginError(f"setting '{named}': {error}", error.option) from None
            changes[field] = PluginSection(name=section.name, **options.model_dump(by_alias=True, mode="json"))
        return self.model_copy(update=changes)


@functools.cache
def _warn_of_clash(kind: str, name: str) -> None:
    """Once, if an installed package brings a plugin whose name has become a built-in's."""
    if clash := REGISTRIES[kind].clashes().get(name):
        log.warning("%s", clash)


def is_placeholder(section: PluginSection) -> bool:
    """Whether a section names no plugin: `none` leaves it out, `auto` leaves the choice to another setting."""
    return section.name in ("none", "auto")


def build_plugin(registry: Any, section: PluginSection, **context: Any) -> Any:
    """The object that a section of the settings stands for."""
    plugin = registry.get(section.name)
    return plugin.build(plugin.parse_options(section.options()), **context)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Keys joined by dots as a tree; no key is the beginning of another."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *above, last = path.split(".")
        place = tree
        for key in above:
            place = place.setdefault(key, {})
        place[last] = value
    return tree


def identity_hash(identity: Mapping[str, Any]) -> str:
    """Eight hex digits that name an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
