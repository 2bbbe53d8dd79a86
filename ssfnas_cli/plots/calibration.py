"""Reliability diagrams: how often a network is right where it is so sure (Guo et al., 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ssfnas_cli.plots.evaluations import calibration, evaluated
from ssfnas_cli.plots.figure import FAINT_INK, add_legend, new_figure, series_looks, shown_name
from ssfnas_cli.results.grouping import Group

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(groups: Sequence[Group], split: str) -> Figure:
    """Accuracy against confidence, and below it the share of images at each confidence. A group's seeds are pooled.

    Raises:
        InputError: a run is not evaluated on that split, or was by an ssfnas that kept no bins.
    """
    evaluated(groups, split)
    figure = new_figure(5.0, 5.2)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color=FAINT_INK, linewidth=0.9, linestyle=(0, (2, 2)))
    along: dict[str, Any] = {"rotation": 45, "rotation_mode": "anchor", "transform_rotates_text": True}
    upper.text(0.03, 0.05, "perfectly calibrated", fontsize=7.5, color=FAINT_INK, **along)
    upper.annotate("too sure", (0.98, 0.04), ha="right", fontsize=8, color=FAINT_INK)
    upper.annotate("not sure enough", (0.02, 0.96), va="top", fontsize=8, color=FAINT_INK)
    for number, group in enumerate(groups):
        bins = calibration(group, split)
        filled = bins["num_images"] > 0
        total = bins["num_images"].sum()
        error = float(np.abs((bins["confidence"] - bins["accuracy"]) * bins["num_images"]).sum() / max(total, 1))
        label = f"{shown_name(group.label, 60)} (error {error:.3f})"
        looks = series_looks(number)
        upper.plot(bins["confidence"][filled], bins["accuracy"][filled], label=label, **looks)
        edges = np.linspace(0, 1, len(filled) + 1)
        share = bins["num_images"] / max(total, 1)
        lower.stairs(100 * share, edges, color=looks["color"], linestyle=looks["linestyle"], linewidth=1.4)
    upper.set(ylabel="accuracy", ylim=(-0.02, 1.02), xlim=(0, 1), title=f"Calibration, {split}")
    lower.set(ylabel="% of images", xlabel="confidence")
    add_legend(figure, upper.get_legend_handles_labels()[0])
    return figure
