"""MkDocs calls this for every page. What the program says of itself comes into the pages here: see `generator/`."""

from __future__ import annotations

from typing import Any

from generator import inserts


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill the marks of the page, and let its links lead to pages of the site."""
    return inserts.fill(markdown, f"docs/{page.file.src_uri}")
