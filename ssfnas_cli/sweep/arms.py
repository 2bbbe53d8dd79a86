"""The runs of a sweep by its arms: which arm of the file a run is, and which runs there are not yet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ssfnas_cli.console import first_of
from ssfnas_cli.errors import InputError
from ssfnas_cli.results.facts import SEARCH, RunFacts, is_lost, search_of
from ssfnas_cli.results.selection import LeftOut, Selection
from ssfnas_cli.sweep.cells import Cell
from ssfnas_cli.sweep.grid import build_cells
from ssfnas_cli.sweep.plan_file import read_plan

STAGES = {"search": ("search",), "retrain": ("retrain", "adjust")}  # which make the runs of a kind

MOST_NAMED = 4  # runs that a line names


def read_arms(file: Path) -> list[Cell]:
    """The cells of a sweep's file that have an arm: data sets and runs.

    Raises:
        InputError: the file cannot be read.
        UsageError: something in it is wrong.
    """
    return [cell for cell in build_cells(read_plan(file)) if cell.arm]


def name_runs(selection: Selection, file: Path) -> Selection:
    """The selection with the arm of every run, by the name of its folder, wherever that lies; in the file's order.

    A run of another seed than the file's is of its arm, too. Runs of no arm are left out, and so is what the sweep has
    not made yet of the kinds of runs in the selection, each in one line.

    Args:
        selection: of the folder of the sweep.
        file: the sweep's.

    Raises:
        InputError: no run is of an arm of the sweep.
    """
    cells = [cell for cell in read_arms(file) if cell.stage != "data"]
    arms = {_without_seed(cell.name): cell.arm for cell in cells}
    known = [(name, run) for run in selection.runs if (name := _without_seed(run.path.name)) in arms]
    order = {name: place for place, name in enumerate(arms)}
    known.sort(key=lambda pair: order[pair[0]])
    if not known:
        raise InputError(f"--sweep {file}: no run is one of its cells, such as '{cells[0].name}'")
    left_out = list(selection.left_out)
    if others := [run.path.name for run in selection.runs if _without_seed(run.path.name) not in arms]:
        left_out.append(LeftOut(file, f"{len(others)} other runs are none of its cells ({_shortened(others)})"))
    begun = {run.path.name for run in selection.runs} | {one.path.name for one in selection.left_out}
    stages = [stage for kind in {run.run.kind for run in selection.runs} for stage in STAGES[kind]]
    asked = [cell.name for cell in cells if cell.stage in stages]
    if missing := [name for name in asked if name not in begun]:
        why = f"{len(missing)} of its {len(asked)} runs are not there yet ({_shortened(missing)})"
        left_out.append(LeftOut(file, why, "the same 'ssfnas sweep' makes them"))
    return Selection(_with_lost_searches([replace(run, arm=arms[name]) for name, run in known]), left_out)


def _with_lost_searches(runs: Sequence[RunFacts]) -> list[RunFacts]:
    """The runs; one whose search is not there any more counts as searched as the others of its arm are.

    Without its search a genotype is known as such alone, and would be an arm of its own for each seed. The name of the
    folder says of which arm it is, and the audit says that nothing else does.
    """
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for run in runs:
        if search_of(run) is not None:
            found.setdefault(run.arm, {key: value for key, value in run.settings.items() if key.startswith(SEARCH)})
    completed = []
    for run in runs:
        if is_lost(run) and isinstance(seed := run.run.config["genotype"]["provenance"].get("seed"), int):
            own = {key: value for key, value in run.settings.items() if key != "genotype"}
            searched = found.get(run.arm, {"genotype": "searched"})
            run = replace(run, settings=own | searched, seeds=(seed, *run.seeds))
        completed.append(run)
    return completed


def _without_seed(name: str) -> str:
    return _split_seed(name)[0]


def _split_seed(name: str) -> tuple[str, str]:
    """`darts-ce-seed0` as `darts-ce` and `0`; the latter is empty if the name ends with no seed."""
    before, mark, seed = name.rpartition("seed")
    return (before.rstrip("-"), seed) if mark and seed.isdigit() else (name, "")


def _shortened(names: Iterable[str]) -> str:
    """`darts-ce (seeds 0, 1), darts-barlow (seed 1)`: the first runs, those that differ in their seeds once."""
    seeds: dict[str, list[str]] = defaultdict(list)
    for arm, seed in map(_split_seed, names):
        seeds[arm] += [seed] if seed else []
    words = {0: "", 1: " (seed {})"}
    told = [arm + words.get(len(them), " (seeds {})").format(", ".join(them)) for arm, them in seeds.items()]
    return first_of(told, MOST_NAMED)


def data_names(file: Path) -> Mapping[str, str]:
    """What the sweep calls its data sets, by the name of their folders without the hash of the settings at its end."""
    cells = [cell for cell in read_arms(file) if cell.stage == "data"]
    return {cell.name.rpartition("-")[0]: cell.arm[0] for cell in cells if cell.arm[0]}
