"""Accuracy over epochs, of searches or of retrainings, on each split that was tracked (paper, Figs. 7 and 8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ssfnas_cli.errors import InputError
from ssfnas_cli.plots.figure import add_legend, panels, series_looks, shown_name
from ssfnas_cli.results.grouping import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

SPLITS = {"test": "balanced test split", "test_longtail": "long-tailed test split", "val": "val split"}
MARKS = 8  # markers on a line


class Curve(NamedTuple):
    """A figure of a group over epochs: the mean of its runs, and the least and the most of them."""

    epochs: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]

    def means(self) -> dict[int, float]:
        """The mean by epoch."""
        return dict(zip(self.epochs, self.mean, strict=True))


def draw(groups: Sequence[Group]) -> Figure:
    """A panel for each split that some run tracked; otherwise one of the accuracy that every run has.

    A line is the mean of a group's runs, and the band around it reaches from the least to the most of them.

    Raises:
        InputError: no run has an accuracy, as in a pretraining that has not come to the training.
    """
    chosen = shown_figures(groups)
    figure, axes = panels(len(chosen), 5.0 if len(chosen) > 1 else 6.4, 3.6, columns=2)
    lines: dict[int, Line2D] = {}
    for (name, title), place in zip(chosen, axes, strict=True):
        lines = _draw_panel(groups, name, title, place) | lines
    ends = {number: float(np.asarray(line.get_ydata())[-1]) for number, line in lines.items()}
    add_legend(
        figure, [lines[number] for number in sorted(lines, key=lambda number: (-ends[number], number))], note_on(groups)
    )
    return figure


def shown_figures(groups: Sequence[Group]) -> list[tuple[str, str]]:
    """The figures of the metrics that `draw` shows, with the title of the panel of each.

    Raises:
        InputError: no run has an accuracy yet.
    """
    shown = [(name, title) for name, title in _candidates(groups) if _has(groups, name)]
    tracked = [(name, title) for name, title in shown if name.rpartition("accuracy_")[2] in SPLITS]
    if not shown:
        raise InputError(f"{groups[0].runs[0].path}: has no accuracy of an epoch yet, so there is no curve to draw")
    return tracked or shown


def is_tracked(groups: Sequence[Group]) -> bool:
    """Whether some run tracked a held-out split, so that `draw` shows it."""
    return any(_has(groups, name) for name, _ in _candidates(groups) if name.rpartition("accuracy_")[2] in SPLITS)


def untracked(groups: Sequence[Group]) -> list[str]:
    """The labels of groups that have no line, because other groups tracked held-out splits and they did not."""
    shown = [name for name, _ in shown_figures(groups)]
    return [group.label for group in groups if all(curve_of(group, name) is None for name in shown)]


def _candidates(groups: Sequence[Group]) -> list[tuple[str, str]]:
    """The figures that can be drawn, with a title each; tracked splits come first."""
    search = groups[0].runs[0].run.kind == "search"
    what = "Supernet" if search else "Network"
    names = ("accuracy", "probe_accuracy") if search else ("accuracy",)
    tracked = [
        (f"{name}_{split}", f"{'Linear probe' if name.startswith('probe') else what}, {title}")
        for split, title in SPLITS.items()
        for name in names
    ]
    if not search:
        return [*tracked, ("train_accuracy", "Network, training images (no test split was tracked)")]
    return [
        *tracked,
        ("accuracy_alpha_half", "Supernet, alpha half (no test split was tracked)"),
        ("probe_accuracy_alpha_half", "Linear probe, alpha half (no test split was tracked)"),
    ]


def _has(groups: Sequence[Group], name: str) -> bool:
    return any(name in line for group in groups for run in group.runs for line in run.metrics)


def _draw_panel(groups: Sequence[Group], name: str, title: str, axes: Axes) -> dict[int, Line2D]:
    """Draw a figure of the metrics; return the lines by the numbers of their groups."""
    from matplotlib.ticker import MaxNLocator

    drawn = {number: draw_curve(axes, group, name, number) for number, group in enumerate(groups)}
    lines = {number: line for number, line in drawn.items() if line is not None}
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.set_ylabel("accuracy in percent")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return lines


def draw_curve(axes: Axes, group: Group, name: str, number: int) -> Line2D | None:
    """Draw the mean of a group's runs and the band around it; None if they have no such figure.

    Args:
        axes: the panel.
        group: the runs.
        name: the figure's name in the metrics.
        number: decides the line's colour and marker.
    """
    curve = curve_of(group, name)
    if curve is None:
        return None
    looks = series_looks(number)
    every = max(1, len(curve.epochs) // MARKS)
    label = shown_name(group.label, 70) + (f" ({len(group.runs)} seeds)" if len(group.runs) > 1 else "")
    # Lines begin their markers at different epochs, so that the markers of equal lines are seen.
    (line,) = axes.plot(curve.epochs, curve.mean, label=label, markevery=(number % every, every), **looks)
    if len(group.runs) > 1:
        axes.fill_between(curve.epochs, curve.low, curve.high, color=looks["color"], alpha=0.15, linewidth=0)
    if len(group.runs) > 1 and len(curve.epochs) == 1:  # a band over a single epoch has no width
        axes.vlines(curve.epochs, curve.low, curve.high, color=looks["color"], alpha=0.5)
    return line


def note_on(groups: Sequence[Group]) -> str:
    """What a legend says of lines and bands; nothing if every group is one run."""
    several = any(len(group.runs) > 1 for group in groups)
    return "lines: mean of the seeds; bands: from the least to the most of them" if several else ""


def curve_of(group: Group, name: str) -> Curve | None:
    """A figure of the metrics over the epochs that all runs of a group have; None if they share none."""
    of_runs = [run.over_epochs(name) for run in group.runs]
    of_runs = [values for values in of_runs if values]
    if not of_runs:
        return None
    epochs = sorted(set.intersection(*(set(values) for values in of_runs)))
    columns = [[values[epoch] for values in of_runs] for epoch in epochs]
    if not epochs:
        return None
    return Curve(
        epochs, [sum(one) / len(one) for one in columns], [min(one) for one in columns], [max(one) for one in columns]
    )
