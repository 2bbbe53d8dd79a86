"""What is unfair or uncertain about a comparison. Nothing is corrected: it is said."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

from ssfnas_cli.artifacts.run import TRAINING_VERSION, RunFolder
from ssfnas_cli.console import first_of
from ssfnas_cli.results.baseline import Baseline
from ssfnas_cli.results.facts import SEARCH, RunFacts, is_lost, search_of
from ssfnas_cli.results.grouping import Group
from ssfnas_cli.results.selection import LeftOut
from ssfnas_cli.results.statistics import spread

TOLERANCE = 1.02  # costs that differ by less are equal
MANY_GROUPS = 3  # from which on the best one is a choice


class Remark(NamedTuple):
    """What is wrong, in a word (`data`, `steps`, `views`, `size`, `choice`, `seeds`, …) and in a sentence."""

    what: str
    sentence: str


def audit(
    groups: Sequence[Group], splits: Sequence[str], baselines: Sequence[Baseline], left_out: Sequence[LeftOut]
) -> list[Remark]:
    """All remarks, the ones that make figures incomparable first."""
    return [
        *_other_data(groups),
        *_other_length(groups),
        *_other_views(groups),
        *_other_size(groups),
        *_choices(groups, splits),
        *_seeds(groups, baselines),
        *_code(groups),
        *_same_figures(groups),
        *_runs(groups, left_out),
    ]


def _named(groups: Sequence[Group], told: Callable[[Group], Any]) -> str:
    """`ce: 40; ldam: 80`."""
    return "; ".join(f"{group.label}: {told(group)}" for group in groups)


def _differ(groups: Sequence[Group], of: Callable[[RunFacts], Hashable]) -> bool:
    return len({of(run) for group in groups for run in group.runs}) > 1


def _other_data(groups: Sequence[Group]) -> Iterable[Remark]:
    if _differ(groups, lambda run: run.data[1]):
        told = _named(groups, lambda group: " ".join(_data_name(group)))
        yield Remark("data", f"other data, so figures differ by more than the method: {told}")


def _data_name(group: Group) -> tuple[str, str]:
    name, sha256 = group.runs[0].data
    return name, f"({sha256[:8]})"


def _other_length(groups: Sequence[Group]) -> Iterable[Remark]:
    steps = [spread([run.cost.get("steps") for run in group.runs]).mean for group in groups]
    if None not in steps and max(steps) > TOLERANCE * min(steps):  # type: ignore[type-var,operator]
        told = dict(zip((id(group) for group in groups), steps, strict=True))
        yield Remark("steps", f"other numbers of steps: {_named(groups, lambda group: f'{told[id(group)]:,.0f}')}")
    elif _differ(groups, lambda run: run.settings.get("epochs")):
        yield Remark("steps", f"other numbers of epochs: {_named(groups, lambda g: g.runs[0].settings.get('epochs'))}")
    searched = [group for group in groups if f"{SEARCH}epochs" in group.runs[0].settings]
    if _differ(searched, lambda run: run.settings[f"{SEARCH}epochs"]):
        told_epochs = _named(searched, lambda group: group.runs[0].settings[f"{SEARCH}epochs"])
        yield Remark("steps", f"searches of other numbers of epochs: {told_epochs}")


def _other_views(groups: Sequence[Group]) -> Iterable[Remark]:
    if _differ(groups, lambda run: run.views):
        told = _named(groups, lambda group: f"{group.runs[0].views:,}")
        yield Remark("views", f"other numbers of views of each image, pretraining epochs counted twice: {told}")


def _other_size(groups: Sequence[Group]) -> Iterable[Remark]:
    sizes = {id(group): spread([run.cost.get("num_params") for run in group.runs]).mean for group in groups}
    known = [group for group in groups if sizes[id(group)] is not None]
    weights = [sizes[id(group)] for group in known]
    if known and max(weights) > TOLERANCE * min(weights):  # type: ignore[type-var,operator]
        told = _named(known, lambda group: f"{sizes[id(group)] / 1e6:.3g} million")  # type: ignore[operator]
        yield Remark("size", f"other numbers of weights: {told}")
    names = ("channels", "layers", "stem")
    for name in (*names, *(SEARCH + name for name in names)):
        having = [group for group in groups if name in group.runs[0].settings]
        if _differ(having, lambda run, name=name: run.settings[name]):  # type: ignore[misc]
            told = _named(having, lambda group, name=name: group.runs[0].settings[name])  # type: ignore[misc]
            yield Remark("size", f"other {name}: {told}")


def _choices(groups: Sequence[Group], splits: Sequence[str]) -> Iterable[Remark]:
    """Choices that were, or would be, made on a test split."""
    for group in groups:
        picked = sorted({epoch for run in group.runs if (epoch := _picked_epoch(run)) is not None})
        if picked:
            epochs = " and ".join(map(str, picked))
            yield Remark(
                "choice",
                f"{group.label}: the genotype is of epoch {epochs}, not the last one, of a search that tracked the "
                "test splits (track_test): if it was chosen by them, its test accuracy is too high",
            )
    tests = [split for split in splits if split.startswith("test")]
    if tests and len(groups) >= MANY_GROUPS:
        yield Remark(
            "choice",
            f"to take the best of {len(groups)} groups by {tests[0]} is a choice on a test split, and its figure is "
            "then too high: choose on val (make-dataset --val-share, compare --split val), and report test",
        )


def _picked_epoch(run: RunFacts) -> int | None:
    """The epoch of a genotype if it is not the last one of a search that tracked the test splits."""
    search = search_of(run)
    if search is None or not search.config["settings"].get("track_test"):
        return None
    epoch = run.settings.get(f"{SEARCH}epoch")
    return epoch if epoch != run.settings.get(f"{SEARCH}epochs") else None


def _seeds(groups: Sequence[Group], baselines: Sequence[Baseline]) -> Iterable[Remark]:
    single = [group.label for group in groups if len(group.runs) == 1]
    if single:
        yield Remark("seeds", f"one seed only, so a difference may be chance: {'; '.join(single)}")
    if baselines:
        contrasts = [contrast for one in baselines for contrast in one.contrasts if len(contrast.pairs) == 1]
        for group, other in (pair for contrast in contrasts for pair in contrast.pairs):
            if {run.seeds[-1] for run in group.runs} != {run.seeds[-1] for run in other.runs}:
                yield Remark("seeds", f"other seeds: {_named([group, other], _seed_list)}")
    elif _differ(groups, lambda run: len(run.seeds)) is False and len({_seed_list(group) for group in groups}) > 1:
        yield Remark("seeds", f"other seeds: {_named(groups, _seed_list)}")


def _seed_list(group: Group) -> str:
    return ", ".join("/".join(map(str, run.seeds)) for run in group.runs)


def _code(groups: Sequence[Group]) -> Iterable[Remark]:
    """Runs that were computed by other code."""
    listed: tuple[tuple[str, str, Callable[[RunFolder], Any]], ...] = (
        (
            "training",
            "an ssfnas that trains differently (training version)",
            lambda run: run.config.get(TRAINING_VERSION, 1),
        ),
        ("software", "another torch", lambda run: run.config["environment"].get("torch")),
        ("software", "other kernels", lambda run: run.config["environment"].get("kernels")),
        ("software", "another device", lambda run: run.config["environment"].get("device")),
    )
    for what, words, of in listed:
        by_value: dict[str, list[str]] = defaultdict(list)
        for group in groups:
            for run in group.runs:
                if run.trainings:  # a correction that computed nothing, and whose base is gone, has none
                    values = dict.fromkeys(str(of(training)) for training in run.trainings)
                    by_value[", then ".join(values)].append(str(run.path))
        if len(by_value) < 2:
            continue
        told = "; ".join(f"{value}: {first_of(paths, 1)}" for value, paths in by_value.items())
        yield Remark(what, f"computed by {words}: {told}")


def _same_figures(groups: Sequence[Group]) -> Iterable[Remark]:
    """Groups whose networks predict the same in every seed: settings that differ and mean the same."""
    by_figures: dict[str, list[str]] = defaultdict(list)
    for group in groups:
        splits = [(run.seeds[-1], (run.evaluation or {}).get("splits")) for run in group.runs]
        if all(one for _, one in splits):
            by_figures[json.dumps(splits, sort_keys=True)].append(group.label)
    for labels in by_figures.values():
        if len(labels) > 1:
            yield Remark(
                "same", f"the same figures to the last digit, so the settings mean the same: {'; '.join(labels)}"
            )


def _runs(groups: Sequence[Group], left_out: Sequence[LeftOut]) -> Iterable[Remark]:
    for group in groups:
        for run in group.repeats:
            yield Remark("repeat", f"{run.path}: has the settings and the seed of another run, and does not count")
        for run in group.runs:
            if is_lost(run):
                so = "only its name says of which arm it is" if run.arm else "it is not grouped with others"
                yield Remark("search", f"{run.path}: the search of its genotype is not there any more, so {so}")
    for one in left_out:
        yield Remark("left_out", f"left out: {one}")
