"""The settings of each command, and the one rule by which they are found.

flags > `--set key=value` > `--config FILE.toml` > the preset > the defaults below. A plugin is a section: its
`name` and its options, so that `--set loss.lambda=0.005` sits beside `--loss barlow`, and a section whose name a
higher layer changes forgets the options of the lower ones.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from registry import OPS, REGISTRIES
from registry.core import did_you_mean
from ssfnas_cli.errors import InputError, UsageError

_FORMS = {"float", "int", "bool", "str"}  # how pydantic names the forms of a union in an error's place
Model = TypeVar("Model", bound="Settings")

PAPER_OPS = (  # paper.md, IV-B
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)


class PluginSection(BaseModel):
    """A plugin's name and its options, as given; `resolve_plugins` checks and completes them."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    def options(self) -> dict[str, Any]:
        """The options given beside the name."""
        return dict(self.model_extra or {})


def _section(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _comma_list(value: Any) -> Any:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _seconds(value: Any) -> Any:
    """`3:50:00`, `50:00` or a number of seconds."""
    if isinstance(value, str) and value != "none":
        parts = value.split(":")
        if not 1 <= len(parts) <= 3 or not all(part.strip().replace(".", "", 1).isdigit() for part in parts):
            raise ValueError("should look like 3:50:00 (hours:minutes:seconds), 50:00 or 90")
        return sum(float(part) * 60**place for place, part in enumerate(reversed(parts)))
    return value


Section = Annotated[PluginSection, BeforeValidator(_section)]
PositiveInt = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Settings(BaseModel):
    """Base: unknown keys and non-finite numbers are refused; `identity` says what makes two runs the same."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    NOT_IDENTITY: ClassVar[frozenset[str]] = frozenset()
    PLUGIN_KINDS: ClassVar[dict[str, str]] = {}  # section -> registry

    @field_validator("*", mode="after")
    @classmethod
    def _plugin_is_known(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, PluginSection) or info.field_name not in cls.PLUGIN_KINDS:
            return value
        if value.name == "none" and cls.model_fields[info.field_name].default.name == "none":
            if value.options():
                raise ValueError(f"options without a plugin: name one with '--set {info.field_name}=NAME'")
            return value
        kind = REGISTRIES[cls.PLUGIN_KINDS[info.field_name]]
        if value.name not in kind.names():
            kind.get(value.name)  # raises, with a suggestion
        return value

    def resolve_plugins(self: Model) -> Model:
        """The same settings with every option of every plugin spelled out. Imports the plugins, so torch."""
        changes = {}
        for field, kind in self.PLUGIN_KINDS.items():
            section = getattr(self, field)
            if section.name == "none":
                continue
            options = REGISTRIES[kind].get(section.name).parse_options(section.options())
            changes[field] = PluginSection(name=section.name, **options.model_dump(by_alias=True, mode="json"))
        return self.model_copy(update=changes)

    def identity(self) -> dict[str, Any]:
        """The settings that change results, flat: `{"loss.lambda": 0.0051, ...}`."""
        return flatten(self.model_dump(mode="json", exclude=set(self.NOT_IDENTITY)))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def identity_hash(identity: Mapping[str, Any]) -> str:
    """Eight hex digits that name an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]


class MakeDatasetSettings(Settings):
    """What `make-dataset` builds."""

    source: Literal["digits", "cifar10", "cifar100", "folder", "npz"] = "digits"
    root: str = Field("", description="folder or file the source reads")
    dist: Literal["balance", "step", "exp", "natural"] = "exp"
    mu: float = Field(0.1, gt=0, le=1, description="imbalance factor")
    max_per_class: int = Field(0, ge=0, description="images of the largest class; 0: as many as the source has")
    image_size: Literal["auto"] | Annotated[int, Field(ge=8)] = "auto"
    seed: int = Field(0, ge=0)
    on_bad: Literal["skip", "fail"] = "fail"
    shard_mb: PositiveInt = 64


class Execution(Settings):
    """How a run is carried out: nothing here changes its results (up to the last bits)."""

    data: str = Field("", description="data set folder; empty: the embedded one, or the genotype's")
    device: str = "auto"
    threads: int = Field(0, ge=0, description="0: torch's own choice")
    workers: int = Field(0, ge=0, description="loader processes; 0: the main process loads")
    kernels: Literal["auto", "compiled", "torch"] = Field(
        "auto",
        description="what computes cells (on a CPU, fp32) and views; auto: compiled if there is a C++ compiler",
    )
    save_minutes: float = Field(10.0, gt=0, description="minutes between checkpoints; one follows every epoch")
    keep_checkpoints: int = Field(2, ge=1)
    log_seconds: float = Field(30.0, gt=0, description="between progress lines off a terminal")
    max_time: Annotated[Literal["none"] | Annotated[float, Field(ge=0)], BeforeValidator(_seconds)] = "none"

    NOT_IDENTITY = frozenset(
        {
            "data",
            "device",
            "threads",
            "workers",
            "kernels",
            "save_minutes",
            "keep_checkpoints",
            "log_seconds",
            "max_time",
        }
    )


class Views(Settings):
    """The augmentation of self-supervised views (Barlow Twins; REFERENCE gives its probabilities)."""

    min_scale: float = Field(0.2, gt=0, le=1, description="smallest share of the image a random crop keeps")
    brightness: float = Field(0.4, ge=0, le=1)
    contrast: float = Field(0.4, ge=0, le=1)
    saturation: float = Field(0.2, ge=0, le=1)
    hue: float = Field(0.1, ge=0, le=0.5)
    jitter_probability: float = Field(0.8, ge=0, le=1)
    gray_probability: float = Field(0.2, ge=0, le=1)
    blur: bool = Field(False, description="blur with probability 1.0 and 0.1; not for small images")
    solarize_probability: float = Field(0.2, ge=0, le=1, description="of the second view only")


class Training(Execution):
    """What search and retraining share."""

    seed: int = Field(0, ge=0, lt=2**63)
    epochs: PositiveInt
    batch_size: int = Field(64, ge=2, description="at least 2: batch statistics need two images")
    channels: Annotated[int, Field(ge=2, multiple_of=2)]
    layers: int
    lr: Rate = 0.025
    lr_min: float = Field(0.001, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(3e-4, ge=0)
    clip: Rate = 5.0
    precision: Literal["fp32", "bf16"] = "fp32"
    flip: Literal["auto"] | bool = Field("auto", description="auto: unless mirroring changes the data set's classes")
    track_test: bool = Field(False, description="accuracy on the held-out splits every epoch (paper, Fig. 7 and 8)")
    views: Views = Views()


class SearchSettings(Training):
    """A search. The defaults are the paper's (IV-B, IV-C), where it is silent those of DARTS."""

    relax: Section = PluginSection(name="softmax")
    loss: Section = PluginSection(name="ce")
    alpha_loss: Section = Field(PluginSection(name="none"), description="none: the alpha step uses `loss` too")
    order: Literal[1, 2] = 1
    epochs: PositiveInt = 40
    channels: Annotated[int, Field(ge=2, multiple_of=2)] = 16
    layers: int = Field(8, ge=3)
    ops: Annotated[tuple[str, ...], BeforeValidator(_comma_list), Field(min_length=1)] = PAPER_OPS
    op_options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    alpha_lr: Literal["auto"] | Rate = Field("auto", description="auto: the relaxation's default")
    alpha_betas: Literal["auto"] | tuple[Beta, Beta] = "auto"
    alpha_weight_decay: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"
    warmup_epochs: int = Field(0, ge=0, description="epochs at the start in which the alphas stay fixed")
    probe_lr: Rate = Field(1e-3, description="Adam's, for the linear probe of a self-supervised search")

    PLUGIN_KINDS = {"relax": "relaxation", "loss": "loss", "alpha_loss": "loss"}

    @field_validator("ops")
    @classmethod
    def _ops_are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        known = OPS.names()  # once: it looks through the installed distributions
        for name in names:
            if name not in known:
                OPS.get(name)  # raises, with a suggestion
        if len(set(names)) != len(names):
            raise ValueError("an op is named twice")
        if set(names) == {"none"}:
            raise ValueError("'none' alone leaves nothing to search")
        return names

    @field_validator("op_options")
    @classmethod
    def _options_are_of_candidates(
        cls, options: dict[str, dict[str, Any]], info: ValidationInfo
    ) -> dict[str, dict[str, Any]]:
        candidates = list(info.data.get("ops", options))
        for name in options:
            if name not in candidates:
                raise ValueError(f"'{name}' is not one of the setting 'ops'.{did_you_mean(name, candidates)}")
        return options

    def resolve_plugins(self) -> SearchSettings:
        """As for every command; and the options of the ops that have some."""
        options = {name: OPS.get(name).parse_options(self.op_options.get(name)) for name in self.ops}
        dumped = {name: values.model_dump(by_alias=True, mode="json") for name, values in options.items()}
        update = {"op_options": {name: values for name, values in dumped.items() if values}}
        return super().resolve_plugins().model_copy(update=update)


class RetrainSettings(Training):
    """Retraining a derived network; `pretrain` names a self-supervised loss that comes before."""

    loss: Section = PluginSection(name="ce")
    pretrain: Section = PluginSection(name="none")
    pretrain_epochs: PositiveInt = 150
    pretrain_lr: Rate = 0.025
    epochs: PositiveInt = 150
    channels: Annotated[int, Field(ge=2, multiple_of=2)] = 36
    layers: int = Field(20, ge=1)
    aux_weight: float = Field(0.4, ge=0, description="weight of the auxiliary head's loss; 0: no such head")
    drop_path: float = Field(0.2, ge=0, lt=1, description="probability at the last epoch; rises from 0")
    cutout: float = Field(0.5, ge=0, le=1, description="side of the erased square over the image's side")

    PLUGIN_KINDS = {"loss": "loss", "pretrain": "loss"}


PRESETS: dict[type[Settings], dict[str, dict[str, Any]]] = {
    SearchSettings: {
        "paper": {"alpha_lr": 3e-4, "alpha_weight_decay": 1e-3},
        "quick": {
            "epochs": 12,
            "batch_size": 64,
            "channels": 8,
            "layers": 4,
            "alpha_lr": 0.03,
            "views": {"min_scale": 0.5},
        },
    },
    RetrainSettings: {
        "paper": {},
        "quick": {
            "epochs": 12,
            "pretrain_epochs": 6,
            "batch_size": 32,
            "channels": 12,
            "layers": 5,
            "drop_path": 0.0,
            "cutout": 0.25,
            "views": {"min_scale": 0.5},
        },
    },
    MakeDatasetSettings: {},
}


def load_settings(
    model: type[Model],
    *,
    preset: str | None = None,
    config: Path | None = None,
    sets: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> Model:
    """Settings from their layers; `flags` whose value is None were not given.

    Raises:
        UsageError: an unknown preset or setting, or a value out of range, named as the user wrote it.
        InputError: the TOML file is missing or broken.
    """
    layers: list[dict[str, Any]] = []
    if preset is not None:
        known = PRESETS.get(model, {})
        if preset not in known:
            raise UsageError(
                f"--preset: unknown preset '{preset}'.{did_you_mean(preset, list(known))} "
                f"Available: {', '.join(known) or 'none'}"
            )
        layers.append(known[preset])
    if config is not None:
        layers.append(_read_toml(config))
        _check_keys(model, layers[-1], f"--config {config}: ")
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    command_line = [*(_parse_set(text) for text in sets), given]
    layers += [_plugin_names(command_line, set(model.PLUGIN_KINDS)), *command_line]
    merged: dict[str, Any] = {
        section: {"name": model.model_fields[section].default.name} for section in model.PLUGIN_KINDS
    }
    for layer in layers:
        _check_keys(model, layer)
        merged = _merge(merged, layer, set(model.PLUGIN_KINDS))
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        raise UsageError(_explain(error, set(given))) from None


def to_toml(settings: Settings) -> str:
    """All settings as TOML that `--config` reads back."""
    import tomli_w

    return tomli_w.dumps(settings.model_dump(mode="json"))


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"--config {path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"--config {path}: is not TOML: {error}") from None


def _parse_set(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set {text}: should look like key=value")
    try:
        parsed: Any = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value  # a bare word
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
        for key in sections & set(layer):
            value = _section(layer[key])
            if isinstance(value, Mapping) and "name" in value:
                names[key] = {"name": value["name"]}
    return names


def _check_keys(model: type[Settings], layer: Mapping[str, Any], where: str = "") -> None:
    known = sorted(model.model_fields)
    for key in layer:
        if key not in known:
            raise UsageError(f"{where}unknown setting '{key}'.{did_you_mean(key, known)} Known: {', '.join(known)}")


def _merge(low: dict[str, Any], high: Mapping[str, Any], sections: set[str]) -> dict[str, Any]:
    """`high` over `low`; a plugin section whose name changes starts afresh."""
    merged = dict(low)
    for key, value in high.items():
        if key in sections:
            value, before = _section(value), merged[key]
            if not isinstance(value, Mapping):  # neither a name nor a section: for the validation to refuse
                return {**merged, key: value}
            renamed = "name" in value and value["name"] != before.get("name", value["name"])
            merged[key] = dict(value) if renamed else {**before, **value}
        elif isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = _merge(merged[key], value, set())
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
