"""The health of searches over epochs: how decided the mixing weights are, and what the genotype is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ssfnas_cli.errors import InputError
from ssfnas_cli.plots.figure import add_legend, panels, series_looks, shown_name
from ssfnas_cli.results.facts import RunFacts
from ssfnas_cli.results.grouping import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = (  # name in the metrics, title, label of the axis, bounds
    ("weights_decided", "Decided weights", "share within 0.1 of 0 or 1", (-0.03, 1.03)),
    ("weights_entropy", "Entropy of the weights", "1: undecided, 0: decided", (-0.03, 1.03)),
    ("genotype_skips", "Skips in the genotype", "share of its ops", (-0.03, 1.03)),
    ("genotype_pools", "Pools in the genotype", "share of its ops", (-0.03, 1.03)),
    ("genotype_changes", "New edges in the genotype", "edges since the epoch before", None),
    ("accuracy", "Accuracy, alpha half; at the end also pruned", "percent", None),
)


def draw(groups: Sequence[Group]) -> Figure:
    """A panel a figure, a line a run.

    Raises:
        InputError: no run recorded its health, since an earlier ssfnas made it.
    """
    runs = [(group, run) for group in groups for run in group.runs]
    if not any("weights_moved" in line for _, run in runs for line in run.metrics):
        raise InputError(
            f"{runs[0][1].path}: recorded no search health, since an earlier ssfnas made it: search again, "
            "or plot alphas"
        )
    shown = [panel for panel in PANELS if panel[0] == "accuracy" or any(_values(run, panel[0]) for _, run in runs)]
    figure, axes = panels(len(shown), 3.7, 2.5, columns=3)
    for (name, title, label, bounds), place in zip(shown, axes, strict=True):
        for number, (group, run) in enumerate(runs):
            text = f"{shown_name(group.label, 50)}, seed {run.seeds[-1]}" if len(runs) > 1 else shown_name(group.label)
            if name == "accuracy":
                _draw_accuracy(place, run, number, text)
            else:
                _plot(place, _values(run, name), number, text)
        _label(place, title, label, bounds)
    add_legend(figure, axes[-1])
    return figure


def _values(run: RunFacts, name: str) -> dict[int, float]:
    return {line["epoch"]: line[name] for line in run.metrics if name in line}


def _plot(axes: Axes, values: dict[int, float], number: int, label: str) -> None:
    every = max(1, len(values) // 8)
    if values:
        axes.plot(
            list(values), list(values.values()), label=label, markevery=(number % every, every), **series_looks(number)
        )


def _draw_accuracy(axes: Axes, run: RunFacts, number: int, label: str) -> None:
    """The supernet's accuracy, and from its last value down to that of the pruned supernet: the discretisation gap."""
    for name in ("accuracy_alpha_half", "probe_accuracy_alpha_half"):
        values = _values(run, name)
        _plot(axes, values, number, label)
        for epoch, pruned in _values(run, f"pruned_{name}").items():
            colour = series_looks(number)["color"]
            axes.annotate("", (epoch, pruned), (epoch, values[epoch]), arrowprops={"arrowstyle": "->", "color": colour})
            axes.plot([epoch], [pruned], color=colour, marker=series_looks(number)["marker"], markerfacecolor="white")


def _label(axes: Axes, title: str, label: str, bounds: tuple[float, float] | None) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set(title=title, ylabel=label, xlabel="epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if bounds is not None:
        axes.set_ylim(*bounds)
    elif "edges" in label:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
