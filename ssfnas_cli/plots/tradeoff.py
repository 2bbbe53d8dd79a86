"""Accuracy of networks against what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ssfnas_cli.errors import InputError
from ssfnas_cli.plots.figure import COLOURS, add_legend, new_figure, series_looks, shown_name
from ssfnas_cli.results.statistics import spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ssfnas_cli.results.grouping import Group


class Cost(NamedTuple):
    """A cost that accuracy is drawn against.

    Attributes:
        key: in `RunFacts.cost`.
        title: of the axis.
    """

    key: str
    title: str


COSTS = {
    "weights": Cost("num_params", "weights"),
    "macs": Cost("num_macs", "multiply-adds of an image"),
    "steps": Cost("steps", "training steps"),
    "time": Cost("seconds", "seconds of training"),
    "search-time": Cost("search_seconds", "seconds of search"),
}
WIDE = 8  # from this ratio of the largest to the smallest cost on, the scale is logarithmic


def draw(groups: Sequence[Group], split: str, against: str) -> Figure:
    """A point a group: the mean of its runs, with bars from the least to the most of them both ways.

    Args:
        groups: of retrainings.
        split: whose balanced accuracy is drawn.
        against: one of COSTS.

    Raises:
        InputError: a run is not evaluated on that split, or no run has recorded that cost.
    """
    from ssfnas_cli.plots.evaluations import split_facts  # imports numpy, which `plot --help` must not wait for

    cost = COSTS[against]
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    means = []
    for group, looks in zip(groups, _looks(groups), strict=True):
        figures = [split_facts(run, split)["balanced_accuracy"] for run in group.runs]
        costs = [run.cost.get(cost.key) for run in group.runs]
        known = [value for value in costs if value is not None]
        if not known:
            continue
        x, y = spread(known).mean, spread(figures).mean
        assert x is not None and y is not None
        means.append(x)
        looks |= {"linestyle": "none", "markersize": 7.0}
        axes.plot([x], [y], label=shown_name(group.label, 70), zorder=3, **looks)
        axes.vlines([x], min(figures), max(figures), color=looks["color"], linewidth=1.0)
        axes.hlines([y], min(known), max(known), color=looks["color"], linewidth=1.0)
    if not means:
        raise InputError(f"--against {against}: none of these runs has recorded it: name another cost")
    _scale(axes, means)
    axes.set(xlabel=cost.title, ylabel="balanced accuracy in percent")
    axes.set_title(f"Accuracy against {cost.title}, {split}")
    axes.margins(x=0.08, y=0.1)
    several = any(len(group.runs) > 1 for group in groups)
    note = "points: mean of the seeds; bars: from the least to the most of them" if several else ""
    add_legend(figure, axes.get_legend_handles_labels()[0], note)
    return figure


def _looks(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """The colour and marker of each group.

    If the arms of a sweep cross two choices, as those of networks and trainings, the colour tells the first and the
    marker the second.
    """
    plain = [series_looks(number) for number in range(len(groups))]
    if len({len(group.arm) for group in groups}) != 1:
        return plain
    names = [list(dict.fromkeys(words)) for words in zip(*(group.arm for group in groups), strict=True)]
    chosen = [place for place, of_place in enumerate(names) if len(of_place) > 1]
    if len(chosen) != 2 or len(names[chosen[0]]) > len(COLOURS):
        return plain
    numbers = [[names[place].index(group.arm[place]) for place in chosen] for group in groups]
    return [series_looks(first) | {"marker": series_looks(second)["marker"]} for first, second in numbers]


def _scale(axes: Axes, costs: Sequence[float]) -> None:
    """Numbers such as 0.46M on the axis of costs; logarithmic where the costs are of several sizes."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    if min(costs) > 0 and max(costs) >= WIDE * min(costs):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
