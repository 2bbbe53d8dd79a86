"""model.safetensors: a trained network and, in its header, all that is needed to build it again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ssfnas_cli.artifacts.files import invalid
from ssfnas_cli.artifacts.genotype import Genotype
from ssfnas_cli.artifacts.tensors import load_metadata, load_tensors, save_tensors
from ssfnas_cli.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


class ModelCard(BaseModel):
    """How to build the network, how to prepare its images, and what it was trained on."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    schema_name: Literal["ssfnas.model/1"] = Field("ssfnas.model/1", alias="schema")
    genotype: Genotype
    stem: Literal["conv3x3"] = "conv3x3"
    in_channels: int = Field(ge=1)
    channels: int = Field(ge=1)
    layers: int = Field(ge=1)
    aux: bool
    class_names: list[str]
    train_counts: list[int]
    image_size: int = Field(ge=1)
    mean: list[float]
    std: list[float]
    data: str
    data_sha256: str
    seed: int


def save_model(path: Path, tensors: Mapping[str, Tensor], card: ModelCard) -> None:
    """Write the network whole."""
    save_tensors(path, tensors, card.model_dump(by_alias=True, mode="json", exclude_none=True))


def load_model(path: Path) -> tuple[dict[str, Tensor], ModelCard]:
    """A network's tensors and card.

    Raises:
        InputError: not such a file, damaged, or of a newer schema.
    """
    metadata: Any = load_metadata(path)
    if not isinstance(metadata, dict) or not str(metadata.get("schema")).startswith("ssfnas.model/"):
        raise InputError(f"{path}: is not a model of ssfnas")
    if metadata["schema"] != "ssfnas.model/1":
        raise InputError(f"{path}: has schema '{metadata['schema']}', newer than this ssfnas reads: upgrade ssfnas")
    try:
        card = ModelCard.model_validate(metadata)
    except ValidationError as error:
        raise invalid(str(path), error) from None
    return load_tensors(path), card
