"""How `evaluate` shows metrics on a terminal: a table of figures, then which classes are taken for which."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ssfnas_cli.console import box_style

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MAX_CLASSES = 20  # that are shown one by one
GROUPS = {
    "many": "many (more than 100 training images",
    "medium": "medium (20 to 100 training images",
    "few": "few (fewer than 20 training images",
}
NAMED_CLASSES = 4  # of a group


def show_metrics(metrics: Mapping[str, Any]) -> Callable[[Console], None]:
    """Draws the metrics that `evaluate_run` gives."""

    def show(console: Console) -> None:
        equal = {copy: whole for whole, copy in metrics["same_images"]}
        splits = {name: facts for name, facts in metrics["splits"].items() if name not in equal}
        for copy, whole in equal.items():
            console.print(f"The splits {whole} and {copy} hold the same images: both are the column {whole}.")
        console.print(_figures(metrics, splits))
        if len(metrics["class_names"]) > MAX_CLASSES:
            hidden = f"The accuracy of each of the {len(metrics['class_names'])} classes: --json, or -o FILE."
            console.print(hidden)
        for name, facts in splits.items():
            _show_confusion(console, name, metrics["class_names"], facts)

    return show


def _figures(metrics: Mapping[str, Any], splits: Mapping[str, Mapping[str, Any]]) -> Table:
    from rich.table import Table
    from rich.text import Text  # names are shown as they are

    table = Table(title=Text(metrics["run"]), box=box_style(), title_justify="left")
    table.add_column("")
    for name in splits:
        table.add_column(name, justify="right")

    def row(label: str, pick: Callable[[Mapping[str, Any]], str], style: str = "") -> None:
        table.add_row(Text(label), *(pick(facts) for facts in splits.values()), style=style)

    row("images", lambda facts: f"{facts['num_images']:,}")
    row("top-1 (of all images)", lambda facts: _percent(facts["top1"]), "bold")
    row("balanced accuracy (mean of the classes)", lambda facts: _percent(facts["balanced_accuracy"]), "bold")
    row("macro F1, from 0 to 1", lambda facts: f"{facts['macro_f1']:.3f}")
    row("calibration error, from 0 to 1; 0 is best", lambda facts: f"{facts['ece']:.3f}")
    first = next(iter(splits.values()))
    for kind in ("groups_by_count", "groups_by_thirds"):
        table.add_section()
        for group, about in first[kind].items():
            if about["classes"]:
                row(_group_label(group, kind, about["classes"]), partial(_group, kind, group))
    if len(metrics["class_names"]) <= MAX_CLASSES:
        table.add_section()
        for c, (name, count) in enumerate(zip(metrics["class_names"], metrics["train_counts"], strict=True)):
            row(f"{name} ({count} training images)", partial(_class, c, name), "dim")
    return table


def _percent(value: float | None, images: int | None = None) -> str:
    if value is None:
        return "no image"
    return f"{value:.1f} %" if images is None else f"{value:.1f} % of {images:,}"


def _group(kind: str, group: str, facts: Mapping[str, Any]) -> str:
    return _percent(facts[kind][group]["accuracy"], facts[kind][group]["num_images"])


def _class(number: int, name: str, facts: Mapping[str, Any]) -> str:
    return _percent(facts["per_class"][name], facts["class_counts"][number])


def _group_label(group: str, kind: str, classes: list[str]) -> str:
    count = f"{len(classes)} class{'' if len(classes) == 1 else 'es'}"
    if len(classes) <= NAMED_CLASSES:
        count += f": {', '.join(classes)}"
    return f"{GROUPS[group]}; {count})" if kind == "groups_by_count" else f"{group} third ({count})"


def _show_confusion(console: Console, split: str, names: list[str], facts: Mapping[str, Any]) -> None:
    if len(names) <= MAX_CLASSES:
        numbers = [str(number) for number in range(1, len(names) + 1)]
        numbered = [f"{number} {name}" for number, name in zip(numbers, names, strict=True)]
        for rows, columns in ((names, names), (numbered, numbers)):
            table = _confusion_table(split, rows, columns, facts["confusion"])
            unbounded = console.options.update(max_width=10_000)  # a measure never exceeds the width that it is given
            if console.measure(table, options=unbounded).maximum <= console.width:
                console.print(table)
                return
    if not facts["worst_confusions"]:
        console.print(f"{split}: no image is taken for one of another class.")
        return
    console.print(f"{split}: which classes are taken for another one most often (true -> predicted)")
    for one in facts["worst_confusions"]:
        console.print(f"  {one['true']} -> {one['predicted']}: {one['images']} of {one['of']}", soft_wrap=True)


def _confusion_table(split: str, rows: list[str], columns: list[str], confusion: list[list[int]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"{split}: how many images of a class were taken for which"), title_justify="left")
    table.box, table.padding = box_style(), (0, 1, 0, 0)
    table.add_column("true, down; predicted, across", no_wrap=True)
    for name in columns:
        table.add_column(Text(name), justify="right", no_wrap=True)
    for number, name in enumerate(rows):
        cells = [Text(str(count) if count else ".") for count in confusion[number]]
        cells[number].stylize("bold")
        table.add_row(Text(name), *cells)
    return table
