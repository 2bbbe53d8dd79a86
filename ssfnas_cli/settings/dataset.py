"""What can be set for `make-dataset`: names, defaults and bounds."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from registry import SOURCES
from ssfnas_cli.settings.base import PluginSection, Section, Settings


class MakeDatasetSettings(Settings):
    """What `make-dataset` builds."""

    source: Section = Field(PluginSection(name="digits"), description="where the images come from")
    root: str = Field("", description="folder or file that the source reads")
    dist: Literal["auto", "balance", "step", "exp", "natural"] = Field(
        "auto", description="auto: natural if the source's classes differ in size by nature, otherwise exp"
    )
    mu: float = Field(
        0.1,
        gt=0,
        le=1,
        description="imbalance factor of exp and step: images of the smallest class over those of the largest",
    )
    max_per_class: int = Field(
        0, ge=0, le=1_000_000_000, description="images of the largest class; 0: as many as the source has"
    )
    test_share: float = Field(
        0.2, ge=0, lt=1, description="share of each class cut for test, if there is no test split"
    )
    val_share: float = Field(
        0.0, ge=0, lt=1, description="share of each class of the long-tailed train split cut for val"
    )
    image_size: Literal["auto"] | Annotated[int, Field(ge=8, le=4096)] = Field(
        "auto", description="side of the square images, in pixels; auto: their own if they all have one, else 64"
    )
    seed: int = Field(0, ge=0, lt=2**40, description="decides which images stay and which are set aside")
    on_bad: Literal["skip", "fail"] = Field("fail", description="what to do about images that cannot be read")
    shard_mb: float = Field(64.0, gt=0, le=4096, description="size of a shard in MiB")

    PLUGIN_KINDS: ClassVar = {"source": "source"}

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
