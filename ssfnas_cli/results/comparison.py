"""A comparison of groups of runs: figures over seeds, paired differences from a baseline, and its audit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ssfnas_cli.errors import InputError
from ssfnas_cli.results.audit import Remark, audit
from ssfnas_cli.results.baseline import Baseline, find_baseline
from ssfnas_cli.results.facts import RunFacts
from ssfnas_cli.results.figures import Figure, chosen_figures, cost_figures, evaluation_figures, present, search_figures
from ssfnas_cli.results.grouping import Group, group_runs
from ssfnas_cli.results.selection import LeftOut, Selection
from ssfnas_cli.results.splits import choose_splits
from ssfnas_cli.results.statistics import Spread, spread
from ssfnas_cli.results.time_spent import core_hours


@dataclass(frozen=True)
class Comparison:
    """What `compare` shows.

    Attributes:
        kind: `search` or `retrain`.
        splits: of the data set, whose figures are compared; empty for searches.
        groups: in the order of the arguments.
        figures: those that some group has.
        baselines: what the groups are compared with.
        core_hours: what the runs took, by kind; see `core_hours`.
        remarks: what is unfair or uncertain about the comparison.
        left_out: runs that are not in it.
    """

    kind: str
    splits: list[str]
    groups: list[Group]
    figures: list[Figure]
    baselines: list[Baseline]
    core_hours: dict[str, float]
    remarks: list[Remark]
    left_out: list[LeftOut]

    def spread(self, group: Group, figure: Figure) -> Spread:
        """A group's figure over its seeds."""
        return spread([figure.read(run) for run in group.runs])


def compare(
    selection: Selection, splits: Sequence[str], baselines: Sequence[str] = (), names: Sequence[str] = ()
) -> Comparison:
    """Compare runs.

    Args:
        selection: the runs.
        splits: the splits to compare on; if it is empty, `test`, or else the first that was evaluated.
        baselines: of each a group's label, the path of one of its runs, or the name of an arm.

        names: the figures to show; empty: all.

    Raises:
        InputError: the runs have other classes, or none was evaluated on a split.
        UsageError: no group is the baseline, or no run has a figure that is named.
    """
    runs = selection.runs
    kind = runs[0].run.kind
    refuse_other_classes(runs)
    if kind == "search":
        figures, chosen = search_figures(), []
    else:
        chosen = choose_splits(runs, splits)
        figures = [figure for split in chosen for figure in evaluation_figures(split, len(chosen) > 1)]
    groups = group_runs(runs)
    counted = [run for group in groups for run in group.runs]
    bases = [find_baseline(groups, named) for named in baselines]
    remarks = audit(groups, chosen, bases, selection.left_out)
    shown = chosen_figures(present([*figures, *cost_figures()], counted), names)
    return Comparison(kind, chosen, groups, shown, bases, core_hours(runs), remarks, selection.left_out)


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
    if comparison.baselines:
        facts["differences"] = {one.label: _differences(comparison, one) for one in comparison.baselines}
    return facts | {
        "core_hours": comparison.core_hours,
        "remarks": [remark._asdict() for remark in comparison.remarks],
        "left_out": [{"path": str(one.path), "why": one.why, "mend": one.mend} for one in comparison.left_out],
    }


def _differences(comparison: Comparison, baseline: Baseline) -> dict[str, Any]:
    """By group and figure, and behind the groups the means."""
    return {
        contrast.label: {
            figure.name: None if (found := contrast.difference(figure)) is None else found._asdict()
            for figure in comparison.figures
            if figure.effect
        }
        for contrast in baseline.contrasts
    }
