"""What the pictures of evaluated runs read from them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssfnas_cli.artifacts.files import read_bytes
from ssfnas_cli.errors import InputError
from ssfnas_cli.results.facts import RunFacts
from ssfnas_cli.results.grouping import Group


class Classes(NamedTuple):
    """The classes of evaluated runs: names and training images in class order, and the order from the largest on."""

    names: list[str]
    counts: list[int]
    order: list[int]


def evaluated(groups: Sequence[Group], split: str) -> Classes:
    """The classes, once it is clear that all runs can be drawn in one picture.

    Raises:
        InputError: a run is not evaluated on that split, or has other classes or other numbers of training images.
    """
    runs = [run for group in groups for run in group.runs]
    first = split_facts(runs[0], split) and runs[0].evaluation
    assert first
    for run in runs:
        split_facts(run, split)
        assert run.evaluation
        if run.evaluation["class_names"] != first["class_names"]:
            raise InputError(f"{run.path}: its classes are not those of {runs[0].path}: draw them one by one")
    counts = first["train_counts"]
    return Classes(first["class_names"], counts, sorted(range(len(counts)), key=lambda c: -counts[c]))


def split_facts(run: RunFacts, split: str) -> dict[str, Any]:
    """What `evaluate` measured on a split.

    Raises:
        InputError: it has not measured it. The message has the command that does.
    """
    splits = (run.evaluation or {}).get("splits", {})
    if split not in splits:
        known = ", ".join(splits) or "none"
        raise InputError(
            f"--split {split}: {run.path} is not evaluated on it (evaluated: {known}): "
            f"ssfnas evaluate {run.path} --split {split}"
        )
    return splits[split]


def per_class(group: Group, split: str, names: Sequence[str]) -> list[tuple[float, float, float] | None]:
    """For each class the mean accuracy of a group's runs, the least and the most; None if the split has no image."""
    rows = [split_facts(run, split)["per_class"] for run in group.runs]
    values = [[row[name] for row in rows if row.get(name) is not None] for name in names]
    return [(sum(one) / len(one), min(one), max(one)) if one else None for one in values]


def confusion(group: Group, split: str, names: Sequence[str]) -> NDArray[np.int64]:
    """The images [C, C] of all runs of a group together, a row for each true class."""
    return np.sum([_confusion(run, split, names) for run in group.runs], axis=0)


def _confusion(run: RunFacts, split: str, names: Sequence[str]) -> NDArray[np.int64]:
    facts = split_facts(run, split)
    if "confusion" in facts:
        return np.array(facts["confusion"], dtype=np.int64)
    recorded = facts.get("confusion_file")
    if recorded is None:
        raise InputError(f"{run.path}: its evaluation has no confusion matrix: ssfnas evaluate {run.path}")
    path = run.path / Path(recorded).name
    try:
        rows = list(csv.reader(read_bytes(path).decode().splitlines()))
        matrix = np.array([row[1:] for row in rows[1:]], dtype=np.int64)
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path}: is damaged ({error}): ssfnas evaluate {run.path}") from None
    if matrix.shape != (len(names), len(names)):
        raise InputError(f"{path}: does not have {len(names)} classes: ssfnas evaluate {run.path}")
    return matrix


def calibration(group: Group, split: str) -> dict[str, NDArray[np.float64]]:
    """The bins of a group's runs together: `num_images`, `confidence` and `accuracy` [bins]; 0 without images.

    Raises:
        InputError: a run was evaluated by an ssfnas that kept no bins.
    """
    tables = []
    for run in group.runs:
        bins = split_facts(run, split).get("calibration")
        if bins is None:
            raise InputError(
                f"{run.path}: its evaluation has no calibration bins, since an earlier ssfnas made it: "
                f"ssfnas evaluate {run.path}"
            )
        tables.append(bins)
    sizes = {len(bins["num_images"]) for bins in tables}
    if len(sizes) > 1:
        raise InputError(f"{group.runs[0].path}: its calibration bins are not as many as those of the other seeds")
    nums = np.array([bins["num_images"] for bins in tables], dtype=np.float64)
    total = nums.sum(0)
    means = {
        key: (nums * np.array([[value or 0.0 for value in bins[key]] for bins in tables])).sum(0) / np.maximum(total, 1)
        for key in ("confidence", "accuracy")
    }
    return {"num_images": total, **means}
