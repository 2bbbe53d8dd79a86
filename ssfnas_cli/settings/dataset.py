"""What can be set for `make-dataset`: names, defaults and bounds."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from registry import SOURCES
from ssfnas_cli.errors import UsageError
from ssfnas_cli.settings.base import PluginSection, Section, Settings

_WITHOUT_MU = ("natural", "balance")  # the distributions that no imbalance factor shapes


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

    @field_validator("mu")
    @classmethod
    def _has_a_use(cls, mu: float, info: ValidationInfo) -> float:
        if (dist := info.data.get("dist")) in _WITHOUT_MU:  # this is not asked of a default
            raise ValueError(f"is for --dist exp and step, not for {dist}: leave it out")
        return mu

    def refused(self) -> frozenset[str]:
        """As for every command; the imbalance factor where no class is made smaller by it."""
        return super().refused() | ({"mu"} if self.dist in _WITHOUT_MU else set())

    def resolve_plugins(self) -> MakeDatasetSettings:
        """As for every command; and the distribution that the source stands for.

        Raises:
            UsageError: `mu` is given, and that distribution has no use for it.
        """
        settings = super().resolve_plugins()
        if settings.dist != "auto":
            return settings
        dist = "natural" if SOURCES.get(self.source.name).facts.imbalanced else "exp"
        if dist in _WITHOUT_MU and "mu" in self.model_fields_set:
            raise UsageError(
                f"--mu: is for --dist exp and step, and the source '{self.source.name}' is taken as it is ({dist}): "
                "name the distribution, too, or leave --mu out"
            )
        return settings.model_copy(update={"dist": dist})
