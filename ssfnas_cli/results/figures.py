"""The figures of a comparison: what is compared of a run, and how it is named and shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ssfnas_cli.artifacts.genotype import read_genotype
from ssfnas_cli.errors import InputError, UsageError
from ssfnas_cli.results.facts import RunFacts

GENOTYPE = "genotype.json"  # in the folder of a search


class Figure(NamedTuple):
    """A figure of a run.

    Attributes:
        name: in files for programs.
        title: in tables for people.
        digits: after the point in tables; None for counts, -1 for a duration in seconds.
        read: from a run; None if the run has no such figure.
        effect: whether groups are compared in it (accuracies are in percent, their differences in points).
    """

    name: str
    title: str
    digits: int | None
    read: Callable[[RunFacts], float | None]
    effect: bool = True


def evaluation_figures(split: str, prefix: bool) -> list[Figure]:
    """What `evaluate` measured on a split. With `prefix` the names and titles begin with the split's."""
    thirds, counts = "groups_by_thirds", "groups_by_count"
    listed: list[tuple[str, str, int, tuple[str, ...]]] = [
        ("top1", "top-1", 2, ("top1",)),
        ("balanced_accuracy", "balanced", 2, ("balanced_accuracy",)),
        *((f"{part}_third", f"{part} third", 1, (thirds, part, "accuracy")) for part in ("head", "medium", "tail")),
        *((f"{part}_shot", part, 1, (counts, part, "accuracy")) for part in ("many", "medium", "few")),
        ("macro_f1", "macro-F1", 3, ("macro_f1",)),
        ("ece", "ECE", 3, ("ece",)),
    ]
    before = (f"{split}_", f"{split} ") if prefix else ("", "")
    return [
        Figure(before[0] + name, before[1] + title, digits, _of_split(split, path))
        for name, title, digits, path in listed
    ]


def _of_split(split: str, path: tuple[str, ...]) -> Callable[[RunFacts], float | None]:
    def read(run: RunFacts) -> float | None:
        value: Any = ((run.evaluation or {}).get("splits") or {}).get(split)
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    return read


# Of a search: name in its metrics, title, digits
SEARCH_FIGURES = (
    ("accuracy_alpha_half", "supernet, alpha half", 2),
    ("probe_accuracy_alpha_half", "probe, alpha half", 2),
    ("accuracy_test", "supernet, test", 2),
    ("accuracy_test_longtail", "supernet, test_longtail", 2),
    ("probe_accuracy_test", "probe, test", 2),
    ("probe_accuracy_test_longtail", "probe, test_longtail", 2),
    ("pruned_accuracy_alpha_half", "pruned, alpha half", 2),
    ("pruned_probe_accuracy_alpha_half", "pruned probe, alpha half", 2),
    ("weights_entropy", "entropy", 3),
    ("weights_decided", "decided", 3),
    ("edges_entropy", "edge entropy", 3),
    ("genotype_skips", "skips", 2),
    ("genotype_pools", "pools", 2),
)


def search_figures() -> list[Figure]:
    """What a search says of its last epoch: accuracies of the supernet, its health, and the cost that it minds."""
    figures = [Figure(name, title, digits, _of_last_epoch(name)) for name, title, digits in SEARCH_FIGURES]
    figures.append(Figure("normal_convs", "convs in normal cell", 2, _share_of_ops("normal", "conv")))
    figures.append(Figure("reduce_pools", "pools in reduction", 2, _share_of_ops("reduce", "pool")))
    costs = (
        ("genotype_params", "weights of genotype", None, "params"),
        ("genotype_macs", "multiply-adds of genotype", None, "macs"),
        ("genotype_ms", "ms of genotype", 2, "latency"),
    )
    return figures + [Figure(name, title, digits, _minded(cost), effect=False) for name, title, digits, cost in costs]


def _share_of_ops(cell: str, word: str) -> Callable[[RunFacts], float | None]:
    """The share of the ops of a cell of the search's own genotype whose names have a word in them."""

    def read(run: RunFacts) -> float | None:
        path = run.path / GENOTYPE
        if not path.is_file():
            return None
        try:
            edges = read_genotype(path).cells()[cell].edges
        except InputError:  # it is damaged, or has ops of a package that is not here
            return None
        return sum(word in edge.op for edge in edges) / len(edges) if edges else None

    return read


def _minded(cost: str) -> Callable[[RunFacts], float | None]:
    """What the genotype costs, of a search that minds that cost."""
    read = _of_last_epoch("genotype_cost")
    return lambda run: read(run) if run.run.config["settings"].get("cost") == cost else None


def _of_last_epoch(name: str) -> Callable[[RunFacts], float | None]:
    return lambda run: run.metrics[-1].get(name) if run.metrics else None


def cost_figures() -> list[Figure]:
    """What a run took. `search_seconds` is the search that its genotype comes from."""
    listed = [
        ("num_params", "weights", None),
        ("num_macs", "multiply-adds", None),
        ("steps", "steps", None),
        ("seconds", "time", -1),
        ("search_seconds", "search time", -1),
    ]
    return [Figure(name, title, digits, _of_cost(name), effect=False) for name, title, digits in listed]


def _of_cost(name: str) -> Callable[[RunFacts], float | None]:
    return lambda run: run.cost.get(name)


def present(figures: Sequence[Figure], runs: Sequence[RunFacts]) -> list[Figure]:
    """The figures that at least one run has."""
    return [figure for figure in figures if any(figure.read(run) is not None for run in runs)]


def chosen_figures(figures: Sequence[Figure], names: Sequence[str]) -> list[Figure]:
    """The figures of these names, in their order; all of them if none is named.

    A figure of a split may be named without the split, which means it on every split.

    Raises:
        UsageError: there is no such figure.
    """
    chosen: list[Figure] = []
    for name in names:
        found = [one for one in figures if one.name == name or one.name.endswith(f"_{name}")]
        exact = [one for one in found if one.name == name]
        if not found:
            raise UsageError(f"--figure {name}: no run has it. There are {', '.join(one.name for one in figures)}")
        chosen += [one for one in exact or found if one not in chosen]
    return chosen or list(figures)
