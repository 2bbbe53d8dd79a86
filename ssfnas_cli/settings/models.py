"""What can be set, for each command: names, defaults and bounds. `layers.py` says where the values come from."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from registry import OPS, REGISTRIES, SOURCES
from registry.core import did_you_mean
from ssfnas_cli.console import log

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


def as_section(value: Any) -> Any:
    """A plugin's bare name as a section."""
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


Section = Annotated[PluginSection, BeforeValidator(as_section)]
# Far beyond what any machine trains, so that a slip of the finger is refused before memory is asked for.
PositiveInt = Annotated[int, Field(ge=1, le=1_000_000)]
Channels = Annotated[int, Field(ge=2, le=65_536, multiple_of=2)]
MAX_LAYERS = 1000
Rate = Annotated[float, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Settings(BaseModel):
    """Base of every command's settings: unknown keys and numbers that are not finite are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

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

    def resolve_plugins(self: Model) -> Model:
        """The same settings with every option of every plugin spelled out. Imports the plugins, so torch."""
        inner = {name: value for name, value in self if isinstance(value, Settings)}
        changes: dict[str, Any] = {name: value.resolve_plugins() for name, value in inner.items()}
        for field, kind in self.PLUGIN_KINDS.items():
            section = getattr(self, field)
            if is_placeholder(section):
                continue
            _warn_of_clash(kind, section.name)
            options = REGISTRIES[kind].get(section.name).parse_options(section.options())
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
    return plugin.factory(plugin.parse_options(section.options()), **context)


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


class MakeDatasetSettings(Settings):
    """What `make-dataset` builds."""

    source: Section = PluginSection(name="digits")
    root: str = Field("", description="folder or file the source reads")
    dist: Literal["auto", "balance", "step", "exp", "natural"] = Field(
        "auto", description="auto: natural if the source's classes differ in size by nature, otherwise exp"
    )
    mu: float = Field(0.1, gt=0, le=1, description="imbalance factor")
    max_per_class: int = Field(
        0, ge=0, le=1_000_000_000, description="images of the largest class; 0: as many as the source has"
    )
    test_share: float = Field(0.2, ge=0, lt=1, description="cut for test from each class, if there is no test split")
    val_share: float = Field(0.0, ge=0, lt=1, description="cut for val from each class of the long-tailed train split")
    image_size: Literal["auto"] | Annotated[int, Field(ge=8, le=4096)] = "auto"
    seed: int = Field(0, ge=0, lt=2**40)
    on_bad: Literal["skip", "fail"] = "fail"
    shard_mb: float = Field(64.0, gt=0, le=4096, description="size of a shard in MiB")

    PLUGIN_KINDS = {"source": "source"}

    @field_validator("root")
    @classmethod
    def _is_utf8(cls, root: str) -> str:
        if any("\ud800" <= character <= "\udfff" for character in root):  # bytes that settings as text cannot hold
            raise ValueError("is not named in UTF-8: rename it, or give a link to it")
        return root

    def resolve_plugins(self) -> MakeDatasetSettings:
        """As for every command; and the distribution that the source stands for."""
        settings = super().resolve_plugins()
        if settings.dist != "auto":
            return settings
        imbalanced = SOURCES.get(self.source.name).facts.imbalanced
        return settings.model_copy(update={"dist": "natural" if imbalanced else "exp"})


class Execution(Settings):
    """How a run is executed. Nothing here changes its results (up to the last bits), so none of it is identity."""

    data: str = Field("", description="data set folder; empty: the embedded one, or the genotype's")
    device: str = "auto"
    threads: int = Field(0, ge=0, le=1024, description="0: torch's own choice")
    workers: int = Field(0, ge=0, le=1024, description="loader processes; 0: the main process loads")
    kernels: Literal["auto", "compiled", "torch"] = Field(
        "auto",
        description="what computes cells (on a CPU, fp32) and views; auto: compiled if there is a C++ compiler",
    )
    save_minutes: float = Field(10.0, gt=0, description="minutes between checkpoints; one follows every epoch")
    keep_checkpoints: int = Field(2, ge=1, le=1_000_000)
    log_seconds: float = Field(30.0, gt=0, description="between progress lines off a terminal")
    max_time: Annotated[Literal["none"] | Annotated[float, Field(ge=0)], BeforeValidator(_seconds)] = "none"


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


class SelfSupervised(Settings):
    """A self-supervised loss that is added to the supervised one, on views and with a head of its own (`ssl.*`)."""

    loss: Section = Field(PluginSection(name="none"), description="none: the supervised loss stands alone")
    weight: float = Field(1.0, gt=0, description="factor on it; the supervised loss has 1")

    PLUGIN_KINDS = {"loss": "loss"}
    PLACE = "ssl."

    @model_validator(mode="after")
    def _weighs_something(self) -> SelfSupervised:
        if self.loss.name == "none" and self.weight != 1:
            raise ValueError("'ssl.weight' without a loss: name one with '--set ssl.loss=NAME'")
        return self


class Training(Execution):
    """What search and retraining share."""

    seed: int = Field(0, ge=0, lt=2**63)
    epochs: PositiveInt
    batch_size: int = Field(64, ge=2, le=1_000_000, description="at least 2: batch statistics need two images")
    channels: Channels
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
    head: Section = Field(PluginSection(name="auto"), description="what the loss is computed on; auto: the loss's own")
    sampler: Section = Field(
        PluginSection(name="instance"),
        description="which images an epoch shows, in which order; in a search those of the weight half",
    )
    ssl: SelfSupervised = SelfSupervised()

    def identity(self) -> dict[str, Any]:
        """The settings that change results, flat: `{"loss.lambda": 0.0051, ...}`."""
        return flatten(self.model_dump(mode="json", exclude=set(Execution.model_fields)))

    def changed_identity(self) -> dict[str, Any]:
        """What `identity` says beyond the defaults: it stays the same when a setting is added."""
        names, usual = self.plugin_names(), self.plugin_defaults()
        chosen = {f"{path}.name" for path, name in names.items() if name != usual[path]}
        default = type(self).model_validate(nest(names)).resolve_plugins().identity()
        mine = self.resolve_plugins().identity()
        return {key: value for key, value in mine.items() if key in chosen or default.get(key, ...) != value}


class SearchSettings(Training):
    """A search. The defaults are the paper's (IV-B, IV-C), where it is silent those of DARTS."""

    strategy: Section = Field(PluginSection(name="gradient"), description="what the architecture is searched with")
    relax: Section = PluginSection(name="softmax")
    loss: Section = PluginSection(name="ce")
    alpha_loss: Section = Field(
        PluginSection(name="none"), description="none: the alpha step uses `loss` too, and `ssl` if there is one"
    )
    alpha_sampler: Section = Field(
        PluginSection(name="instance"), description="which images of the alpha half the alpha step sees"
    )
    order: Literal[1, 2] = 1
    epochs: PositiveInt = 40
    channels: Channels = 16
    layers: int = Field(8, ge=3, le=MAX_LAYERS)
    ops: Annotated[tuple[str, ...], BeforeValidator(_comma_list), Field(min_length=1)] = PAPER_OPS
    op_options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    alpha_lr: Literal["auto"] | Rate = Field("auto", description="auto: the relaxation's default")
    alpha_betas: Literal["auto"] | tuple[Beta, Beta] = "auto"
    alpha_weight_decay: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"
    warmup_epochs: int = Field(0, ge=0, le=1_000_000, description="epochs at the start in which the alphas stay fixed")
    statistics_batches: int = Field(
        20,
        ge=0,
        description="batches that estimate BN statistics before the supernet is evaluated; 0: its running averages",
    )
    probe_lr: Rate = Field(1e-3, description="Adam's, for the linear probe of a self-supervised search")

    PLUGIN_KINDS = {
        "strategy": "strategy",
        "relax": "relaxation",
        "loss": "loss",
        "alpha_loss": "loss",
        "head": "head",
        "sampler": "sampler",
        "alpha_sampler": "sampler",
    }

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
    """Retraining a derived network, or training a plain one from the registry.

    `pretrain` names a self-supervised loss that comes before. A plain network has a width and depth of its own, so
    `channels` and `layers` are not part of its identity.
    """

    network: Section = Field(PluginSection(name="none"), description="none: the network of the genotype")
    loss: Section = PluginSection(name="ce")
    pretrain: Section = PluginSection(name="none")
    pretrain_epochs: PositiveInt = 150
    pretrain_lr: Rate = 0.025
    epochs: PositiveInt = 150
    channels: Channels = 36
    layers: int = Field(20, ge=1, le=MAX_LAYERS)
    aux_weight: float = Field(0.4, ge=0, description="weight of the auxiliary head's loss; 0: no such head")
    drop_path: float = Field(0.2, ge=0, lt=1, description="probability at the last epoch; rises from 0")
    cutout: float = Field(0.5, ge=0, le=1, description="side of the erased square over the image's side")
    holdout: float = Field(
        0.0, ge=0, lt=1, description="share of each class of train that is set aside, for 'adjust' to choose on"
    )

    PLUGIN_KINDS = {
        "network": "network",
        "loss": "loss",
        "pretrain": "loss",
        "head": "head",
        "sampler": "sampler",
    }

    def identity(self) -> dict[str, Any]:
        """As for every training; a plain network's leaves out what only a genotype's network has."""
        identity = super().identity()
        if self.network.name != "none":
            identity = {key: value for key, value in identity.items() if key not in ("channels", "layers")}
        return identity
