"""Confusion matrices: which classes are taken for which, in percent of each true class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ssfnas_cli.plots.evaluations import confusion, evaluated
from ssfnas_cli.plots.figure import panels, shown_name, text_width
from ssfnas_cli.results.grouping import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

NAMED, NUMBERED = 30, 20  # classes that are named beside the matrix, and whose percentages stand in its cells
LETTER, SHORT = 0.075, 10  # inches of a letter of a name, and letters that need no more room
TITLE_LETTER = 0.095  # inches of a letter of a title, which must not reach the next one


def draw(groups: Sequence[Group], split: str) -> Figure:
    """A matrix a group, of all its runs together. Classes are sorted by their training images, the largest first.

    Raises:
        InputError: the runs are not evaluated on that split, or their classes differ.
    """
    names, _, order = evaluated(groups, split)
    shown = [shown_name(names[c], 24) for c in order]
    side = 3.9 if len(names) <= 12 else 5.4
    if len(names) <= NAMED:  # the names beside the matrix must not take the room of it and of the label
        side += LETTER * max(0, max(map(text_width, shown)) - SHORT)
    figure, axes = panels(len(groups), side + 0.5, side + 0.2, columns=3)
    image = None
    for group, place in zip(groups, axes, strict=True):
        matrix = confusion(group, split, names)[np.ix_(order, order)]
        image = _draw_matrix(matrix, shown, place)
        seeds = f" ({len(group.runs)} seeds)" if len(group.runs) > 1 else ""
        place.set_title(shown_name(group.label, int((side + 0.3) / TITLE_LETTER) - len(seeds)) + seeds)
    axes[0].set_ylabel(f"true class in {split},\nthe largest in training first")
    assert image is not None
    bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=30, pad=0.02)
    bar.set_label("percent of the true class")
    bar.outline.set_visible(False)
    return figure


def _draw_matrix(matrix: NDArray[np.int64], names: Sequence[str], axes: Axes) -> AxesImage:
    totals = matrix.sum(1, keepdims=True)
    percent = 100 * matrix / np.maximum(totals, 1)
    image = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    axes.grid(False)
    axes.set_xlabel("predicted class")
    for spine in axes.spines.values():
        spine.set_visible(False)
    if len(names) > NAMED:
        return image
    small = 8 if len(names) <= 12 else 6.5
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=small)
    axes.set_yticks(range(len(names)), names, fontsize=small)
    axes.tick_params(length=0)
    if len(names) <= NUMBERED:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            value = percent[row, column]
            text = f"{value:.0f}" if value >= 0.5 else "·"
            colour = "white" if value > 55 else "#1f2933"
            axes.text(column, row, text, ha="center", va="center", fontsize=small - 0.5, color=colour)
    return image
