"""model.safetensors, which holds the tensors of a trained network and, in its header, a card that describes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ssfnas_cli.artifacts.files import validation_error
from ssfnas_cli.artifacts.genotype import Genotype
from ssfnas_cli.artifacts.tensors import load_metadata, load_tensors, save_tensors
from ssfnas_cli.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = "ssfnas.model/2"
MODEL = "model.safetensors"  # its name in a run folder
# A card may come from an untrusted source. These bounds limit what is built from it and are far above practical sizes.
MAX_CHANNELS, MAX_LAYERS, MAX_CLASSES = 4096, 512, 100_000


class Part(BaseModel):
    """The name of a plugin and all options that it was built with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="name of the plugin")
    options: dict[str, Any] = Field(default_factory=dict, description="all options that it was built with")


class DerivedNetwork(BaseModel):
    """A network that is derived from a genotype, with its width, depth and stem.

    A card that names no stem is from when there was only the one for CIFAR.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    genotype: Genotype = Field(description="its genotype")
    channels: int = Field(ge=1, le=MAX_CHANNELS, description="width of the first cells")
    layers: int = Field(ge=1, le=MAX_LAYERS, description="number of cells")
    stem: Literal["cifar", "imagenet"] = Field("cifar", description="what comes before the cells")


class CorrectionRecord(BaseModel):
    """A correction of the finished network.

    `value` is its tau or temperature, if it has one; `chosen_on` the images that it was chosen on (`val` or `holdout`),
    unless it was given.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str = Field(description="method of adjust")
    value: float | None = Field(None, description="its tau or temperature, if it has one")
    chosen_on: str | None = Field(None, description="val or holdout, if the value was chosen on images")


class Preparation(BaseModel):
    """How an image file becomes the square uint8 array that is standardised, of `image_size` and `in_channels`.

    The defaults are how `make-dataset` has always done it, so they hold for a card without a preparation. `pixel_range`
    is what is black and white in pixels of more than 8 bits; `auto` means 0 and 65535 if they have 16.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    orientation: Literal["exif"] = Field("exif", description="the image is turned upright by its EXIF tag")
    transparency: Literal["over white"] = Field("over white", description="transparent pixels are laid over white")
    resize: Literal["shorter side"] = Field("shorter side", description="the side that is made image_size pixels long")
    resampling: Literal["bicubic"] = Field("bicubic", description="how pixels are computed then")
    crop: Literal["centre"] = Field("centre", description="the square that is kept")
    pixel_range: Literal["auto"] | tuple[float, float] = Field(
        "auto", description="what is black and white in pixels of more than 8 bits"
    )


class ModelCard(BaseModel):
    """How to build a network and prepare its images, and what it was trained on.

    If the head is named `auto`, the loss builds it. `ema` is the decay of the moving average that the weights are, or
    None if they are those of the last step. `train_counts` leave out the share `holdout` of the training split, which
    was set aside by the seed. `prior` is the class prior [C] under which the softmax of the outputs is the posterior; a
    card without it was written before cards had one. A network with `corrections` has tensors that scale and shift the
    outputs of its head.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    schema_name: Literal["ssfnas.model/2"] = Field("ssfnas.model/2", alias="schema")
    network: DerivedNetwork | Part = Field(description="a network of a genotype, or the plugin of a plain one")
    loss: Part = Field(description="what it was trained for")
    head: Part = Field(description="its head; auto: built by the loss")
    aux: bool = Field(description="whether it has an auxiliary head")
    in_channels: int = Field(ge=1, le=MAX_CHANNELS, description="1: grey, 3: RGB")
    class_names: list[str] = Field(min_length=1, max_length=MAX_CLASSES, description="in the order of the logits")
    train_counts: list[int] = Field(description="images of each class that it was trained on")
    image_size: int = Field(ge=1, description="side of the square images, in pixels")
    mean: list[float] = Field(description="subtracted from each channel, pixels from 0 to 1")
    std: list[float] = Field(description="each channel is divided by it then")
    preparation: Preparation = Field(Preparation(), description="how an image file becomes such a square")
    data: str = Field(description="folder of the data set")
    data_sha256: str = Field(description="its identity")
    seed: int = Field(description="of the run")
    ema: float | None = Field(None, ge=0, lt=1, description="decay of the moving average that the weights are")
    holdout: float = Field(0.0, ge=0, lt=1, description="share of the training split that was set aside")
    prior: list[Annotated[float, Field(gt=0, le=1)]] | Literal["unknown"] | None = Field(
        None, description="class prior that the outputs hold; absent in cards of earlier versions"
    )
    corrections: list[CorrectionRecord] = Field(default_factory=list, description="what adjust has done, in order")
    plugins: dict[str, str] | None = Field(None, description="the plugins of other packages, and their versions")

    @model_validator(mode="after")
    def _prior_fits(self) -> ModelCard:
        if isinstance(self.prior, list) and len(self.prior) != len(self.class_names):
            raise ValueError("the prior and the class names differ in number")
        return self


def save_model(path: Path, tensors: Mapping[str, Tensor], card: ModelCard) -> None:
    """Write a network atomically."""
    save_tensors(path, tensors, card.model_dump(by_alias=True, mode="json", exclude_none=True))


def load_model(path: Path) -> tuple[dict[str, Tensor], ModelCard]:
    """Load the tensors and the card of a network.

    Raises:
        InputError: the file is not a model, is damaged, or has a newer schema.
    """
    card = load_card(path)
    return load_tensors(path), card


def load_card(path: Path) -> ModelCard:
    """Load only the card of a network, from the header of its file.

    Raises:
        InputError: the file is not a model, is damaged, or has a newer schema.
    """
    metadata: Any = load_metadata(path)
    if not isinstance(metadata, dict) or not str(metadata.get("schema")).startswith("ssfnas.model/"):
        raise InputError(f"{path}: is not a model of ssfnas")
    if metadata["schema"] == "ssfnas.model/1":
        metadata = _from_first_schema(metadata)
    if metadata["schema"] != SCHEMA:
        raise InputError(f"{path}: has schema '{metadata['schema']}', newer than this ssfnas reads: upgrade ssfnas")
    try:
        return ModelCard.model_validate(metadata)
    except ValidationError as error:
        plugins = metadata.get("plugins")
        made_with = plugins if isinstance(plugins, dict) else None
        raise validation_error(str(path), error, made_with=made_with) from None


def _from_first_schema(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a card of `ssfnas.model/1`, whose networks are all derived ones with a linear head."""
    card = {key: value for key, value in metadata.items() if key not in ("genotype", "channels", "layers", "stem")}
    network = {key: metadata[key] for key in ("genotype", "channels", "layers") if key in metadata}
    return card | {"schema": SCHEMA, "network": network, "loss": {"name": "ce"}, "head": {"name": "linear"}}
