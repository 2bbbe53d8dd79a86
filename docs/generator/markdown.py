"""Tables and code in Markdown."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def code(value: object) -> str:
    """A value in code, as HTML: Markdown has no way to write a vertical bar in code in a table."""
    return f"<code>{_plain(value)}</code>"


def text(value: object) -> str:
    """Words of the program, in which Markdown must leave `*` or `<name>` alone; what is between backticks is code."""
    parts = str(value).split("`")
    whole = len(parts) % 2 == 1
    return "".join(code(part) if whole and place % 2 else _escaped(part) for place, part in enumerate(parts))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already; empty if it has no rows."""
    lines = [header, ["---"] * len(header), *rows]
    if len(lines) == 2:
        return ""
    return "".join("| " + " | ".join(cell.replace("\n", " ") for cell in line) + " |\n" for line in lines)


def fenced(source: str, language: str) -> str:
    """A block of code."""
    return f"```{language}\n{source.rstrip()}\n```\n"


def _escaped(value: str) -> str:
    return "".join(f"&#{ord(char)};" if char in "*_`[]\\~^{}" else char for char in _plain(value))


def _plain(value: object) -> str:
    return html.escape(str(value), quote=False).replace("|", "&#124;")
