"""What can be set for a search that minds the cost of the network which is derived in the end."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from ssfnas_cli.settings.base import MAX_LAYERS, Channels, Settings

CostName = Literal["params", "macs", "latency"]
COST_UNITS: dict[str, str] = {"params": "weights", "macs": "multiply-adds", "latency": "ms"}
_FACTORS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
_AMOUNT = re.compile(r"(?P<number>\d[\d_,]*(\.\d*)?(e[+-]?\d+)?)\s*(?P<suffix>[kmg]|ms)?", re.IGNORECASE)


def parse_amount(text: Any) -> Any:
    """A number from words such as `300M`, `0.3G`, `3e8` or `300_000_000`; others are returned as they are.

    Raises:
        ValueError: a text is no such number.
    """
    if isinstance(text, str) and text.strip().lower().endswith("ms"):
        raise ValueError("is a time, and a number such as 300M, 0.3G or 3e8 is expected")
    return parse_cost(text)


def parse_cost(text: Any) -> Any:
    """As `parse_amount`, or a latency such as `4.5ms`.

    Raises:
        ValueError: a text is no such number.
    """
    if not isinstance(text, str) or text == "none":
        return text
    match = _AMOUNT.fullmatch(text.strip())
    if match is None:
        raise ValueError("should be a number such as 300M, 0.3G, 3e8, or as a latency 4.5ms")
    number = float(match["number"].replace("_", "").replace(",", ""))
    return number * _FACTORS.get((match["suffix"] or "").lower(), 1.0)  # milliseconds are the unit of latencies


def show_amount(value: float, cost: str) -> str:
    """`3.35M weights`, `298.7M multiply-adds` or `4.21 ms`."""
    if cost == "latency":
        return f"{value:.3g} ms"
    scale = min(9, 3 * int(math.log10(value) // 3)) if value >= 1000 else 0
    number = f"{value / 10**scale:.4g}{ {0: '', 3: 'k', 6: 'M', 9: 'G'}[scale] }"
    return f"{number} {COST_UNITS[cost]}"


def _parse_target(text: Any, info: ValidationInfo) -> Any:
    return parse_cost(text) if info.data.get("cost", "latency") in ("latency", "none") else parse_amount(text)


Amount = Annotated[float, BeforeValidator(parse_amount), Field(gt=0)]


class CostAware(Settings):
    """The part of the settings of a search that says which cost it minds, and of which network."""

    cost: Literal["none"] | CostName = Field(
        "none",
        description="what the search minds of the derived network beside its accuracy: its weights, its multiply-adds, "
        "or its latency by a table of measurements. gradient: a term of the alphas' loss; random, evolution, …: of the "
        "candidates",
    )
    cost_target: Annotated[Literal["none"] | Annotated[float, Field(gt=0)], BeforeValidator(_parse_target)] = Field(
        "none",
        description="with cost: what gradient pulls the expected cost towards, and the most that a candidate may cost; "
        "300M, 0.3G and 3e8 are the same; a latency is in ms. none: the cheaper the better",
    )
    cost_at: Literal["derived", "expected"] = Field(
        "derived",
        description="with cost_target, by gradient: what is compared with it: the cost of the network that would be "
        "derived now, with the expected cost's gradient, or the expected cost itself (ProxylessNAS)",
    )
    cost_weight: Literal["auto"] | Annotated[float, Field(ge=0)] = Field(
        "auto",
        description="with cost, by gradient: factor of |log(cost / cost_target)| in the alphas' loss, or of "
        "log(cost / mean) without a target; auto: 10 or 0.1",
    )
    cost_channels: Channels = Field(36, description="with cost: width of the derived network's first cells")
    cost_layers: int = Field(20, ge=1, le=MAX_LAYERS, description="with cost: number of its cells")
    cost_table: str = Field(
        "",
        description="with cost=latency: a table that 'ssfnas latency' made, elsewhere perhaps; empty: this machine's",
    )

    @field_validator("cost_target", "cost_at", "cost_weight", "cost_channels", "cost_layers", "cost_table")
    @classmethod
    def _is_of_a_cost(cls, value: Any, info: ValidationInfo) -> Any:
        if value != cls.model_fields[str(info.field_name)].default and info.data.get("cost", "params") == "none":
            raise ValueError("is of a cost: name one, --cost params, macs or latency")
        return value

    @field_validator("cost_table")
    @classmethod
    def _is_of_latencies(cls, table: str, info: ValidationInfo) -> str:
        cost = info.data.get("cost", "latency")
        if table and cost not in ("latency", "none"):
            raise ValueError(f"is of latencies, and cost is '{cost}': set cost=latency")
        return table

    @property
    def weight_of_cost(self) -> float:
        """What `cost_weight` means."""
        if self.cost_weight != "auto":
            return float(self.cost_weight)
        return 0.1 if self.cost_target == "none" else 10.0

    def unused(self) -> frozenset[str]:
        """As for every command; and what is said of a cost where none is minded."""
        idle = (
            {"cost_target", "cost_at", "cost_weight", "cost_channels", "cost_layers"} if self.cost == "none" else set()
        )
        return super().unused() | idle
