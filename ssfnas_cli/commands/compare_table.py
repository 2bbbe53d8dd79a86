"""A comparison as text, JSON, CSV, Markdown or LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ssfnas_cli.console import box_style, format_duration, plain_console, printable, stdout
from ssfnas_cli.json_text import layout_json
from ssfnas_cli.results.baseline import Contrast
from ssfnas_cli.results.comparison import Comparison, to_json
from ssfnas_cli.results.figures import Figure
from ssfnas_cli.results.legend import lettered
from ssfnas_cli.results.statistics import LEVEL, MAX_EXACT, Difference, Spread

if TYPE_CHECKING:
    from rich.console import Console

LABEL_WIDTH, GAP = 32, 3  # of the first column on a terminal, and between columns
FILE_WIDTH = 120
STATISTICS = ("difference", "low", "high", "p", "pairs")  # the columns of a difference in CSV
LATEX = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}"}
LATEX |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "±": r"$\pm$"}


class Grid(NamedTuple):
    """A table for people: its title, its header and its rows, whose first cell is a group's label."""

    title: str
    header: list[str]
    rows: list[list[str]]


def write(comparison: Comparison, name: str) -> bytes:
    """The comparison in the format of that name."""
    formats: dict[str, Callable[[Comparison], str]] = {
        "text": _text,
        "json": lambda one: layout_json(to_json(one)) + "\n",
        "csv": _csv,
        "markdown": _markdown,
        "latex": _latex,
    }
    return formats[name](comparison).encode()


def show(comparison: Comparison) -> None:
    """Print the comparison on the terminal."""
    _draw(comparison, plain_console(stdout()), box_style())


# Cells


def grids(comparison: Comparison) -> list[Grid]:
    """The table of figures, and one of differences from each baseline."""
    figures, groups = comparison.figures, comparison.groups
    rows = [
        [group.label, str(len(group.runs)), *(_cell(comparison.spread(group, one), one) for one in figures)]
        for group in groups
    ]
    whole = [Grid(_title(comparison), ["group", "seeds", *(one.title for one in figures)], rows)]
    compared = [one for one in figures if one.effect]
    for baseline in comparison.baselines if compared else ():
        rows = [[one.label, *_difference_cells(one, compared)] for one in baseline.contrasts]
        title = (
            f"Difference from {baseline.label}, paired by seed: mean [{LEVEL:.0%} t interval], p of the exact "
            "permutation test"
        )
        whole.append(Grid(title, ["group", "pairs", *(one.title for one in compared)], rows))
    return whole


def _title(comparison: Comparison) -> str:
    where = "of the last epoch" if comparison.kind == "search" else f"on {' and '.join(comparison.splits)}"
    return f"Figures {where}, mean ± standard deviation over seeds; accuracies in percent"


def _cell(value: Spread, figure: Figure) -> str:
    if value.mean is None:
        return "-"
    text = _number(value.mean, figure.digits)
    if value.std is None or text == _number(value.mean + value.std, figure.digits):
        return text
    return f"{text} ± {_number(value.std, figure.digits)}"


def _number(value: float, digits: int | None) -> str:
    if digits == -1:
        return format_duration(value)
    return f"{value:,.0f}" if digits is None else f"{value:.{digits}f}"


def _difference_cells(contrast: Contrast, figures: Sequence[Figure]) -> list[str]:
    found = [contrast.difference(figure) for figure in figures]
    pairs = max((one.num for one in found if one is not None), default=0)
    return [str(pairs), *(_difference(one, figure) for one, figure in zip(found, figures, strict=True))]


def _difference(value: Difference | None, figure: Figure) -> str:
    if value is None:
        return "-"
    signed = lambda number: f"{number:+.{figure.digits}f}"
    if value.low is None or value.high is None:
        return signed(value.mean)
    p = "" if value.p is None else f" p={value.p:.3g}"
    return f"{signed(value.mean)} [{signed(value.low)}, {signed(value.high)}]{p}"


def notes(comparison: Comparison) -> list[str]:
    """What to mind about the figures, and what the runs took."""
    told = [remark.sentence for remark in comparison.remarks]
    if comparison.core_hours:
        words = {"search": "searches", "retrain": "networks"}
        each = ", ".join(f"{words[kind]} {hours:.1f}" for kind, hours in comparison.core_hours.items())
        told.append(
            f"all of it took {sum(comparison.core_hours.values()):.1f} core-hours (hours times threads): {each}"
        )
    if contrasts := [contrast for one in comparison.baselines for contrast in one.contrasts]:
        pairs = [one.difference(comparison.figures[0]) for one in contrasts]
        fewest = min((one.num for one in pairs if one is not None and 1 < one.num <= MAX_EXACT), default=None)
        if fewest is not None:
            told.append(f"with {fewest} pairs the permutation test's p cannot be below {2 / 2**fewest:.3g}")
    return told


# Text


def _text(comparison: Comparison) -> str:
    from rich import box

    text = io.StringIO()
    console = plain_console(text)
    console.width = FILE_WIDTH
    _draw(comparison, console, box.SIMPLE_HEAD)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def _draw(comparison: Comparison, console: Console, box: Any) -> None:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    comparison, legend = lettered(comparison)
    if legend:
        lines = [Text(f"{letter}: {printable(label)}") for letter, label in legend.items()]
        console.print("Groups:", *(Padding(line, (0, 0, 0, 2)) for line in lines), "", sep="\n")
    for grid in grids(comparison):
        for number, columns in enumerate(_fitting(grid, console.width)):
            table = Table(title=Text(grid.title) if number == 0 else None, box=box, title_justify="left")
            table.add_column(grid.header[0], max_width=LABEL_WIDTH, overflow="fold")
            for column in columns:
                table.add_column(grid.header[column], justify="right", no_wrap=True)
            for row in grid.rows:
                table.add_row(Text(row[0]), *(row[column] for column in columns))
            console.print(table)
    told = notes(comparison)
    if told:
        console.print("What to mind:")
    for sentence in told:
        console.print(Padding(Text(f"- {printable(sentence)}"), (0, 0, 0, 2)))


def _fitting(grid: Grid, width: int) -> list[list[int]]:
    """The columns behind the labels, in parts that are no wider than the terminal."""
    from rich.cells import cell_len

    labels = min(LABEL_WIDTH, max(cell_len(row[0]) for row in grid.rows))
    parts: list[list[int]] = []
    room = 0
    for column in range(1, len(grid.header)):
        needed = GAP + max(cell_len(row[column]) for row in [grid.header, *grid.rows])
        if not parts or needed > room:
            parts.append([])
            room = width - labels - GAP - 2
        parts[-1].append(column)
        room -= needed
    return parts


# Files


def _csv(comparison: Comparison) -> str:
    """A line a group: mean and standard deviation of each figure, and the differences from each baseline."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    bases = comparison.baselines
    suffixes = [f"_from_{one.label}" if len(bases) > 1 else "" for one in bases]
    header = ["group", "seeds", "runs"]
    for figure in comparison.figures:
        header += [figure.name, f"{figure.name}_std"]
        columns = [f"{figure.name}_{one}{suffix}" for suffix in suffixes for one in STATISTICS]
        header += columns if figure.effect else []
    writer.writerow(header)
    for group in comparison.groups:
        row: list[Any] = [group.label, len(group.runs), " ".join(str(run.path) for run in group.runs)]
        for figure in comparison.figures:
            value = comparison.spread(group, figure)
            row += [value.mean, value.std]
            for baseline in bases if figure.effect else ():
                contrast = baseline.of(group)
                found = None if contrast is None else contrast.difference(figure)
                row += [None] * len(STATISTICS) if found is None else list(found)
        writer.writerow(row)
    return text.getvalue()


def _markdown(comparison: Comparison) -> str:
    line = lambda cells: "| " + " | ".join(cells) + " |"
    comparison, legend = lettered(comparison)
    parts = ["\n".join(f"- **{letter}**: {_plain(label)}" for letter, label in legend.items())] if legend else []
    for grid in grids(comparison):
        rows = [[_plain(row[0]).replace("|", "\\|"), *row[1:]] for row in grid.rows]
        rule = ["---", *("---:" for _ in grid.header[1:])]
        parts.append("\n".join([f"{_plain(grid.title)}:", "", line(grid.header), line(rule), *map(line, rows)]))
    told = notes(comparison)
    if told:
        parts.append("\n".join(f"- {_plain(sentence)}" for sentence in told))
    return "\n\n".join(parts) + "\n"


def _latex(comparison: Comparison) -> str:
    parts = []
    for grid in grids(comparison):
        line = lambda cells: " & ".join(map(_escaped, cells)) + r" \\"
        parts.append(
            "\n".join(
                [
                    f"% {_plain(grid.title)}",
                    r"\begin{tabular}{l" + "r" * (len(grid.header) - 1) + "}",
                    r"\hline",
                    line(grid.header),
                    r"\hline",
                    *(line(row) for row in grid.rows),
                    r"\hline",
                    r"\end{tabular}",
                ]
            )
        )
    parts += [f"% {_plain(sentence)}" for sentence in notes(comparison)]
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    """A name on one line, without control characters."""
    return printable(" ".join(text.split()))


def _escaped(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in _plain(text))
