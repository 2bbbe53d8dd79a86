"""What can be set, for each command: names, defaults and bounds. `layers.py` says where the values come from."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from registry import OPS
from registry.core import did_you_mean
from ssfnas_cli.settings.base import MAX_LAYERS, Channels, PluginSection, PositiveInt, Section, Settings, flatten, nest
from ssfnas_cli.settings.cost import Amount, CostAware
from ssfnas_cli.settings.execution import Execution
from ssfnas_cli.settings.federated import Federated
from ssfnas_cli.settings.partial import Partial

PAPER_OPS = (  # SSF-NAS (arXiv 2406.16949), IV-B
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)


def _comma_list(value: Any) -> Any:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


Rate = Annotated[float, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Concentration = Annotated[float, Field(gt=0, le=1000)]


class Views(Settings):
    """The augmentation of self-supervised views (Barlow Twins, section 2.2)."""

    min_scale: float = Field(0.2, gt=0, le=1, description="smallest share of the image a random crop keeps")
    brightness: float = Field(0.4, ge=0, le=1, description="largest change of the brightness, as a share of it")
    contrast: float = Field(0.4, ge=0, le=1, description="largest change of the contrast")
    saturation: float = Field(0.2, ge=0, le=1, description="largest change of the saturation")
    hue: float = Field(0.1, ge=0, le=0.5, description="largest turn of the hue, as a share of the circle")
    jitter_probability: float = Field(0.8, ge=0, le=1, description="probability of changing these four at all")
    gray_probability: float = Field(0.2, ge=0, le=1, description="probability of taking the colours away")
    blur: bool = Field(False, description="blur the views with probability 1.0 and 0.1; not for small images")
    solarize_probability: float = Field(0.2, ge=0, le=1, description="probability of solarizing the second view")


class SelfSupervised(Settings):
    """A self-supervised loss that is added to the supervised one, on views and with a head of its own (`ssl.*`)."""

    loss: Section = Field(PluginSection(name="none"), description="the loss; none: the supervised loss stands alone")
    weight: float = Field(1.0, gt=0, description="its factor; that of the supervised loss is 1")

    PLUGIN_KINDS: ClassVar = {"loss": "loss"}
    PLACE = "ssl."

    @model_validator(mode="after")
    def _weighs_something(self) -> SelfSupervised:
        if self.loss.name == "none" and self.weight != 1:
            raise ValueError("'ssl.weight' without a loss: name one with '--set ssl.loss=NAME'")
        return self

    def unused(self) -> frozenset[str]:
        """As for every command; and the weight of a loss that is not there."""
        return super().unused() | ({"weight"} if self.loss.name == "none" else set())


class Training(Execution):
    """What search and retraining share."""

    # Settings that change no result
    NO_RESULT: ClassVar[frozenset[str]] = frozenset({*Execution.model_fields, "track_every"})

    seed: int = Field(0, ge=0, lt=2**63, description="decides every random number of the run")
    epochs: PositiveInt
    batch_size: int = Field(64, ge=2, le=1_000_000, description="images a step; batch statistics need two")
    channels: Channels
    layers: int
    stem: Literal["auto", "cifar", "imagenet"] = Field(
        "auto", description="cifar keeps the side of the images, imagenet divides it by 8; auto: by that side"
    )
    lr: Rate = Field(0.025, description="learning rate of the weights (SGD); falls to lr_min along a cosine")
    lr_min: float = Field(0.001, ge=0, description="learning rate at the end")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(3e-4, ge=0, description="weight decay of the weights")
    clip: Rate = Field(5.0, description="largest norm of the gradient; a larger one is scaled down")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="precision of forward passes; losses are always fp32. bf16 on a CPU: if it multiplies bf16, and of "
        "maps in memory and the factors of products, while sums, statistics and weights stay fp32",
    )
    batch_stats: Literal["global", "local"] = Field(
        "global",
        description="on several ranks, what batch normalisation takes its statistics of: the whole batch, or each "
        "rank's share of it, which is faster",
    )
    flip: Literal["auto"] | bool = Field("auto", description="auto: unless mirroring changes the data set's classes")
    track_test: bool = Field(False, description="accuracy on the held-out splits over epochs (paper, Fig. 7 and 8)")
    track_every: Literal["auto"] | PositiveInt = Field(
        "auto",
        description="track_test=true: every that many epochs, and in the last one; auto: by the numbers of images, so "
        "that it takes less than a quarter of the training's time",
    )
    views: Views = Views()
    head: Section = Field(PluginSection(name="auto"), description="what the loss is computed on; auto: the loss's own")
    sampler: Section = Field(
        PluginSection(name="instance"),
        description="which images an epoch shows, in which order; in a search those of the weight half",
    )
    ssl: SelfSupervised = SelfSupervised()

    @field_validator("track_every")
    @classmethod
    def _tracks_something(cls, value: int | str, info: ValidationInfo) -> int | str:
        if value not in ("auto", 1) and not info.data.get("track_test", True):  # 1 was the default once
            raise ValueError("nothing is tracked: set track_test=true, too")
        return value

    @field_validator("sampler", "alpha_sampler", check_fields=False)
    @classmethod
    def _begins(cls, sampler: PluginSection, info: ValidationInfo) -> PluginSection:
        """A deferred sampler that begins after the last epoch has begun would never do so."""
        defer, epochs = sampler.options().get("defer"), info.data.get("epochs", 1)
        last = (epochs - 1) / epochs
        if isinstance(defer, (int, float)) and last < defer < 1:
            most = math.floor(1000 * last) / 1000
            told = f"defer={defer:g} leaves none of the {epochs} epochs to sample otherwise"
            raise ValueError(f"{told}: take at most {most:g}, or more epochs")
        return sampler

    @property
    def is_federated(self) -> bool:
        """Whether clients train on images of their own. Only a search can be so."""
        return False

    def identity(self) -> dict[str, Any]:
        """The settings that change results, flat: `{"loss.lambda": 0.0051, ...}`."""
        flat, unused = flatten(self.model_dump(mode="json", exclude=set(self.NO_RESULT))), self.unused()
        return {key: value for key, value in flat.items() if key not in unused}

    def changed_identity(self) -> dict[str, Any]:
        """What `identity` says beyond the defaults: it stays the same when a setting is added."""
        names, usual = self.plugin_names(), self.plugin_defaults()
        chosen = {f"{path}.name" for path, name in names.items() if name != usual[path]}
        default = type(self).model_validate(nest(names)).resolve_plugins().identity()
        mine = self.resolve_plugins().identity()
        return {key: value for key, value in mine.items() if key in chosen or default.get(key, ...) != value}


class SearchSettings(CostAware, Federated, Partial, Training):
    """A search. The defaults are the paper's (IV-B, IV-C), where it is silent those of DARTS."""

    strategy: Section = Field(PluginSection(name="gradient"), description="what the architecture is searched with")
    relax: Section = Field(PluginSection(name="softmax"), description="how alphas become mixing weights")
    loss: Section = Field(PluginSection(name="ce"), description="what the weights are trained for")
    alpha_loss: Section = Field(
        PluginSection(name="none"), description="none: the alpha step uses `loss` too, and `ssl` if there is one"
    )
    alpha_sampler: Section = Field(
        PluginSection(name="instance"), description="which images of the alpha half the alpha step sees"
    )
    order: Literal[1, 2] = Field(1, description="order of the alpha step's gradient: 1, or 2 as in DARTS")
    epochs: PositiveInt = Field(40, description="passes over both halves of the training images")
    channels: Channels = Field(16, description="width of the supernet's first cells")
    layers: int = Field(8, ge=3, le=MAX_LAYERS, description="cells of the supernet")
    ops: Annotated[tuple[str, ...], BeforeValidator(_comma_list), Field(min_length=1)] = Field(
        PAPER_OPS, description="the candidates on every edge"
    )
    op_options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="options of those ops that have some, by op"
    )
    alpha_optimizer: Literal["adam", "sgd"] = Field(
        "adam", description="what trains the alphas; sgd has no momentum, and wants an alpha_lr of its own"
    )
    alpha_lr: Literal["auto"] | Rate = Field(
        "auto", description="learning rate of the alphas; auto: the relaxation's default for Adam"
    )
    alpha_betas: Literal["auto"] | tuple[Beta, Beta] = Field(
        "auto", description="betas of that Adam; auto: the relaxation's"
    )
    alpha_weight_decay: Literal["auto"] | Annotated[float, Field(ge=0)] = Field(
        "auto", description="weight decay of the alphas; auto: the relaxation's default"
    )
    warmup_epochs: int = Field(0, ge=0, le=1_000_000, description="epochs at the start in which the alphas stay fixed")
    statistics_batches: int = Field(
        20,
        ge=0,
        description="batches that estimate BN statistics before the supernet is evaluated; 0: its running averages",
    )
    probe_lr: Rate = Field(1e-3, description="learning rate (Adam) of the linear probe of a self-supervised search")
    stop_when_collapsed: bool = Field(
        False, description="stop (exit 3, resumable) when the normal cell has had only skips and pools for 3 epochs"
    )

    init_from: str = Field(
        "", description="a finished search, whose supernet this one begins with; empty: with weights drawn by the seed"
    )
    adapt: Literal["all", "head", "none"] = Field(
        "all",
        description="with init_from, what learns beside the architecture: all weights, a new head on the frozen "
        "backbone, or nothing",
    )

    # A search that stops early can go on. Where the first weights and the table of latencies lay changes nothing, and
    # their content is hashed (INIT, COST_TABLE).
    NO_RESULT = Training.NO_RESULT | {"stop_when_collapsed", "init_from", "cost_table"}
    WITHOUT_ALPHAS: ClassVar[frozenset[str]] = frozenset({"random", "evolution", "reinforce"})  # strategies with none
    OF_ALPHAS: ClassVar[tuple[str, ...]] = (
        *("relax", "alpha_sampler", "order", "warmup_epochs", "edge_weights"),
        *("alpha_optimizer", "alpha_lr", "alpha_betas", "alpha_weight_decay", "cost_at", "cost_weight"),
    )
    PLUGIN_KINDS: ClassVar = {
        "strategy": "strategy",
        "relax": "relaxation",
        "loss": "loss",
        "alpha_loss": "loss",
        "head": "head",
        "sampler": "sampler",
        "alpha_sampler": "sampler",
    }

    @property
    def trains_candidates(self) -> bool:
        """Whether each candidate is trained by itself, so that there is no supernet."""
        return self.strategy.options().get("judge") == "train"

    def unused(self) -> frozenset[str]:
        """As for every command; what is said of alphas to a strategy that has none; and `adapt` without `init_from`."""
        idle = super().unused() | (set() if self.init_from else {"adapt"})
        if self.strategy.name not in self.WITHOUT_ALPHAS:
            return idle
        return idle | flatten(self.model_dump(mode="json", include=set(self.OF_ALPHAS))).keys()

    @field_validator("warmup_epochs")
    @classmethod
    def _leaves_epochs(cls, warmup: int, info: ValidationInfo) -> int:
        epochs = info.data.get("epochs")
        if warmup and epochs is not None and warmup >= epochs:
            raise ValueError(
                f"leaves none of the {epochs} epochs for the alphas, which would stay as they were drawn: take fewer, "
                "or more epochs"
            )
        return warmup

    @field_validator("adapt")
    @classmethod
    def _has_a_supernet(cls, adapt: str, info: ValidationInfo) -> str:
        if adapt != "all" and not info.data.get("init_from", True):
            raise ValueError("says what learns of the supernet of another search: name one with --init-from")
        return adapt

    @field_validator("alpha_betas")
    @classmethod
    def _are_of_adam(cls, betas: tuple[float, float] | str, info: ValidationInfo) -> tuple[float, float] | str:
        if betas != "auto" and info.data.get("alpha_optimizer") == "sgd":
            raise ValueError("are Adam's, and alpha_optimizer is 'sgd': leave them out")
        return betas

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

    `pretrain` names a self-supervised loss that comes before. The settings OF_CELLS are for the network of a genotype.
    A plain network has a width, a depth and a stem of its own.
    """

    OF_CELLS: ClassVar[frozenset[str]] = frozenset({"channels", "match_params", "layers", "stem"})
    NO_RESULT = Training.NO_RESULT | {"init_from"}  # where the first weights lay changes nothing, and they are hashed

    network: Section = Field(PluginSection(name="none"), description="none: the network of the genotype")
    loss: Section = Field(PluginSection(name="ce"), description="what the network is trained for")
    pretrain: Section = Field(PluginSection(name="none"), description="a self-supervised loss to train for first")
    pretrain_epochs: PositiveInt = Field(150, description="epochs of that pretraining")
    pretrain_lr: Rate = Field(0.025, description="learning rate of that pretraining")
    pretrain_optimizer: Literal["sgd", "adamw"] = Field(
        "sgd", description="of that pretraining; adamw wants a low rate"
    )
    epochs: PositiveInt = Field(150, description="passes over the training images, after a pretraining")
    channels: Channels = Field(36, description="width of the first cells")
    match_params: Literal["none"] | Amount = Field(
        "none", description="weights of the network: the channels are those that come nearest; none: `channels` says"
    )
    layers: int = Field(20, ge=1, le=MAX_LAYERS, description="number of cells")
    aux_weight: float = Field(0.4, ge=0, description="weight of the auxiliary head's loss; 0: no such head")
    drop_path: float = Field(
        0.2, ge=0, lt=1, description="probability of dropping a path at the last epoch; it rises from 0"
    )
    cutout: float = Field(0.5, ge=0, le=1, description="side of the erased square over the image's side")
    augment: Literal["none", "trivial", "rand"] = Field(
        "none", description="ops on every image after crop and flip: TrivialAugment's or RandAugment's"
    )
    rand_ops: int = Field(2, ge=1, le=100, description="with augment=rand: how many ops an image gets")
    rand_magnitude: int = Field(9, ge=0, le=30, description="with augment=rand: how strong they are")
    mixup: Literal["none"] | Concentration = Field(
        "none", description="alpha: two images are averaged with weights from Beta(alpha, alpha)"
    )
    cutmix: Literal["none"] | Concentration = Field(
        "none", description="alpha: a box of another image, of a share from Beta(alpha, alpha), replaces a part"
    )
    ema: Literal["none"] | Beta = Field("none", description="decay of a moving average of the weights, which is kept")
    lr_warmup_epochs: int = Field(0, ge=0, description="epochs at the start in which the learning rate rises to lr")
    nesterov: bool = Field(False, description="take Nesterov's momentum")
    decay_bn: bool = Field(True, description="let biases and the weights of batch normalisation decay, too")
    holdout: float = Field(
        0.0, ge=0, lt=1, description="share of each class of train that is set aside, for 'adjust' to choose on"
    )
    init_from: str = Field(
        "", description="a finished search, whose supernet's weights the network begins with where their shapes fit"
    )

    PLUGIN_KINDS: ClassVar = {
        "network": "network",
        "loss": "loss",
        "pretrain": "loss",
        "head": "head",
        "sampler": "sampler",
    }

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with others."""
        return (self.mixup, self.cutmix) != ("none", "none")

    @field_validator("rand_ops", "rand_magnitude")
    @classmethod
    def _is_of_rand(cls, value: int, info: ValidationInfo) -> int:
        if value != cls.model_fields[str(info.field_name)].default and info.data.get("augment", "rand") != "rand":
            raise ValueError(f"is RandAugment's, and augment is '{info.data['augment']}': set augment=rand")
        return value

    @field_validator("lr_warmup_epochs")
    @classmethod
    def _leaves_epochs(cls, warmup: int, info: ValidationInfo) -> int:
        epochs = info.data.get("epochs")
        if warmup and epochs is not None and warmup >= epochs:
            raise ValueError(f"leaves none of the {epochs} epochs to train in: take fewer, or more epochs")
        return warmup

    @field_validator("nesterov")
    @classmethod
    def _has_momentum(cls, nesterov: bool, info: ValidationInfo) -> bool:
        if nesterov and info.data.get("momentum") == 0:
            raise ValueError("needs momentum, and momentum is 0")
        return nesterov

    def refused(self) -> frozenset[str]:
        """As for every command; of a plain network, what only a genotype's network has."""
        return super().refused() if self.network.name == "none" else self.OF_CELLS

    def unused(self) -> frozenset[str]:
        """As for every command; what belongs to a part that there is not; and a width that is matched."""
        idle = {"pretrain_epochs", "pretrain_lr", "pretrain_optimizer"} if self.pretrain.name == "none" else set()
        idle |= set() if self.match_params == "none" else {"channels"}
        return super().unused() | idle | ({"rand_ops", "rand_magnitude"} if self.augment != "rand" else set())
