"""A comparison of groups of runs: figures over seeds, paired differences from a baseline, and its audit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssfnas_cli.errors import InputError, UsageError
from ssfnas_cli.results.audit import Remark, audit
from ssfnas_cli.results.facts import RunFacts
from ssfnas_cli.results.figures import Figure, cost_figures, evaluation_figures, present, search_figures
from ssfnas_cli.results.grouping import Group, group_runs
from ssfnas_cli.results.selection import LeftOut, Selection
from ssfnas_cli.results.statistics import Difference, Spread, paired_difference, spread


@dataclass(frozen=True)
class Comparison:
    """What `compare` shows.

    Attributes:
        kind: `search` or `retrain`.
        splits: of the data set, whose figures are compared; empty for searches.
        groups: in the order of the arguments.
        figures: those that some group has.
        baseline: the group that the others are compared with, or None.
        remarks: what is unfair or uncertain about the comparison.
        left_out: runs that are not in it.
    """

    kind: str
    splits: list[str]
    groups: list[Group]
    figures: list[Figure]
    baseline: Group | None
    remarks: list[Remark]
    left_out: list[LeftOut]

    def spread(self, group: Group, figure: Figure) -> Spread:
        """A group's figure over its seeds."""
        return spread([figure.read(run) for run in group.runs])

    def difference(self, group: Group, figure: Figure) -> Difference | None:
        """A group's figure less the baseline's, over the seeds that both have; None if they share none."""
        assert self.baseline is not None
        pairs = [
            (mine, theirs)
            for run, other in pair_runs(group, self.baseline)
            if (mine := figure.read(run)) is not None and (theirs := figure.read(other)) is not None
        ]
        return paired_difference([mine for mine, _ in pairs], [theirs for _, theirs in pairs])


def compare(selection: Selection, splits: Sequence[str], baseline: str | None) -> Comparison:
    """Compare runs.

    Args:
        selection: the runs.
        splits: the splits to compare on; if it is empty, `test`, or else the first that was evaluated.
        baseline: a group's label, or the path of one of its runs.

    Raises:
        InputError: the runs have other classes, or none was evaluated on a split.
        UsageError: no group is the baseline.
    """
    runs = selection.runs
    kind = runs[0].run.kind
    refuse_other_classes(runs)
    if kind == "search":
        figures, chosen = search_figures(), []
    else:
        chosen = _splits(runs, splits)
        figures = [figure for split in chosen for figure in evaluation_figures(split, len(chosen) > 1)]
    groups = group_runs(runs)
    counted = [run for group in groups for run in group.runs]
    base = None if baseline is None else find_baseline(groups, baseline)
    remarks = audit(groups, chosen, base, selection.left_out)
    shown = present([*figures, *cost_figures()], counted)
    return Comparison(kind, chosen, groups, shown, base, remarks, selection.left_out)


def refuse_other_classes(runs: Sequence[RunFacts]) -> None:
    """Check that all retrainings have the same number of classes.

    Raises:
        InputError: they have not, so that chance is another accuracy for each.
    """
    counts: dict[int, RunFacts] = {}
    for run in runs:
        if run.evaluation:
            counts.setdefault(len(run.evaluation["class_names"]), run)
    if len(counts) > 1:
        (one, first), (other, second), *_ = counts.items()
        raise InputError(
            f"{first.path} has {one} classes, and {second.path} {other}: their accuracies do not mean the same; "
            "name runs of one data set"
        )


def _splits(runs: Sequence[RunFacts], asked: Sequence[str]) -> list[str]:
    evaluated = list(dict.fromkeys(split for run in runs for split in (run.evaluation or {})["splits"]))
    for split in asked:
        if split not in evaluated:
            raise InputError(
                f"--split {split}: no run is evaluated on it (evaluated: {', '.join(evaluated)}): "
                f"ssfnas evaluate {runs[0].path} --split {split}"
            )
    return list(asked) or ["test" if "test" in evaluated else evaluated[0]]


def find_baseline(groups: Sequence[Group], named: str) -> Group:
    """The group with a label, or the group of a run.

    Raises:
        UsageError: there is none, or more than one whose label begins so.
    """
    exact = [group for group in groups if group.label == named]
    path = Path(named)
    by_run = [group for group in groups if any(_same(run.path, path) for run in [*group.runs, *group.repeats])]
    begun = [group for group in groups if group.label.startswith(named)]
    for found in (exact, by_run, begun):
        if len(found) == 1:
            return found[0]
    labels = ", ".join(f"'{group.label}'" for group in groups)
    raise UsageError(f"--baseline {named}: is not one run or group of the comparison. Groups: {labels}")


def _same(one: Path, other: Path) -> bool:
    return other.exists() and one.resolve() == other.resolve()


def pair_runs(group: Group, baseline: Group) -> list[tuple[RunFacts, RunFacts]]:
    """The runs of two groups that share their seeds.

    A retrained genotype has two seeds, its search's and its own; beside a network that was not searched its own counts,
    unless several runs have the same.
    """
    if len(group.runs[0].seeds) == len(baseline.runs[0].seeds):
        of = {run.seeds: run for run in baseline.runs}
        return [(run, of[run.seeds]) for run in group.runs if run.seeds in of]
    mine, theirs = (_by_own_seed(one) for one in (group, baseline))
    return [(run, theirs[seed]) for seed, run in mine.items() if seed in theirs]


def _by_own_seed(group: Group) -> dict[int, RunFacts]:
    seeds = [run.seeds[-1] for run in group.runs]
    return {run.seeds[-1]: run for run in group.runs if seeds.count(run.seeds[-1]) == 1}


def to_json(comparison: Comparison) -> dict[str, Any]:
    """The whole comparison, for programs."""
    groups = [
        {
            "label": group.label,
            "settings": group.differing,
            "runs": [{"path": str(run.path), "seeds": list(run.seeds)} for run in group.runs],
            "figures": {
                figure.name: comparison.spread(group, figure)._asdict()
                | {"values": [figure.read(run) for run in group.runs]}
                for figure in comparison.figures
            },
        }
        for group in comparison.groups
    ]
    facts: dict[str, Any] = {"kind": "comparison", "of": comparison.kind, "splits": comparison.splits, "groups": groups}
    if comparison.baseline is not None:
        facts |= {"baseline": comparison.baseline.label, "differences": _differences(comparison)}
    return facts | {
        "remarks": [remark._asdict() for remark in comparison.remarks],
        "left_out": [{"path": str(one.path), "why": one.why, "mend": one.mend} for one in comparison.left_out],
    }


def _differences(comparison: Comparison) -> dict[str, Any]:
    """By group and figure."""
    return {
        group.label: {
            figure.name: None if (found := comparison.difference(group, figure)) is None else found._asdict()
            for figure in comparison.figures
            if figure.effect
        }
        for group in comparison.groups
        if group is not comparison.baseline
    }
