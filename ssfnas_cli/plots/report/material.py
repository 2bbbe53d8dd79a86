"""What a report is made of: the runs, and what only the engine can say of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ssfnas_cli.errors import InputError
from ssfnas_cli.plots.figure import to_bytes
from ssfnas_cli.plots.report.blocks import Block, Note, Picture
from ssfnas_cli.results.facts import RunFacts
from ssfnas_cli.results.grouping import Group
from ssfnas_cli.results.mistakes import Mistakes
from ssfnas_cli.results.selection import LeftOut

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray


class Shown(NamedTuple):
    """The mistakes of a network, and their images uint8 [H, W, C] by their places in the split."""

    mistakes: Mistakes
    images: Mapping[int, NDArray]


@dataclass(frozen=True)
class Material:
    """What a report is made of.

    Attributes:
        searches, networks: the groups of runs by their kind.
        left_out: what cannot be read.
        missing: what the runs lack, with the commands that go on.
        split: of the data set, on which the networks are looked at.
        compared: tables and remarks of a comparison, by kind of run.
        weights: the mixing weights [epochs + 1, num_edges, num_ops] of searches by cell type, or why there are none.
        mistakes: of networks, or why there are none; a run that is not in it has not been asked.
        ranks: of searches what `rank` prints, or why it cannot; a search that is not in it has not been asked.
    """

    searches: list[Group]
    networks: list[Group]
    left_out: Sequence[LeftOut]
    missing: Sequence[LeftOut]
    split: str
    compared: Mapping[str, Sequence[Block]]
    weights: Mapping[Path, Mapping[str, NDArray] | InputError]
    mistakes: Mapping[Path, Shown | InputError]
    ranks: Mapping[Path, Mapping[str, Any] | InputError] = field(default_factory=dict)

    @property
    def runs(self) -> list[RunFacts]:
        """All runs, searches first."""
        return [run for group in (*self.searches, *self.networks) for run in runs_of(group)]


def runs_of(group: Group) -> list[RunFacts]:
    """The runs of a group with those that have the settings and the seed of another one."""
    return [*group.runs, *group.repeats]


def having(groups: Sequence[Group], condition: Callable[[RunFacts], bool]) -> list[Group]:
    """The groups with only those runs that fulfil a condition; without the groups that have none."""
    kept = [replace(group, runs=[run for run in group.runs if condition(run)], repeats=[]) for group in groups]
    return [group for group in kept if group.runs]


def is_evaluated(run: RunFacts, split: str) -> bool:
    """Whether `evaluate` measured a run on a split."""
    return split in ((run.evaluation or {}).get("splits") or {})


def picture(caption: str, alt: Callable[[], str], draw: Callable[[], Figure], themed: bool = True) -> Picture | Note:
    """A chart, or a note that says what is missing for it."""
    try:
        return Picture(caption, alt(), to_bytes(draw, "svg", chart=True), themed)
    except InputError as error:
        return note_of(caption, error)


def note_of(what: str, error: InputError) -> Note:
    """What is missing, in the words of an error, and the command at its end, if there is one."""
    said, _, command = str(error).partition(": ssfnas ")
    return Note(f"{what}: {said}", f"ssfnas {command}" if command else "")
