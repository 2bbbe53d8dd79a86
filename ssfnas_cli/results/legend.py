"""Letters for groups whose labels are long, and the legend that says which group a letter is."""

from __future__ import annotations

import string
from dataclasses import replace

from ssfnas_cli.results.audit import audit
from ssfnas_cli.results.baseline import Baseline, Contrast
from ssfnas_cli.results.comparison import Comparison

LONG = 40  # letters of a label, above which a table of such labels cannot be read


def lettered(comparison: Comparison) -> tuple[Comparison, dict[str, str]]:
    """The comparison with letters for the labels of all groups, and their labels by letter, if some label is long.

    Without a long one it is the comparison itself, and no legend. Sentences of the audit name the letters, too.
    """
    if all(len(group.label) <= LONG for group in comparison.groups):
        return comparison, {}
    legend = {_letter(place): group.label for place, group in enumerate(comparison.groups)}
    groups = [replace(group, label=letter) for letter, group in zip(legend, comparison.groups, strict=True)]
    of = {id(group): short for group, short in zip(comparison.groups, groups, strict=True)}
    letters = {label: letter for letter, label in legend.items()}
    baselines = [
        Baseline(
            letters.get(one.label, one.label),
            [
                Contrast(letters.get(each.label, each.label), tuple((of[id(a)], of[id(b)]) for a, b in each.pairs))
                for each in one.contrasts
            ],
        )
        for one in comparison.baselines
    ]
    remarks = audit(groups, comparison.splits, baselines, comparison.left_out)
    return replace(comparison, groups=groups, baselines=baselines, remarks=remarks), legend


def _letter(place: int) -> str:
    """A to Z, and then AA, AB, … as the columns of a spreadsheet."""
    before, last = divmod(place, len(string.ascii_uppercase))
    return (_letter(before - 1) if before else "") + string.ascii_uppercase[last]
