"""What can be set for a supernet whose ops see only a part of the channels (PC-DARTS)."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from ssfnas_cli.settings.base import PositiveInt, Settings


class Partial(Settings):
    """The part of the settings of a search that says which channels its ops see, and whether edges have weights."""

    partial_channels: PositiveInt = Field(
        1,
        description="K: the ops see one of every K channels of a node, and the others pass by them (PC-DARTS: 4), for "
        "less memory and time; 1: they see all",
    )
    edge_weights: Literal["auto"] | bool = Field(
        "auto",
        description="learn a weight for every edge, a softmax over the inputs of a node, by which a derivation ranks, "
        "too; auto: with partial channels",
    )

    @property
    def weighs_edges(self) -> bool:
        """Whether the search learns weights of whole edges."""
        return self.partial_channels > 1 if self.edge_weights == "auto" else self.edge_weights is True

    @field_validator("partial_channels")
    @classmethod
    def _divides_the_width(cls, k: int, info: ValidationInfo) -> int:
        channels = info.data.get("channels", k)
        if channels % k:
            fitting = ", ".join(str(number) for number in range(1, min(channels, 64) + 1) if channels % number == 0)
            step = math.lcm(k, 2)  # widths are even
            raise ValueError(
                f"does not divide the width of the cells, channels={channels}: take one of {fitting}, or "
                f"channels={-(-channels // step) * step}"
            )
        return k
