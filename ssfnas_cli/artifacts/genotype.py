"""Genotypes, which describe the ops and edges of the normal and the reduction cell.

Nodes are numbered as in the papers: 0 and 1 are the outputs of the two previous cells, and 2 and above are intermediate
nodes. A file contains `"schema": "ssfnas.genotype/1"`, a list of edges and the concatenated nodes of each cell, the
granularity of drop path, and the provenance.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from registry import OPS, PluginError
from ssfnas_cli.artifacts.files import dump_json, parse_json, read_bytes, read_schema, validation_error
from ssfnas_cli.errors import InputError

SCHEMA = "ssfnas.genotype/1"
MAX_GENOTYPE_BYTES = 1 << 20
MAX_NODES = 64
MAX_EDGES = 256  # per cell


class PrunedCell(NamedTuple):
    """A cell after pruning, as it is built."""

    edges: list[Edge]  # those from a node with input, sorted by (to, from)
    nodes: list[int]  # intermediate nodes that have an input
    concat: list[int]  # concatenated nodes that have an input
    dead_nodes: list[int]  # intermediate nodes, up to the last one named, that have no input
    dead_edges: list[Edge]  # edges that leave a dead node


class Edge(BaseModel):
    """An op on the edge between two nodes. An edge may have the same op twice."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, defer_build=True)

    op: str = Field(description="name of the operation")
    source: int = Field(alias="from", ge=0, lt=MAX_NODES, strict=True, description="node that it reads")
    target: int = Field(
        alias="to", ge=2, lt=MAX_NODES, strict=True, description="node that its result is added to; greater than from"
    )

    @model_validator(mode="after")
    def _forward_only(self) -> Edge:
        if self.source >= self.target:
            raise ValueError(f"an edge from node {self.source} to node {self.target} would make a cycle")
        return self


class Cell(BaseModel):
    """The edges of a cell type and the nodes whose concatenation is its output."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    edges: Annotated[tuple[Edge, ...], Field(max_length=MAX_EDGES)] = Field(description="the operations between nodes")
    concat: tuple[int, ...] = Field(description="the nodes whose concatenation is the output of the cell")

    @model_validator(mode="after")
    def _concat_is_sound(self) -> Cell:
        if len(set(self.concat)) != len(self.concat):
            raise ValueError("a node is concatenated twice")
        if any(not 2 <= node < MAX_NODES for node in self.concat):
            raise ValueError("only intermediate nodes (2 and up) can be concatenated")
        if not self.pruned().concat:
            raise ValueError("no concatenated node has an input: the cell would have no output")
        return self

    def pruned(self) -> PrunedCell:
        """Remove nodes without input and the edges from them, until nothing changes."""
        edges = [edge for edge in self.edges if edge.op != "none"]
        last = max([1, *self.concat, *(edge.target for edge in self.edges)])
        named = set(range(2, last + 1))
        while True:
            fed = {0, 1} | {edge.target for edge in edges}
            kept = [edge for edge in edges if edge.source in fed]
            if len(kept) == len(edges):
                break
            edges = kept
        return PrunedCell(
            edges=sorted(edges, key=lambda edge: (edge.target, edge.source)),
            nodes=sorted(named & fed),
            concat=[node for node in self.concat if node in fed],
            dead_nodes=sorted(named - fed),
            dead_edges=[edge for edge in self.edges if edge.op != "none" and edge.source not in fed],
        )

    def op_counts(self) -> dict[str, int]:
        """How often each op occurs after pruning, the most frequent first."""
        return dict(Counter(edge.op for edge in self.pruned().edges).most_common())


class Provenance(BaseModel):
    """The origin of a genotype. Every field may be missing, as in an imported one."""

    model_config = ConfigDict(extra="allow", frozen=True, defer_build=True)

    run: str | None = Field(None, description="folder of the search")
    epoch: int | None = Field(None, description="epoch of the search")
    rule: str | None = Field(None, description="derivation rule")
    threshold: float | None = Field(None, description="smallest mixing weight that the rule kept")
    max_skips: int | None = Field(None, description="how many skip connections the normal cell was allowed")
    alphas_sha256: str | None = Field(None, description="of the alphas that it was derived from")
    data: str | None = Field(None, description="folder of the data set of the search")
    data_sha256: str | None = Field(None, description="its identity")
    seed: int | None = Field(None, description="of the search")
    init_from: str | None = Field(None, description="folder of the search whose supernet that search began with")
    init_sha256: str | None = Field(None, description="of the weights that it began with")
    candidate: int | None = Field(None, description="number of the candidate, of those that the search has judged")
    limits: dict[str, int | float | str] | None = Field(
        None, description="what the network had to fit into (max_params, max_macs), and the size that it is meant of"
    )
    versions: dict[str, str] | None = Field(None, description="of ssfnas, torch, Python, and plugins of other packages")


class Genotype(BaseModel):
    """A normal cell and a reduction cell, with their provenance."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, defer_build=True)

    schema_name: Literal["ssfnas.genotype/1"] = Field("ssfnas.genotype/1", alias="schema")
    name: str | None = Field(None, description="a name for people, such as that of a published genotype")
    normal: Cell = Field(description="the cell that keeps the side of the maps")
    reduce: Cell = Field(description="the cell that halves it")
    drop_path: Literal["op", "node"] = Field(
        "op", description="what drop path drops in training: ops (DARTS) or nodes (FairDARTS)"
    )
    op_options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="options of ops that have some, by op"
    )
    provenance: Provenance = Field(Provenance(), description="where it came from")

    @model_validator(mode="after")
    def _ops_are_known(self) -> Genotype:
        known = OPS.names()  # called once, because it searches the installed distributions
        for edge in (*self.normal.edges, *self.reduce.edges):
            if edge.op not in known:
                OPS.get(edge.op)  # it raises an error with a suggestion
        return self

    def cells(self) -> dict[str, Cell]:
        """The cells by type, `normal` and `reduce`."""
        return {"normal": self.normal, "reduce": self.reduce}

    def shape(self) -> dict[str, Any]:
        """The network that it means, which is a retraining's identity: all but its name and provenance."""
        return self.model_dump(by_alias=True, mode="json", include={"normal", "reduce", "drop_path", "op_options"})

    def to_json(self) -> bytes:
        """The content of a genotype file. Fields without a value are omitted."""
        return dump_json(self.model_dump(by_alias=True, exclude_none=True, mode="json"))


def parse_genotype(data: bytes, where: str) -> Genotype:
    """Parse a genotype from JSON.

    Args:
        data: the JSON text.
        where: its origin, for messages.

    Raises:
        InputError: it is not complete JSON or not a genotype, has a newer schema, names an unknown op, or has a cycle
            or an empty cell.
    """
    if len(data) > MAX_GENOTYPE_BYTES:
        raise InputError(f"{where}: {len(data):,} bytes is more than a genotype can have ({MAX_GENOTYPE_BYTES:,})")
    if re.search(rb"Genotype\(", data) and not data.lstrip().startswith(b"{"):
        raise InputError(f"{where}: is a published genotype's text, not JSON: import it with 'ssfnas import-genotype'")
    value = parse_json(data, where)
    if not isinstance(value, dict):
        raise InputError(f"{where}: is not a genotype: expected an object with a 'schema'")
    if "kind" in value and "schema" not in value:
        raise InputError(f"{where}: is a {value['kind']}, not a genotype{_derive_hint(value)}")
    schema = read_schema(value, where, SCHEMA)
    if schema != SCHEMA:
        raise InputError(f"{where}: is not a genotype: its schema is {schema!r}, not '{SCHEMA}'")
    try:
        genotype = Genotype.model_validate(value)
        for (
            op,
            options,
        ) in genotype.op_options.items():  # OPS.get imports the op and so torch, but few genotypes have options
            OPS.get(op).parse_options(options)
        return genotype
    except ValidationError as error:
        raise validation_error(where, error, made_with=_plugins_of(value)) from None
    except PluginError as error:
        raise InputError(f"{where}: op_options: {error}") from None


def _plugins_of(value: dict[str, Any]) -> dict[str, str]:
    """The plugins of other packages that a document's provenance names."""
    provenance = value.get("provenance")
    versions = provenance.get("versions") if isinstance(provenance, dict) else None
    if not isinstance(versions, dict):
        return {}
    return {name: str(version) for name, version in versions.items() if " " in name}


def _derive_hint(value: dict[str, Any]) -> str:
    if value["kind"] != "search-run":
        return ""
    return f": derive one with 'ssfnas derive {shlex.quote(str(value.get('path', 'RUN')))}'"


def read_genotype(path: Path) -> Genotype:
    """Read a genotype from a file. For a run folder, the error names the right command."""
    if path.is_dir():
        hint = ""
        if (path / "genotype.json").exists():
            hint = f": name {path / 'genotype.json'}"
        elif (path / "alphas.safetensors").exists():
            hint = f": derive one with 'ssfnas derive {shlex.quote(str(path))} -o genotype.json'"
        raise InputError(f"{path}: is a folder, not a genotype{hint}")
    return parse_genotype(read_bytes(path, MAX_GENOTYPE_BYTES), str(path))
