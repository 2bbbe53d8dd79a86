"""Accuracy over epochs, as a picture and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ssfnas_cli.errors import InputError
from ssfnas_cli.plots.curves import curve_of, draw, shown_figures
from ssfnas_cli.plots.report.blocks import Block, Details, Table
from ssfnas_cli.plots.report.material import note_of, picture
from ssfnas_cli.results.grouping import Group


def curve_blocks(groups: Sequence[Group]) -> list[Block]:
    """The curves of some groups, or what is missing for them."""
    try:
        shown = shown_figures(groups)
    except InputError as error:
        return [note_of("Accuracy over epochs", error)]
    tables = [table for name, title in shown if (table := _table(groups, name, title)) is not None]
    return [
        picture("Accuracy over epochs", lambda: _alt(groups, shown), partial(draw, groups)),
        Details("Accuracy over epochs, in numbers", tables),
    ]


def _alt(groups: Sequence[Group], shown: Sequence[tuple[str, str]]) -> str:
    told = []
    for name, title in shown:
        for group in groups:
            if (curve := curve_of(group, name)) is not None:
                ends = (f"{curve.mean[at]:.1f} % in epoch {curve.epochs[at]}" for at in (0, -1))
                told.append(f"{title}, {group.label}: {', '.join(ends)}")
    return f"Line chart. {'. '.join(told)}"


def _table(groups: Sequence[Group], name: str, title: str) -> Table | None:
    """A row for each epoch, a column for each group."""
    curves = {group.label: curve for group in groups if (curve := curve_of(group, name)) is not None}
    if not curves:
        return None
    values = {label: dict(zip(one.epochs, one.mean, strict=True)) for label, one in curves.items()}
    epochs = sorted({epoch for of_group in values.values() for epoch in of_group})
    rows = [
        [str(epoch), *(f"{one[epoch]:.2f}" if epoch in one else "-" for one in values.values())] for epoch in epochs
    ]
    return Table(f"{title}: accuracy in percent, mean over seeds", ["epoch", *values], rows)
