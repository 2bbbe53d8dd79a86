"""The cells of a sweep: each command that it runs, once, with a name, what it makes and which cells it needs."""

from __future__ import annotations

import fnmatch
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ssfnas_cli.errors import UsageError
from ssfnas_cli.settings import MakeDatasetSettings

TRAINING = ("search", "retrain")  # the stages that take hours, have a seed and can be predicted
THREADED = (*TRAINING, "adjust", "evaluate")  # those that take --threads


@dataclass(frozen=True)
class Cell:
    """One command of a sweep.

    Attributes:
        stage: the table that it comes from.
        name: unique, and the name of what it makes.
        argv: what follows `ssfnas`.
        output: the folder or file that it makes.
        needs: the names of the cells whose output it reads.
        data: the folder of its data set; None is the embedded one.
        source: what it reads beside the data: the genotype of a retraining, the run of a correction or an evaluation.
        splits: those that an evaluation must have; empty: as many as it makes by default.
        arm: what distinguishes it from others of its stage, seeds aside. Of a data set its name; of a search its arm
            and the data; of a retraining the search or network, the derivation, the data, and the retraining's arm with
            its correction. What has no name is empty.
        recipe: the settings of a data set to make, which its inputs are checked with.
    """

    stage: str
    name: str
    argv: tuple[str, ...]
    output: Path
    needs: tuple[str, ...] = ()
    data: Path | None = None
    source: Path | None = None
    splits: tuple[str, ...] = ()
    arm: tuple[str, ...] = ()
    recipe: MakeDatasetSettings | None = field(default=None, compare=False, repr=False)

    @property
    def command(self) -> str:
        """The command as any shell of POSIX reads it."""
        return shlex.join(["ssfnas", *self.argv])

    def with_threads(self, threads: int) -> tuple[str, ...]:
        """The words of the command with a number of threads, unless they name one or `threads` is 0."""
        if threads and self.stage in THREADED and "--threads" not in self.argv:
            return (*self.argv, "--threads", str(threads))
        return self.argv


def once(cells: Iterable[Cell]) -> list[Cell]:
    """The cells in their order, each once, though many share it.

    Raises:
        UsageError: two different cells have one name, capital letters aside.
    """
    seen: dict[str, Cell] = {}
    for cell in cells:
        other = seen.setdefault(cell.name.casefold(), cell)
        if other != cell:
            raise UsageError(f"two cells would be called '{cell.name}': '{other.command}' and '{cell.command}'")
    return list(seen.values())


def select(cells: Sequence[Cell], patterns: Sequence[str]) -> list[Cell]:
    """The cells whose names match a pattern of a shell, and those that they need, in the same order.

    The evaluation of a run that matches is among them.

    Raises:
        UsageError: a pattern matches nothing.
    """
    if not patterns:
        return list(cells)
    wanted: set[str] = set()
    for pattern in patterns:
        named = {cell.name for cell in cells if fnmatch.fnmatchcase(cell.name, pattern)}
        if not named:
            raise UsageError(f"--only {pattern}: matches none of {len(cells)} cells, such as '{cells[-1].name}'")
        wanted |= named | {cell.name for cell in cells if cell.stage == "evaluate" and named & set(cell.needs)}
    for cell in reversed(cells):  # what a cell needs comes before it
        if cell.name in wanted:
            wanted |= set(cell.needs)
    return [cell for cell in cells if cell.name in wanted]
