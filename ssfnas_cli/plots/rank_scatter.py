"""Accuracy of retrained networks against what the supernet says of their genotypes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ssfnas_cli.errors import InputError
from ssfnas_cli.plots.figure import COLOURS, FAINT_INK, new_figure, shown_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_NAMED = 12  # points that have room for their names


def draw(facts: Mapping[str, Any]) -> Figure:
    """A point a genotype, with a line from the least to the most of its retrainings.

    Args:
        facts: what `rank` prints.

    Raises:
        InputError: no genotype was retrained.
    """
    rows = [row for row in facts["genotypes"] if row["retrained"] is not None]
    if not rows:
        raise InputError(
            f"{facts['run']}: no genotype was retrained, so there is nothing to draw: name some with --nets"
        )
    figure = new_figure(5.0, 4.2)
    axes = figure.subplots()
    x, y = [row["supernet"] for row in rows], [row["retrained"] for row in rows]
    below = [row["retrained"] - min(row["retrained_values"]) for row in rows]
    above = [max(row["retrained_values"]) - row["retrained"] for row in rows]
    looks: dict[str, Any] = {"color": COLOURS[0], "markeredgecolor": "white", "markeredgewidth": 0.6}
    axes.errorbar(x, y, yerr=[below, above], fmt="o", elinewidth=1.0, ecolor=FAINT_INK, **looks)
    for row in rows if len(rows) <= MAX_NAMED else ():
        place: dict[str, Any] = {"xytext": (5, 4), "textcoords": "offset points"}
        axes.annotate(shown_name(row["name"], 24), (row["supernet"], row["retrained"]), fontsize=7, **place)
    name = facts["figure"].replace("_", " ")
    axes.set(
        xlabel=f"supernet, {name} on the alpha half, percent", ylabel=f"retrained, {name} on {facts['split']}, percent"
    )
    axes.set_title(_title(facts))
    axes.margins(x=0.18, y=0.12)
    return figure


def _title(facts: Mapping[str, Any]) -> str:
    tau = facts["kendall_tau"]
    if tau["value"] is None:
        return f"{facts['num_pairs']} genotypes"
    interval = "" if tau["low"] is None else f" ({tau['low']:.2f} to {tau['high']:.2f})"
    return f"Kendall's tau {tau['value']:.2f}{interval}, {facts['num_pairs']} genotypes"
