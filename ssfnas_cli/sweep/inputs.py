"""Whether what the missing cells of a sweep will read is there: the sources of data sets, and splits to evaluate.

Only the command that plans a sweep asks it: `compare --sweep` reads the same file when the sources may be gone. Of
what is made already nothing is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from registry import SOURCES, PluginError
from ssfnas_cli.artifacts.dataset import MANIFEST, DataSet
from ssfnas_cli.errors import InputError, UsageError
from ssfnas_cli.settings import MakeDatasetSettings
from ssfnas_cli.sweep.cells import Cell
from ssfnas_cli.sweep.plan_file import PlanFile
from ssfnas_cli.sweep.state import parse_words


def check_inputs(plan: PlanFile, cells: Sequence[Cell], left: Sequence[Cell]) -> None:
    """Check the data sets that are to be made, and those that are to be evaluated.

    Args:
        plan: the file, for messages.
        cells: all of the sweep.
        left: those that are not done.

    Raises:
        UsageError: a source gets a root that it does not read, or none; or a data set will not have a split.
        InputError: a root does not exist, or is no source.
    """
    recipes = {cell.output: cell.recipe for cell in cells if cell.stage == "data" and cell.recipe is not None}
    for cell in left:
        if cell.stage == "data" and cell.recipe is not None:
            _check_root(plan, cell.recipe)
    asked: dict[Path | None, set[str]] = {}
    for cell in left:
        if cell.stage == "evaluate" and cell.splits:
            asked.setdefault(cell.data, set()).update(cell.splits)
    for data, splits in asked.items():
        _check_splits(plan, data, None if data is None else recipes.get(data), splits)


def _check_root(plan: PlanFile, recipe: MakeDatasetSettings) -> None:
    if recipe.source.name == "digits" and not recipe.root:  # the default, whose module takes a second to import
        return
    from ssfnas_cli.data.sources.base import check_root

    try:
        check_root(recipe)
    except (UsageError, PluginError) as error:
        raise plan.refuse("[data]", _by_key(error)) from None
    except InputError as error:
        raise InputError(f"{plan.path}: [data] {_by_key(error)}: name it with --set data.root=PATH") from None


def _by_key(error: Exception) -> str:
    """A message that names the file's key instead of the flag of `make-dataset`."""
    return str(error).replace("--root", "root", 1).replace("--source", "source")


def _check_splits(plan: PlanFile, data: Path | None, recipe: MakeDatasetSettings | None, asked: set[str]) -> None:
    named, has, remedy = "the embedded data set", "has", ": "
    if data is not None and (recipe is None or (data / MANIFEST).is_file()):
        there, named = DataSet.open(data, ()).splits, str(data)
    else:
        there = ["train", "test", "test_longtail"]  # every data set has these
        if data is not None and recipe is not None:
            named, has, remedy = str(data), "will have", ": cut one with [data] val_share = 0.2, or "
            there += ["val"] if "val" in asked and (recipe.val_share or _has_val(plan, recipe)) else []
    if lacking := sorted(asked - set(there)):
        why = f"{named} {has} no split '{lacking[0]}'{remedy}name of {', '.join(there)}"
        raise plan.refuse("[evaluate] split", why)


def _has_val(plan: PlanFile, recipe: MakeDatasetSettings) -> bool:
    """Whether a source has a val split of its own, for which its layout is read if its name does not tell."""
    splits = SOURCES.get(recipe.source.name).facts.splits
    if splits is None:
        from ssfnas_cli.data.sources.base import open_source

        try:
            splits = tuple(open_source(recipe).splits)
        except InputError as error:
            raise InputError(f"{plan.path}: [data] {_by_key(error)}") from None
    return "val" in splits


def twins(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """The names of cells whose commands are equal but for where their results go, each with the first such cell."""
    first: dict[str, str] = {}
    found = []
    for cell in cells:
        if cell.stage != "evaluate":
            other = first.setdefault(repr(parse_words(cell.argv, ("-o",))), cell.name)
            found += [(other, cell.name)] if other != cell.name else []
    return found
