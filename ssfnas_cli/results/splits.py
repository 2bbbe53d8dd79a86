"""Which splits of evaluated runs a table, a picture or a list is about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ssfnas_cli.artifacts.metrics import EVALUATED
from ssfnas_cli.errors import InputError, UsageError

if TYPE_CHECKING:
    from ssfnas_cli.results.facts import RunFacts


def main_split(evaluated: Sequence[str]) -> str:
    """The split that figures are of if nobody asks: `test`, or else the first that was evaluated."""
    return "test" if "test" in evaluated else evaluated[0]


def refuse_unknown_splits(names: Iterable[str]) -> None:
    """Check that there are splits of these names.

    Raises:
        UsageError: no data set has such a split.
    """
    for name in names:
        if name not in EVALUATED:
            raise UsageError(f"--split {name}: is no split: name one of {', '.join(EVALUATED)}")


def choose_splits(runs: Sequence[RunFacts], asked: Sequence[str]) -> list[str]:
    """The splits that are asked for, or else the main one of all that some run was evaluated on.

    Raises:
        UsageError: there is no such split.
        InputError: no run is evaluated on one. The message has the command that does it.
    """
    refuse_unknown_splits(asked)
    evaluated = list(dict.fromkeys(split for run in runs for split in (run.evaluation or {}).get("splits", {})))
    for split in asked:
        if split not in evaluated:
            raise InputError(
                f"--split {split}: no run is evaluated on it (evaluated: {', '.join(evaluated) or 'none'}): "
                f"ssfnas evaluate {runs[0].path} --split {split}"
            )
    return list(asked) or [main_split(evaluated or ["test"])]
