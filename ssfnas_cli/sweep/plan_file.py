"""The file of a sweep: a table for each stage of the pipeline, with the settings of its command.

A list is an axis of the grid. `[STAGE.arms]` names combinations of settings that are compared. What stands in a table
is checked where the stage's commands are put together (`stages.py`); here it is only read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry.core import did_you_mean
from ssfnas_cli.errors import UsageError
from ssfnas_cli.settings import merge, parse_set, read_toml

STAGES = ("data", "search", "derive", "retrain", "adjust", "evaluate")  # tables, in the order of the pipeline
TABLES = (*STAGES, "networks")
KEYS = ("output", "seeds", *TABLES)
MAX_SEED = 2**63


@dataclass(frozen=True)
class PlanFile:
    """A file of a sweep, read.

    Attributes:
        path: the file, for messages.
        output: the folder of everything that the sweep makes.
        seeds: of searches and retrainings that set none themselves.
        tables: the tables that the file has, by name. `networks` holds a table for each network.
        notes: what the author may have meant otherwise, for who plans the sweep.
    """

    path: Path
    output: Path
    seeds: tuple[int, ...]
    tables: dict[str, dict[str, Any]]
    notes: tuple[str, ...] = ()

    def refuse(self, place: str, why: object) -> UsageError:
        """The error for something that is wrong at a place of the file, such as `[search]`."""
        return UsageError(f"{self.path}: {place}: {why}")


def read_plan(path: Path, sets: Sequence[str] = (), output: Path | None = None) -> PlanFile:
    """Read the file of a sweep.

    Args:
        path: the file.
        sets: `KEY=VALUE` that win over the file, such as `data.mu=[0.1]`.
        output: the folder that wins over the file's; without either it is `runs/` and the name of the file.

    Raises:
        InputError: the file cannot be read.
        UsageError: it has an unknown table, or one of the wrong form.
    """
    document = read_toml(path, str(path))
    changes = [_only_path(parse_set(text)) for text in sets]
    for keys, value in sorted(changes, key=lambda change: len(change[0])):  # a plugin's name before its options
        _set(document, keys, value)
    for key in document:
        if key not in KEYS:
            raise UsageError(f"{path}: unknown key '{key}'.{_hint(key)} Known: {', '.join(KEYS)}")
    for name in TABLES:
        if name in document and not isinstance(document[name], dict):
            raise UsageError(f"{path}: {name}: should be a table: [{name}]")
    tables = {name: document[name] for name in TABLES if name in document}
    _check_order(path, tables)
    named = document.get("output", str(Path("runs") / path.stem))
    if not isinstance(named, str) or not named:
        raise UsageError(f"{path}: output: should be the name of a folder")
    output = output or Path(named)
    if str(output).startswith("-"):
        raise UsageError(f"--output {output}: would be read as a flag: write ./{output}")
    seeds = document.get("seeds", [0])
    notes = (f"{path}: seeds = {seeds} is the one seed {seeds}; for three write seeds = [0, 1, 2]",)
    return PlanFile(path, output, _read_seeds(path, seeds), tables, () if isinstance(seeds, list) else notes)


def _only_path(layer: Mapping[str, Any]) -> tuple[list[str], Any]:
    """The keys that lead to the value of a `--set`, and the value."""
    keys: list[str] = []
    value: Any = layer
    while isinstance(value, Mapping) and len(value) == 1:
        ((key, value),) = value.items()
        keys.append(key)
    return keys, value


def _set(document: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Have a `--set` in the file. An option of a plugin stands beside the plugin's name, and goes with it.

    `retrain.loss.defer=0.8` over `loss = "ldam"` is `"loss.defer" = 0.8`, not a table in place of the name.
    """
    place = document
    for depth, key in enumerate(keys[:-1]):
        below = place.setdefault(key, {})
        if not isinstance(below, dict):  # the name, or an axis of names
            place[".".join(keys[depth:])] = value
            return
        place = below
    last = keys[-1]
    before = place.get(last)
    if isinstance(before, dict) and isinstance(value, Mapping):
        place[last] = merge(before, value)
    elif not isinstance(before, dict) or before.get("name") != value:
        place[last] = value
        for option in [key for key in place if key.startswith(f"{last}.")] if before != value else ():
            del place[option]


def _hint(key: str) -> str:
    """Where an unknown key of the top belongs: into the tables that have such a setting, else to a similar key."""
    from ssfnas_cli.sweep.stages import MODELS, OWN  # which import this module

    tables = [f"[{stage}]" for stage, model in MODELS.items() if key in model.model_fields]
    if not tables or key in OWN:
        return did_you_mean(key, list(KEYS))
    return f" It is a setting of {', '.join(tables)}: write it there."


def _check_order(path: Path, tables: Mapping[str, Any]) -> None:
    """A stage needs those before it."""
    needs = {"derive": "search", "networks": "retrain", "adjust": "retrain", "evaluate": "retrain"}
    for name, other in needs.items():
        if name in tables and other not in tables:
            raise UsageError(f"{path}: [{name}]: there is no [{other}], which it needs")
    if "search" not in tables and "retrain" not in tables:
        raise UsageError(f"{path}: has neither [search] nor [retrain]: there is nothing to run")
    if "retrain" in tables and "search" not in tables and not tables.get("networks"):
        raise UsageError(f"{path}: [retrain]: there is nothing to train: give [search], or name networks in [networks]")


def _read_seeds(path: Path, value: Any) -> tuple[int, ...]:
    seeds = value if isinstance(value, list) else [value]
    for seed in seeds:
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < MAX_SEED:
            raise UsageError(f"{path}: seeds: {seed!r} is no seed: should be numbers such as [0, 1, 2]")
    if not seeds:
        raise UsageError(f"{path}: seeds: is empty: there would be nothing to run")
    if len(set(seeds)) != len(seeds):
        raise UsageError(f"{path}: seeds: names a seed twice")
    return tuple(seeds)
