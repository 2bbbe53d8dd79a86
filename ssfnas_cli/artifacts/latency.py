"""A table of latencies: how long each part of a derived network takes on one machine, in the form of JSON.

It is text that may be edited or made by another program, for a device that ssfnas does not run on.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ssfnas_cli.artifacts.files import cache_folder, read_json, read_schema, validation_error, write_bytes
from ssfnas_cli.console import log
from ssfnas_cli.errors import InputError
from ssfnas_cli.json_text import layout_json

SCHEMA = "ssfnas.latency/1"
FOLDER = "latency"  # in the cache
Positive = Annotated[int, Field(ge=1, le=1_000_000)]


class Conditions(BaseModel):
    """What latencies were measured on and with. Those of other conditions are another table."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    device: str = Field(description="cpu, or the name of the accelerator")
    processor: str = Field(description="name of the processor")
    torch: str = Field(description="its version")
    threads: int = Field(ge=0, description="processor threads")
    batch: Positive = Field(description="images at a time; the latency is that of all of them")

    def words(self) -> str:
        """In a line."""
        return f"{self.device}, {self.threads} threads, batch {self.batch}, torch {self.torch}, {self.processor}"


class Entry(BaseModel):
    """The latency of one part of a network."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    kind: Literal["stem", "projection", "reduction", "op", "concatenation", "classifier"] = Field(
        description="projection and reduction bring the two inputs of a cell to its width and side"
    )
    name: str = Field("", description="of the op or the stem")
    options: dict[str, Any] = Field(default_factory=dict, description="of the op, all of them")
    in_channels: Positive = Field(description="channels of its input")
    out_channels: Positive = Field(description="channels of its output; of a stem the width of the first cells")
    side: Positive = Field(description="side of its input")
    stride: Positive = Field(description="2 if it halves the side")
    ms: float = Field(gt=0, description="milliseconds: the median of several measurements")


class LatencyFile(BaseModel):
    """All latencies that were measured under the same conditions."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, defer_build=True)

    schema_name: Literal["ssfnas.latency/1"] = Field("ssfnas.latency/1", alias="schema")
    conditions: Conditions = Field(description="what they were measured on")
    entries: list[Entry] = Field(default_factory=list, max_length=100_000, description="the parts")

    def to_json(self) -> bytes:
        """The content of the file."""
        return (layout_json(self.model_dump(by_alias=True, mode="json")) + "\n").encode()


def cached_table_path(conditions: Conditions) -> Path:
    """Where the table of these conditions is kept."""
    text = json.dumps(conditions.model_dump(), sort_keys=True)
    device = re.sub(r"[^A-Za-z0-9]+", "-", conditions.device).strip("-").lower() or "device"
    return cache_folder() / FOLDER / f"{device}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"


def read_table(path: Path) -> LatencyFile:
    """Read a table.

    Raises:
        InputError: there is none, or the file is no table.
    """
    value = read_json(path)
    if read_schema(value, str(path), SCHEMA) != SCHEMA:
        raise InputError(f"{path}: is no table of latencies: 'ssfnas latency -o FILE' makes one")
    try:
        return LatencyFile.model_validate(value)
    except ValidationError as error:
        raise validation_error(str(path), error) from None


def read_cached_table(conditions: Conditions) -> LatencyFile:
    """The table of the cache for these conditions; empty if there is none, or a damaged one."""
    path = cached_table_path(conditions)
    if path.exists():
        try:
            found = read_table(path)
            if found.conditions == conditions:
                return found
        except InputError as error:
            log.warning("%s: measuring anew", error)
    return LatencyFile(conditions=conditions)


def write_cached_table(table: LatencyFile) -> Path:
    """Keep a table in the cache."""
    path = cached_table_path(table.conditions)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write_bytes(path, table.to_json())
    return path
