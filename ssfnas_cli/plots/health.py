"""The health of searches over epochs: how decided the mixing weights are, and what the genotype is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ssfnas_cli.errors import InputError
from ssfnas_cli.plots.curves import curve_of, draw_curve, note_on
from ssfnas_cli.plots.figure import add_legend, panels, series_looks
from ssfnas_cli.results.grouping import Group
from ssfnas_cli.results.health import FIGURES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COST = "weights, multiply-adds or ms"
PANELS = (  # name in the metrics, title, label of the axis
    ("weights_decided", "Decided weights", "share within 0.1 of 0 or 1"),
    ("weights_entropy", "Entropy of the weights", "1: undecided, 0: decided"),
    ("edges_entropy", "Entropy of edge weights", "1: undecided, 0: decided"),
    ("genotype_skips", "Skips in the genotype", "share of its ops"),
    ("genotype_pools", "Pools in the genotype", "share of its ops"),
    ("genotype_changes", "New edges in the genotype", "since the epoch before"),
    ("expected_cost", "Expected cost", COST),
    ("genotype_cost", "Cost of the genotype", COST),
    ("accuracy", "Accuracy, alpha half", "percent"),
)
LEAST_SPAN = 0.1  # of an axis of shares


def draw(groups: Sequence[Group]) -> Figure:
    """A panel for each figure. A line is the mean of a group's runs, and the band reaches from the least to the most.

    Raises:
        InputError: no run recorded its health, since an earlier ssfnas made it.
    """
    runs = [run for group in groups for run in group.runs]
    if not any(name in line for run in runs for line in run.metrics for name in FIGURES):
        raise InputError(
            f"{runs[0].path}: recorded no search health: an earlier ssfnas made it, or it has chosen nothing yet; "
            "search again or go on, or plot alphas"
        )
    shown = [panel for panel in PANELS if panel[0] == "accuracy" or any(run.over_epochs(panel[0]) for run in runs)]
    figure, axes = panels(len(shown), 3.7, 2.5, columns=3)
    for (name, title, label), place in zip(shown, axes, strict=True):
        for number, group in enumerate(groups):
            if name == "accuracy":
                _draw_accuracy(place, group, number)
            else:
                draw_curve(place, group, name, number)
        _label(place, title, label, max(line["epoch"] for run in runs for line in run.metrics))
    add_legend(figure, axes[-1].get_legend_handles_labels()[0], note_on(groups))
    return figure


def _draw_accuracy(axes: Axes, group: Group, number: int) -> None:
    """The supernet's accuracy; to the right of its last epoch the pruned one's, lower by the discretisation gap."""
    for name in ("accuracy_alpha_half", "probe_accuracy_alpha_half"):
        draw_curve(axes, group, name, number)
        before, pruned = curve_of(group, name), curve_of(group, f"pruned_{name}")
        whole, ends = ({} if curve is None else curve.means() for curve in (before, pruned))
        for epoch in whole.keys() & ends.keys():
            looks = series_looks(number) | {"linewidth": 0.8, "markerfacecolor": "white", "markevery": [1]}
            looks |= {"markeredgecolor": looks["color"], "markeredgewidth": 1.0}
            place = epoch + max(0.6, 0.08 * epoch) * (1 + 0.3 * (number % 4))
            axes.plot([epoch, place], [whole[epoch], ends[epoch]], **looks)


def _label(axes: Axes, title: str, label: str, last_epoch: int) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.set(title=title, ylabel=label, xlabel="epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    low, high = axes.get_ylim()
    if label.startswith(("share", "1:")):
        middle, half = (low + high) / 2, max(high - low, LEAST_SPAN) / 2
        low = min(max(-0.02, middle - half), 1.02 - LEAST_SPAN)
        high = max(min(1.02, middle + half), low + LEAST_SPAN)
        axes.set_ylim(low, high)
        axes.set_yticks([tick for tick in axes.get_yticks() if max(0, low) <= tick <= min(1, high)])
    elif label.startswith("since"):
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    elif label == COST and high >= 1000:
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))  # 300M
    elif label == "percent":
        limits = axes.get_xlim()
        axes.set_xticks([tick for tick in axes.get_xticks() if 1 <= tick <= last_epoch])
        axes.set(xlim=limits, xlabel="epoch (hollow: pruned to the genotype)")
