"""Label distributions: how many images each class of a data set has (paper, Fig. 6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ssfnas_cli.plots.figure import COLOURS, FAINT_INK, panels, shown_name, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMED = 20  # classes that have their names below their bars
NUMBERED = 12  # classes that have their numbers above their bars


class Distribution(NamedTuple):
    """The training images of a data set by class, in class order."""

    title: str
    class_names: list[str]
    counts: list[int]


def draw(distributions: Sequence[Distribution]) -> Figure:
    """A panel for each data set. Up to NAMED classes are in class order and named, more are sorted by size."""
    figure, axes = panels(len(distributions), 5.2, 3.3, columns=2)
    for one, place in zip(distributions, axes, strict=True):
        _draw_panel(one, place)
    return figure


def _draw_panel(one: Distribution, axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter

    named = len(one.counts) <= NAMED
    counts = one.counts if named else sorted(one.counts, reverse=True)
    places = range(len(counts))
    axes.bar(places, counts, width=0.78 if named else 1.0, color=COLOURS[0], linewidth=0)
    if len(counts) <= NUMBERED:
        for place, count in zip(places, counts, strict=True):
            axes.annotate(
                f"{count:,}", (place, count), (0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=7.5
            )
    if named:
        names = [shown_name(name, 24) for name in one.class_names]
        turned = sum(map(text_width, names)) > 45
        axes.set_xticks(places, names, rotation=40 if turned else 0, ha="right" if turned else "center", fontsize=8)
        axes.tick_params("x", length=0)
        axes.set_xlabel("class")
    else:
        axes.set_xlabel(f"the {len(counts)} classes, by size")
        axes.set_xlim(-0.5, len(counts) - 0.5)
    axes.grid(False, axis="x")
    axes.set_ylabel("training images")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.margins(y=0.12)
    axes.set_title(shown_name(one.title, 48), pad=20)
    axes.annotate(
        _facts(counts), (0, 1), (0, 5), "axes fraction", textcoords="offset points", color=FAINT_INK, fontsize=8
    )


def _facts(counts: Sequence[int]) -> str:
    """The total, the largest and smallest class, and the imbalance factor."""
    largest, smallest = max(counts), min(counts)
    factor = f"imbalance factor {smallest / largest:.3g} ({largest:,} to {smallest:,})"
    return f"{sum(counts):,} images, " + ("balanced" if largest == smallest else factor)
