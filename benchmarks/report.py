"""Helpers of all benchmarks: facts about the machine, figures with their spread, sections of docs/performance.md."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from ssfnas_cli.machine import environment

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"


def machine() -> str:
    """The processor, cores, threads and versions in one line."""
    facts = environment()
    return (
        f"{facts['processor']} ({facts['kernels']}), {facts['cores']} cores, {facts['threads']} threads, "
        f"torch {facts['torch']}, Python {facts['python']}"
    )


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Format values as `median (smallest to largest)`."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_section(name: str, body: str) -> None:
    """Replace the text between the marks of `name` in docs/performance.md by `body`, and print it."""
    text = PAGE.read_text(encoding="utf-8")
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    assert text.count(begin) == text.count(end) == 1, f"{PAGE}: lacks the marks of {name}"
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    PAGE.write_text(re.sub(pattern, lambda _: f"{begin}\n{body}\n{end}", text, flags=re.DOTALL), encoding="utf-8")
    print(body)
