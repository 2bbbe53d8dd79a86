"""Accuracy of each class against its number of training images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ssfnas_cli.artifacts.metrics import FEW, MANY
from ssfnas_cli.plots.evaluations import evaluated, per_class
from ssfnas_cli.plots.figure import FAINT_INK, GRID, add_legend, new_figure, series_looks, shown_name, text_width
from ssfnas_cli.results.grouping import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMED = 20  # classes that stand side by side with their names; more of them lie on a scale of images


def draw(groups: Sequence[Group], split: str) -> Figure:
    """One series a group: the mean of its runs, with a bar from the least to the most of them.

    Raises:
        InputError: the runs are not evaluated on that split, or their classes differ.
    """
    names, counts, order = evaluated(groups, split)
    named = len(names) <= NAMED
    shown = [shown_name(names[c], 24) for c in order]
    upright = len(shown) * max(8, *map(text_width, shown)) > 110  # characters side by side
    figure = new_figure(6.8, 3.9 + (0.06 * max(map(text_width, shown)) if named and upright else 0))
    axes = figure.subplots()
    places: list[float] = list(range(len(names))) if named else [max(1, counts[c]) for c in order]
    for number, group in enumerate(groups):
        _draw_series(axes, group, split, [names[c] for c in order], places, number, len(groups), named)
    if named:
        labels = [f"{name}{', ' if upright else chr(10)}{counts[c]:,}" for name, c in zip(shown, order, strict=True)]
        axes.set_xticks(range(len(names)), labels, fontsize=7.5, rotation=90 if upright else 0)
        axes.set_xlabel("class, and its training images")
        axes.grid(False, axis="x")
    else:
        _scale_by_images(axes, counts)
    axes.set_ylim(-3, 103)
    axes.set_ylabel("accuracy in percent")
    axes.set_title(f"Accuracy by class, {split}")
    several = any(len(group.runs) > 1 for group in groups)
    note = "points: mean of the seeds; bars: from the least to the most of them" if several else ""
    add_legend(figure, axes.get_legend_handles_labels()[0], note)
    return figure


def _draw_series(
    axes: Axes,
    group: Group,
    split: str,
    names: Sequence[str],
    places: Sequence[float],
    number: int,
    of: int,
    named: bool,
) -> None:
    values = per_class(group, split, names)
    looks: dict[str, Any] = series_looks(number)
    shift = (number - (of - 1) / 2) * min(0.08, 0.6 / of) if named else 0.0  # so that equal values are seen
    points = [(x + shift, *value) for x, value in zip(places, values, strict=True) if value is not None]
    if not points:
        return
    x, mean, low, high = zip(*points, strict=True)
    if not named:
        looks |= {"linestyle": "none", "alpha": 0.8}
    else:
        looks |= {"linewidth": 1.1}
    axes.plot(x, mean, label=shown_name(group.label, 70), **looks)
    if len(group.runs) > 1:
        axes.vlines(x, low, high, color=looks["color"], linewidth=1.0)


def _scale_by_images(axes: Axes, counts: Sequence[int]) -> None:
    """A logarithmic scale of training images, from the largest class on, with the groups of ImageNet-LT."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    largest, smallest = max(counts), max(1, min(counts))
    axes.set_xscale("log")
    pad = (largest / smallest) ** 0.04 if largest > smallest else 2
    axes.set_xlim(largest * pad, smallest / pad)
    ticks = [
        size * 10**power
        for power in range(math.floor(math.log10(smallest)), math.ceil(math.log10(largest)) + 1)
        for size in (1, 2, 5)
        if smallest / pad <= size * 10**power <= largest * pad
    ]
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("training images of the class")
    inside = [bound for bound in (MANY, FEW) if smallest < bound < largest]
    edges = [largest * pad, *inside, smallest / pad]
    for bound in inside:
        axes.axvline(bound, color=FAINT_INK, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
    for left, right in itertools.pairwise(edges):
        middle = math.sqrt(left * right)
        group = "many" if middle > MANY else "few" if middle < FEW else "medium"
        axes.text(middle, 102, group, ha="center", va="top", fontsize=8, color=FAINT_INK, backgroundcolor="white")
    axes.grid(True, color=GRID)
