"""The cost that a search minds: of its space, as its strategy takes it and as config.json records it.

What is recorded is what counts when a search goes on, also where the table of latencies is another one by then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from registry import STRATEGIES
from registry.cost import SearchCost
from registry.space import NUM_INPUTS, edge_list
from ssfnas_cli import world
from ssfnas_cli.artifacts.dataset import DataSet
from ssfnas_cli.artifacts.files import sha256_bytes
from ssfnas_cli.artifacts.latency import read_table
from ssfnas_cli.artifacts.run import COST_TABLE
from ssfnas_cli.console import log
from ssfnas_cli.engine.latency import LatencyTable
from ssfnas_cli.engine.rules import RULES
from ssfnas_cli.engine.search_health import derived, genotype_weights
from ssfnas_cli.engine.strategy import build_strategy
from ssfnas_cli.errors import UsageError, naming
from ssfnas_cli.nets.parts import COUNTS, NetworkShape, Space
from ssfnas_cli.nets.stems import choose_stem
from ssfnas_cli.settings import SearchSettings, show_amount


def cost_identity(settings: SearchSettings) -> dict[str, str]:
    """The part of a run's identity that is a table of latencies which the settings name.

    Raises:
        InputError: there is no such table.
    """
    if settings.cost != "latency" or not settings.cost_table:
        return {}
    with naming("--cost-table"):
        return {f"{COST_TABLE}sha256": sha256_bytes(read_table(Path(settings.cost_table)).to_json())}


def find_cost(
    settings: SearchSettings, data: DataSet, device: torch.device, recorded: Mapping[str, Any] | None
) -> tuple[SearchCost, dict[str, Any]] | None:
    """The cost that a search minds, and what config.json is to record of it; None if it minds none.

    Args:
        settings: resolved.
        data: the data set, which decides the size of the network's images.
        device: where latencies are measured that no table has.
        recorded: what an earlier start of the same run has recorded.

    Raises:
        UsageError: the strategy does nothing about costs, or the target is beyond those of the space.
        InputError: the table that the settings name lacks something.
    """
    name = settings.strategy.name
    if settings.cost == "none":
        if settings.strategy.options().get("parents") == "front":
            raise UsageError("--set strategy.parents=front: is of fitness and a cost: name one, such as --cost macs")
        return None
    if not getattr(STRATEGIES.get(name).factory, "minds_cost", False):
        raise UsageError(
            f"--cost {settings.cost}: the strategy '{name}' does nothing about a cost: take --strategy gradient, "
            "progressive, random, evolution or reinforce"
        )
    facts = dict(recorded) if recorded else world.from_first(lambda: _work_out(settings, data, device))
    cost = cost_of(settings, facts)
    _refuse_target_beyond(cost, settings)
    return cost, facts


def cost_of(settings: SearchSettings, facts: Mapping[str, Any]) -> SearchCost:
    """The cost that config.json records."""
    name = build_strategy(settings).default_rule
    rule = RULES.get(name, RULES["darts"])
    choices = [k for k, op in enumerate(settings.ops) if op != "none" or rule.none_competes]
    target = None if settings.cost_target == "none" else settings.cost_target
    ops = {kind: _by_edge(by_op, settings) for kind, by_op in facts["ops"].items()}
    cost = SearchCost(ops, facts["fixed"], choices, rule.edges_per_node, target, settings.weight_of_cost)
    if settings.cost_at == "expected":
        return cost

    def of_derived(weights: Mapping[str, np.ndarray]) -> float | None:
        genotype = derived(weights, settings.ops, name)
        return None if genotype is None else cost.of(genotype_weights(genotype, settings.ops))

    return dataclasses.replace(cost, derived=of_derived)


def _by_edge(by_op: Mapping[str, Mapping[str, float]], settings: SearchSettings) -> np.ndarray:
    """Costs [num_edges, num_ops], from those of each op on an edge from an input of the cell and from another node."""
    rows = [[by_op[op][_origin(source)] if op in by_op else 0.0 for op in settings.ops] for source, _ in edge_list()]
    return np.array(rows, dtype=np.float64)


def _origin(source: int) -> str:
    return "from_input" if source < NUM_INPUTS else "from_node"


def space_of(settings: SearchSettings, data: DataSet) -> Space:
    """The networks that can be derived of a search, at the size that its costs are meant of."""
    stem, _ = choose_stem(settings.stem, data.image_size)
    shape = NetworkShape(settings.cost_channels, settings.cost_layers, stem, **data.network_facts)
    return Space(shape, settings.ops, settings.op_options)


def _work_out(settings: SearchSettings, data: DataSet, device: torch.device) -> dict[str, Any]:
    """What config.json records: the costs of the ops, and the network that they are meant of."""
    space = space_of(settings, data)
    table: LatencyTable | None = None
    if settings.cost == "latency":
        table = _table(settings, space, device)
    costs = space.costs(COUNTS[settings.cost] if table is None else table)
    edges = [edge_list().index((0, 2)), edge_list().index((2, 3))]
    ops = {
        kind: {
            op: {_origin(edge_list()[row][0]): float(values[row, column]) for row in edges}
            for column, op in enumerate(settings.ops)
        }
        for kind, values in costs.ops.items()
    }
    measured = {} if table is None else {"conditions": table.file.conditions.model_dump()}
    return {"of": settings.cost, **space.shape._asdict(), "fixed": costs.fixed, "ops": ops, **measured}


def _table(settings: SearchSettings, space: Space, device: torch.device) -> LatencyTable:
    """The table that the settings name, or that of this machine, in which nothing lacks then."""
    if not settings.cost_table:
        return LatencyTable.measured(space.parts(), device)[0]
    table = LatencyTable.read(Path(settings.cost_table))
    table.refuse_missing(space.parts(), space.shape, space.ops)
    return table


def _refuse_target_beyond(cost: SearchCost, settings: SearchSettings) -> None:
    if cost.target is None or cost.smallest <= cost.target <= cost.largest:
        return
    raise UsageError(
        f"--cost-target {show_amount(cost.target, settings.cost)}: the networks of this space cost "
        f"{_range(cost, settings)} with {settings.cost_channels} channels and {settings.cost_layers} cells "
        "(--cost-channels, --cost-layers)"
    )


def _range(cost: SearchCost, settings: SearchSettings) -> str:
    """`1.05M to 5.2M weights`."""
    least, most = (show_amount(value, settings.cost) for value in (cost.smallest, cost.largest))
    return f"{least.partition(' ')[0]} to {most}"


def say_cost(cost: SearchCost, settings: SearchSettings) -> None:
    """What the search minds, and between which costs it chooses."""
    show = lambda value: show_amount(value, settings.cost)
    aim = "the cheaper the better" if cost.target is None else f"target {show(cost.target)}"
    log.info(
        "cost: %s of the network with %d channels and %d cells: %s, mean %s; %s",
        *(settings.cost, settings.cost_channels, settings.cost_layers),
        *(_range(cost, settings), show(cost.mean), aim),
    )


def say_final_cost(last: Mapping[str, Any], cost: SearchCost, settings: SearchSettings) -> None:
    """What the genotype's network costs at the end, and what was expected."""
    if "genotype_cost" not in last:
        return
    show = lambda value: show_amount(value, settings.cost)
    expected = f" (expected cost {show(last['expected_cost'])})" if "expected_cost" in last else ""
    aim = "" if cost.target is None else f"; target {show(cost.target)}"
    log.info("cost: the genotype's network costs %s%s%s", show(last["genotype_cost"]), expected, aim)
