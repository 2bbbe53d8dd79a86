"""A generic registry for every kind of plugin.

A plugin has a name, a factory, a model of its options, facts that ssfnas needs to know, and an origin. The built-in
names are listed here, and their modules are imported on first use, so listing names does not import torch. Third-party
packages declare plugins by entry points that have the plugins' names:

    [project.entry-points."ssfnas.ops"]
    blur_conv_3x3 = "my_package.ops"

Loading the entry point imports the module, whose decorator registers the plugin.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.metadata
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import ConfigDict, ValidationError

from registry.checked import Checked

T = TypeVar("T")


class PluginError(ValueError):
    """A plugin is unknown, is broken, clashes with another, or does not take an option. The message is one line.

    Attributes:
        option: which option it does not take; empty if it is something else.
    """

    def __init__(self, message: str, option: str = ""):
        super().__init__(message)
        self.option = option


class Options(Checked):
    """Base class of plugin options. It forbids unknown keys, later changes and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)

    LACKS: ClassVar[Mapping[str, str]] = {}  # options that one would expect here, and why there is none


@dataclass(frozen=True)
class OpFacts:
    """What the networks must know about an op besides its module."""

    is_none: bool = False  # it is the zero op: the supernet skips it and derived cells omit it
    parameter_free: bool = False  # if its module has no parameters, one result serves all edges from a node
    supernet_bn: bool = False  # the supernet appends a BN without weights, as DARTS does for pools
    drop_path_exempt: bool = False  # it is an identity at stride 1, which drop path never drops (DARTS)


@dataclass(frozen=True)
class HeadFacts:
    """What must be known of a head before it is built.

    Attributes:
        gives: `scores` [N, num_classes] of classes, `projections` [N, D], or `pairs` of a projection and a prediction,
            each [N, D]. A loss says which of them it reads.
    """

    gives: str = "scores"


@dataclass(frozen=True)
class SourceFacts:
    """What must be known about a source of images before it is opened.

    Attributes:
        root: a description of what `--root` must name. If it is empty, the source takes no root; if it is None, a root
            is optional.
        imbalanced: whether the classes differ in size. If so, `--dist auto` keeps their profile, and `exp` and `step`
            order the classes from the largest to the smallest. Otherwise `auto` is `exp` in the order of the classes.
        splits: those that it has whatever lies in its root; None if only opening it tells.
    """

    root: str | None = None
    imbalanced: bool = True
    splits: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Plugin(Generic[T]):
    """A registered plugin: its name, how it is built and where it comes from."""

    name: str
    factory: Callable[..., T]
    options: type[Options]
    facts: Any
    origin: str

    @property
    def summary(self) -> str:
        """The first line of the factory's docstring."""
        return (self.factory.__doc__ or "").strip().partition("\n")[0]

    @property
    def is_foreign(self) -> bool:
        """Whether another package brings it."""
        return self.origin != "builtin"

    @property
    def credited(self) -> str:
        """Its name and origin, for messages."""
        return f"'{self.name}' of {self.origin}"

    def build(self, *arguments: Any, **named: Any) -> T:
        """Call the factory.

        Raises:
            PluginError: the factory of another package fails. The message says where.
        """
        try:
            return self.factory(*arguments, **named)
        except PluginError:
            raise
        except Exception as error:
            raise self.failed("cannot be made", error) from error

    def failed(self, what: str, error: Exception) -> Exception:
        """An exception of the plugin as an error that names it and the line; one of a built-in plugin as it is."""
        if not self.is_foreign:
            return error
        place = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{type(error).__name__}: {error} ({place.filename}, line {place.lineno})"
        return PluginError(f"{self.credited} {what}: {told}")

    def parse_options(self, values: Mapping[str, Any] | None = None) -> Options:
        """Validate option values with the plugin's model.

        Raises:
            PluginError: an option is unknown or out of range. The message names the first one.
        """
        try:
            return self.options.model_validate(dict(values or {}))
        except ValidationError as error:
            raise self._refused(error.errors()[0]) from None

    def _refused(self, problem: Mapping[str, Any]) -> PluginError:
        """What pydantic found first, as an error that names the option."""
        key = ".".join(str(part) for part in problem["loc"])
        shown = key or "options"
        if problem["type"] != "extra_forbidden":
            message = problem["msg"].removeprefix("Value error, ")
            return PluginError(f"option '{shown}' of '{self.name}': {message} (got {problem['input']!r})", key)
        if reason := self.options.LACKS.get(shown):
            return PluginError(f"'{self.name}' has no option '{shown}': {reason}", key)
        known = sorted(field.alias or name for name, field in self.options.model_fields.items())
        available = ", ".join(known) or "none"
        hint = did_you_mean(shown, known)
        return PluginError(f"'{self.name}' has no option '{shown}'.{hint} Its options: {available}", key)


def did_you_mean(word: str, known: list[str]) -> str:
    """A suggestion to append to a message, ` Did you mean 'x'?`, or an empty string if no known word is similar."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""


class Registry(Generic[T]):
    """The plugins of one kind, by name.

    Args:
        kind: the kind's name in messages (`loss`).
        group: the group of entry points that third-party packages use (`ssfnas.losses`).
        builtins: maps modules to the names of the built-in plugins that they define.
        default_facts: the facts of a plugin that registers without any.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        builtins: Mapping[str, tuple[str, ...]],
        default_facts: Any = None,
    ):
        self.kind = kind
        self.group = group
        self._builtin_module = {name: module for module, names in builtins.items() for name in names}
        self._default_facts = default_facts
        self._plugins: dict[str, Plugin[T]] = {}

    def register(
        self, name: str, *, options: type[Options] = Options, facts: Any = None
    ) -> Callable[[Callable[..., T]], Callable[..., T]]:
        """Return a decorator that registers a factory (a class or a function) under `name`."""

        def decorate(factory: Callable[..., T]) -> Callable[..., T]:
            if lacking := [key for key, field in options.model_fields.items() if field.is_required()]:
                raise PluginError(f"option '{lacking[0]}' of the {self.kind} '{name}' has no default: give it one")
            module = factory.__module__
            builtin = module == self._builtin_module.get(name)
            if name in self._builtin_module and not builtin:
                return factory  # the built-in stays, and what else the module registers works; see `clashes`
            if name in self._plugins and self._plugins[name].factory.__module__ != module:
                other = self._plugins[name].origin
                raise PluginError(f"{self.kind} '{name}' of {module} clashes with that of {other}")
            self._plugins[name] = Plugin(
                name=name,
                factory=factory,
                options=options,
                facts=self._default_facts if facts is None else facts,
                origin="builtin" if builtin else module,
            )
            return factory

        return decorate

    def names(self) -> list[str]:
        """All names, the built-in ones first, in the order of their declaration. This imports no plugin."""
        return list(dict.fromkeys([*self._builtin_module, *self._plugins, *self._entry_points()]))

    def get(self, name: str) -> Plugin[T]:
        """Return the plugin with this name; import its module if necessary.

        Raises:
            PluginError: the plugin is unknown (the message suggests a name) or broken, or two distributions bring it.
        """
        if name not in self._plugins:
            if name in self._builtin_module:
                importlib.import_module(self._builtin_module[name])
            elif name in self._entry_points():
                self._load_third_party(name)
            else:
                known = self.names()
                raise PluginError(
                    f"unknown {self.kind} '{name}'.{did_you_mean(name, known)} "
                    f"Available: {', '.join(known)}. See 'ssfnas plugins'."
                )
        return self._plugins[name]

    def foreign(self) -> list[Plugin[T]]:
        """The plugins of other packages that have been imported."""
        return [plugin for plugin in self._plugins.values() if plugin.is_foreign]

    def clashes(self) -> dict[str, str]:
        """Explanations by name for the built-in plugins that another distribution declares, too."""
        return {
            name: f"{_distributions(points)} also brings the built-in {self.kind} '{name}'; the built-in is used"
            for name, points in self._entry_points().items()
            if name in self._builtin_module
        }

    def _entry_points(self) -> dict[str, list[importlib.metadata.EntryPoint]]:
        points: dict[str, list[importlib.metadata.EntryPoint]] = {}
        for point in _all_entry_points(tuple(sys.path)).select(group=self.group):
            points.setdefault(point.name, []).append(point)
        return points

    def _load_third_party(self, name: str) -> None:
        points = self._entry_points()[name]
        origin = _distributions(points)
        if len({point.value for point in points}) > 1:
            raise PluginError(f"{self.kind} '{name}' is brought by {origin}: uninstall one of them")
        try:
            points[0].load()
        except (Exception, SystemExit) as error:  # no exception of a third-party module may crash ssfnas
            self._plugins.pop(name, None)  # the module may have registered the plugin before it failed
            raise PluginError(
                f"{self.kind} '{name}' of {origin} cannot be loaded: {type(error).__name__}: {error}"
            ) from error
        if name not in self._plugins:
            raise PluginError(
                f"{origin} promises the {self.kind} '{name}', but {points[0].value} registers none of that name"
            )
        self._plugins[name] = replace(self._plugins[name], origin=origin)


@functools.lru_cache(maxsize=1)
def _all_entry_points(path: tuple[str, ...]) -> Any:
    """The entry points of all distributions on `path`, which is `sys.path`. To read them takes some 20 ms.

    Python 3.12 has another type for them than 3.11, with the same `select`.
    """
    return importlib.metadata.entry_points()


def _distributions(points: list[importlib.metadata.EntryPoint]) -> str:
    return " and ".join(f"{point.dist.name} {point.dist.version}" if point.dist else point.value for point in points)


OPS: Registry[Any] = Registry(
    "op",
    "ssfnas.ops",
    {
        "registry.ops": (
            "none",
            "max_pool_3x3",
            "avg_pool_3x3",
            "skip_connect",
            "sep_conv_3x3",
            "sep_conv_5x5",
            "dil_conv_3x3",
            "dil_conv_5x5",
            "sep_conv_7x7",
            "conv_7x1_1x7",
        )
    },
    default_facts=OpFacts(),
)
RELAXATIONS: Registry[Any] = Registry(
    "relaxation",
    "ssfnas.relaxations",
    {
        "registry.relaxations": ("softmax", "sigmoid"),
        "registry.sampled_relaxations": ("gumbel", "dirichlet"),
    },
)
LOSSES: Registry[Any] = Registry(
    "loss",
    "ssfnas.losses",
    {
        "registry.losses": ("ce", "barlow"),
        "registry.reweighting": ("inverse_frequency", "class_balanced", "focal", "ghm"),
        "registry.margins": ("ldam", "logit_adjusted", "balanced_softmax", "label_aware_smoothing"),
        "registry.self_supervised": ("vicreg", "simsiam"),
    },
)
HEADS: Registry[Any] = Registry(
    "head",
    "ssfnas.heads",
    {"registry.heads": ("linear", "cosine", "etf", "projector", "predictor")},
    default_facts=HeadFacts(),
)
SAMPLERS: Registry[Any] = Registry(
    "sampler",
    "ssfnas.samplers",
    {"registry.samplers": ("instance", "square_root", "class_balanced", "progressive", "over", "under")},
)
# The names that torchvision gives its classifiers; those that cannot be trained here say why.
# fmt: off
TORCHVISION_NAMES = (
    "alexnet", "convnext_base", "convnext_large", "convnext_small", "convnext_tiny", "densenet121",
    "densenet161", "densenet169", "densenet201", "efficientnet_b0", "efficientnet_b1", "efficientnet_b2",
    "efficientnet_b3", "efficientnet_b4", "efficientnet_b5", "efficientnet_b6", "efficientnet_b7",
    "efficientnet_v2_l", "efficientnet_v2_m", "efficientnet_v2_s", "googlenet", "inception_v3", "maxvit_t",
    "mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3", "mobilenet_v2", "mobilenet_v3_large",
    "mobilenet_v3_small", "regnet_x_16gf", "regnet_x_1_6gf", "regnet_x_32gf", "regnet_x_3_2gf",
    "regnet_x_400mf", "regnet_x_800mf", "regnet_x_8gf", "regnet_y_128gf", "regnet_y_16gf", "regnet_y_1_6gf",
    "regnet_y_32gf", "regnet_y_3_2gf", "regnet_y_400mf", "regnet_y_800mf", "regnet_y_8gf", "resnet101",
    "resnet152", "resnet18", "resnet34", "resnet50", "resnext101_32x8d", "resnext101_64x4d", "resnext50_32x4d",
    "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0", "squeezenet1_0",
    "squeezenet1_1", "swin_b", "swin_s", "swin_t", "swin_v2_b", "swin_v2_s", "swin_v2_t", "vgg11", "vgg11_bn",
    "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn", "vit_b_16", "vit_b_32", "vit_h_14",
    "vit_l_16", "vit_l_32", "wide_resnet101_2", "wide_resnet50_2",
)
# fmt: on
NETWORKS: Registry[Any] = Registry(
    "network",
    "ssfnas.networks",
    {
        "registry.networks": ("resnet20", "resnet32", "resnet56"),
        "registry.torchvision_networks": TORCHVISION_NAMES,
    },
)
STRATEGIES: Registry[Any] = Registry(
    "strategy",
    "ssfnas.strategies",
    {
        "registry.strategies.gradient": ("gradient",),
        "registry.strategies.progressive": ("progressive",),
        "registry.strategies.random_search": ("random",),
        "registry.strategies.evolution": ("evolution",),
        "registry.strategies.reinforce": ("reinforce",),
    },
)
# The modules of the built-in sources belong to the application. They are only named here, and imported on first use.
SOURCES: Registry[Any] = Registry(
    "source",
    "ssfnas.sources",
    {
        "ssfnas_cli.data.sources.arrays": ("digits", "cifar10", "cifar100"),
        "ssfnas_cli.data.sources.folder": ("folder",),
        "ssfnas_cli.data.sources.lists": ("list",),
        "ssfnas_cli.data.sources.npz": ("npz",),
        "ssfnas_cli.data.sources.idx": ("idx",),
    },
    default_facts=SourceFacts(),
)
REGISTRIES: dict[str, Registry[Any]] = {
    registry.kind: registry for registry in (OPS, RELAXATIONS, LOSSES, HEADS, SAMPLERS, NETWORKS, STRATEGIES, SOURCES)
}
