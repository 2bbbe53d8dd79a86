"""The grid of a stage: every combination of its arms and of the values of its axes, each with a name."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssfnas_cli.sweep.plan_file import PlanFile

ARMS, PRESET = "arms", "preset"
LISTS = {"adjust": ("of",), "evaluate": ("split",)}  # what is a list by nature, and no axis
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")  # what begins a file's name and needs no quotes in any shell
MAX_NAME = 200  # characters of a name: a file system takes 255 bytes, and a suffix must fit


@dataclass(frozen=True)
class Variant:
    """One combination of a stage's grid.

    Attributes:
        name: its part of the names of what it makes; empty if the stage has one combination only.
        arm: the name of its arm, or empty.
        base: the settings that all combinations of the stage share.
        chosen: the settings of its arm and of its values on the axes, which win over `base`, in order.
    """

    name: str
    arm: str
    base: dict[str, Any]
    chosen: tuple[dict[str, Any], ...] = field(default=())

    @property
    def layers(self) -> tuple[dict[str, Any], ...]:
        """All settings, the later ones winning."""
        return (self.base, *self.chosen)


def expand(plan: PlanFile, stage: str) -> list[Variant]:
    """Every combination of a stage's arms and axes; a single one without a name if it has neither.

    Raises:
        UsageError: an axis or the arms are empty, or a name is none that a file can have.
    """
    table = dict(plan.tables.get(stage, {}))
    arms = _arms(plan, stage, table.pop(ARMS, None))
    axes = {path: values for path, values in _axes(table) if path not in LISTS.get(stage, ())}
    for path, values in axes.items():
        if not values:
            raise plan.refuse(f"[{stage}] {path}", "is an axis over nothing: give values, or leave it out")
    base = without(table, axes)
    choices = [[(f"{path}", value, label(plan, stage, path, value)) for value in axes[path]] for path in axes]
    variants: list[Variant] = []
    for (arm, settings), *values in itertools.product(arms, *choices):
        name = "-".join(part for part in (arm, *(text for _, _, text in values)) if part)
        chosen = (settings, *(_tree(path, value) for path, value, _ in values))
        if name in (other.name for other in variants):
            raise plan.refuse(f"[{stage}]", f"two cells would be called '{name}'")
        variants.append(Variant(name, arm, base, tuple(layer for layer in chosen if layer)))
    return variants


def check_name(plan: PlanFile, place: str, name: str) -> None:
    """Refuse a name that a folder cannot have, or that a shell or a pattern would read otherwise.

    Raises:
        UsageError: it is such a name.
    """
    if len(name) > MAX_NAME:
        why = f"'{name[:40]}…' has {len(name)} characters, and a name at most {MAX_NAME}: give a shorter one"
        raise plan.refuse(place, why if place.endswith(f"{ARMS}]") else f"{why}, as an arm")
    if not NAME.fullmatch(name):
        why = f"'{name}' is no name of a folder (letters, digits, and . _ + - behind the first): name it by an arm"
        raise plan.refuse(place, why)


def label(plan: PlanFile, stage: str, path: str, value: Any) -> str:
    """What a value of an axis is called: a word is itself, a number has the key before it, a path its last part.

    Raises:
        UsageError: the value is a table, or what it would be called is no name of a folder.
    """
    place = f"[{stage}] {path}"
    if isinstance(value, Mapping):
        raise plan.refuse(place, "a value that is a table has no name: make it an arm, [" + stage + ".arms]")
    key = path.rpartition(".")[2]
    if isinstance(value, list):
        text = key + "+".join(_word(one) for one in value)
    elif isinstance(value, str):
        text = Path(value).name if "/" in value else value
    else:
        text = f"{key}-{_word(value)}" if isinstance(value, bool) else key + _word(value)
    check_name(plan, place, text)
    return text


def _word(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _arms(plan: PlanFile, stage: str, arms: Any) -> list[tuple[str, dict[str, Any]]]:
    """Names and settings; one without a name if the stage has no arms."""
    if arms is None:
        return [("", {})]
    if not isinstance(arms, Mapping) or not all(isinstance(settings, Mapping) for settings in arms.values()):
        raise plan.refuse(f"[{stage}.{ARMS}]", "should hold a table of settings for each arm: NAME = { KEY = VALUE }")
    if not arms:
        raise plan.refuse(f"[{stage}.{ARMS}]", "is empty: name an arm, or leave the table out")
    for name, settings in arms.items():
        check_name(plan, f"[{stage}.{ARMS}]", name)
        if number := next((key for key in settings if key[:1].isdigit()), None):  # no setting begins with a digit
            whole = f"{name}.{number}"
            raise plan.refuse(f"[{stage}.{ARMS}]", f'a name with a dot stands in quotes: "{whole}" = {{ … }}')
    return [(name, dict(settings)) for name, settings in arms.items()]


def _axes(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Sequence[Any]]]:
    """The keys, joined by dots, whose values are lists."""
    for key, value in table.items():
        if isinstance(value, list):
            yield prefix + key, value
        elif isinstance(value, Mapping):
            yield from _axes(value, f"{prefix}{key}.")


def without(table: Mapping[str, Any], paths: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A copy of a tree without the given paths."""
    return {
        key: without(value, paths, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in table.items()
        if prefix + key not in paths
    }


def _tree(path: str, value: Any) -> dict[str, Any]:
    tree: Any = value
    for key in reversed(path.split(".")):
        tree = {key: tree}
    return dict(tree)
