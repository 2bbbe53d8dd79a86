"""Rows of predictions as text: CSV, JSON lines, and columns for a terminal."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ssfnas_cli.console import printable

if TYPE_CHECKING:
    from ssfnas_cli.deploy.stream import Row

DIGITS = 6  # of a probability
MAX_WIDTH = 24  # of a class name on a terminal

Format = Callable[[Sequence["Row"]], str]


def _shown(probability: float) -> float:
    return float(f"{probability:.{DIGITS}g}")


def json_lines(rows: Sequence[Row]) -> str:
    """An object in each line; of a file that could not be read all but `path` and `error` is null or empty."""
    return "".join(f"{json.dumps(_value(row), ensure_ascii=False)}\n" for row in rows)


def _value(row: Row) -> dict[str, object]:
    top = [{"class": name, "probability": _shown(probability)} for name, probability in row.top]
    first = top[0] if top else {"class": None, "probability": None}
    return {"path": row.path, **first, "top_k": top, "error": row.error or None}


def csv_format(num_top: int) -> tuple[str, Format]:
    """The header of a CSV file and its rows; the second most probable class and those after it have more columns."""
    more = [name for rank in range(2, num_top + 1) for name in (f"class_{rank}", f"probability_{rank}")]

    def write(rows: Sequence[Row]) -> str:
        return _csv([row.path, *_cells(row, 0, 1), row.error, *_cells(row, 1, num_top)] for row in rows)

    return _csv([["path", "class", "probability", "error", *more]]), write


def _csv(rows: object) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)  # type: ignore[arg-type]
    return text.getvalue()


def _cells(row: Row, first: int, last: int) -> list[object]:
    cells: list[object] = [cell for name, probability in row.top[first:last] for cell in (name, _shown(probability))]
    return cells or [""] * (2 * (last - first))


def columns(class_names: Sequence[str], num_top: int) -> tuple[str, Format]:
    """A header and rows in columns. The path comes last, so that it is never cut."""
    from rich.cells import cell_len, set_cell_size

    width = min(MAX_WIDTH, max(map(cell_len, (*map(printable, class_names), "unreadable"))))
    beside = min(3, num_top) - 1
    other = beside * (width + 8)

    def line(name: str, probability: str, others: str, path: str) -> str:
        cells = [set_cell_size(name, width), f"{probability:>11}"]
        cells += [set_cell_size(others, other)] if beside else []
        return "  ".join([*cells, path]) + "\n"

    def show(rows: Sequence[Row]) -> str:
        lines = []
        for row in rows:
            shown = [(printable(name), f"{100 * probability:.1f} %") for name, probability in row.top]
            name, probability = shown[0] if shown else ("unreadable", "")
            others = ", ".join(f"{name} {probability}" for name, probability in shown[1 : 1 + beside])
            lines.append(line(name, probability, others, printable(row.path)))
        return "".join(lines)

    return line("class", "probability", "or", "image"), show
