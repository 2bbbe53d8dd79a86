"""What is compared with what: each group with one that is named, or with its like under another arm of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from ssfnas_cli.errors import UsageError
from ssfnas_cli.results.facts import RunFacts
from ssfnas_cli.results.figures import Figure
from ssfnas_cli.results.grouping import Group
from ssfnas_cli.results.statistics import Difference, paired_difference


@dataclass(frozen=True)
class Contrast:
    """A difference to show: of a group from another one, or the mean of several such differences.

    Attributes:
        label: of the group; of a mean the arm's name and how many differences it is of.
        pairs: the groups, each with the one that it is compared with.
    """

    label: str
    pairs: tuple[tuple[Group, Group], ...]

    def difference(self, figure: Figure) -> Difference | None:
        """The figure of the group less the other's, over the seeds that all pairs have; None if there are none.

        A mean is taken within each seed first, so that the pairs of the test are seeds.
        """
        found = [_by_seed(group, other, figure) for group, other in self.pairs]
        seeds = [seed for seed in found[0] if all(seed in one for one in found)]
        mean = lambda side: [fmean(one[seed][side] for one in found) for seed in seeds]
        return paired_difference(mean(0), mean(1))


@dataclass(frozen=True)
class Baseline:
    """What the others are compared with: the label of a group, or the name of an arm; and the differences."""

    label: str
    contrasts: list[Contrast]

    def of(self, group: Group) -> Contrast | None:
        """The difference of a group; None if it is the baseline or has no like."""
        return next((one for one in self.contrasts if len(one.pairs) == 1 and one.pairs[0][0] is group), None)


def find_baseline(groups: Sequence[Group], named: str) -> Baseline:
    """The group with a label, the group of a run, or an arm of a sweep: then each group is compared with its like.

    Raises:
        UsageError: there is none, or more than one group whose label begins so.
    """
    exact = [group for group in groups if group.label == named]
    path = Path(named)
    by_run = [group for group in groups if any(_same(run.path, path) for run in [*group.runs, *group.repeats])]
    by_arm = [] if len(exact) == 1 else _contrasts_of_arm(groups, named)
    if by_arm:
        return Baseline(named, by_arm)
    begun = [group for group in groups if group.label.startswith(named)]
    for found in (exact, by_run, begun):
        if len(found) == 1:
            base = found[0]
            others = [group for group in groups if group is not base]
            return Baseline(base.label, [Contrast(group.label, ((group, base),)) for group in others])
    labels = ", ".join(f"'{group.label}'" for group in groups)
    raise UsageError(f"--baseline {named}: is not one run or group of the comparison. Groups: {labels}")


def _contrasts_of_arm(groups: Sequence[Group], named: str) -> list[Contrast]:
    """Each group less the one whose arm has this name in its place and is the same otherwise; behind them the means.

    A mean is over all groups of a name that is compared, such as one search with all its retrainings.
    """
    arms = {group.arm: group for group in groups}
    places = {place for group in groups for place, name in enumerate(group.arm) if name == named}
    contrasts: list[Contrast] = []
    for place in sorted(places):
        for name in dict.fromkeys(group.arm[place] for group in groups if group.arm[place] != named):
            mine = [group for group in groups if group.arm[place] == name]
            pairs = [(one, arms.get((*one.arm[:place], named, *one.arm[place + 1 :]))) for one in mine]
            there = [(one, other) for one, other in pairs if other is not None]
            contrasts += [Contrast(one.label, ((one, other),)) for one, other in there]
            if len(there) > 1:
                contrasts.append(Contrast(f"{name}, mean of {len(there)}", tuple(there)))
    return contrasts


def _same(one: Path, other: Path) -> bool:
    return other.exists() and one.resolve() == other.resolve()


def _by_seed(group: Group, other: Group, figure: Figure) -> dict[tuple[int, ...], tuple[float, float]]:
    """The figure of both groups by the seed of the retraining; by all seeds where several runs share that one."""
    pairs = pair_runs(group, other)
    own = [run.seeds[-1:] for run, _ in pairs]
    keys = own if len(set(own)) == len(own) else [run.seeds for run, _ in pairs]
    return {
        key: (mine, theirs)
        for key, (run, one) in zip(keys, pairs, strict=True)
        if (mine := figure.read(run)) is not None and (theirs := figure.read(one)) is not None
    }


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
