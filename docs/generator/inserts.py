"""Fills the marks `<!-- insert: NAME ARGUMENT -->` of a page with what the program or another file says."""

from __future__ import annotations

import re
from collections.abc import Callable

from generator import commands, files, settings
from generator.links import ROOT, localise
from generator.markdown import fenced

_MARK = re.compile(r"^<!-- insert: (?P<name>[a-z-]+)(?: (?P<argument>.+))? -->$", re.MULTILINE)
_LANGUAGES = {".sh": "bash", ".py": "python", ".toml": "toml"}


def fill(markdown: str, page: str) -> str:
    """The page with its marks filled and its links as the site needs them.

    Args:
        markdown: the page as it is written.
        page: its file, relative to the repository.

    Raises:
        KeyError: no insert has that name.
        FileNotFoundError: a file to insert, or one that a link names, is not there.
    """

    def insert(mark: re.Match[str]) -> str:
        return _INSERTS[mark["name"]](*filter(None, [mark["argument"]]), page)

    return _MARK.sub(insert, localise(markdown, page, page))


def document(path: str, page: str) -> str:
    """A whole Markdown file of the repository."""
    return localise((ROOT / path).read_text(encoding="utf-8"), path, page)


def section(argument: str, page: str) -> str:
    """A section of a Markdown file, such as `README.md The stages`, with its heading.

    Raises:
        KeyError: the file has no such section.
    """
    path, _, title = argument.partition(" ")
    parts = re.split(r"^(?=## )", (ROOT / path).read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = {part.partition("\n")[0].removeprefix("## "): part for part in parts}
    return localise(found[title], path, page)


def file(path: str, page: str) -> str:
    """A file of the repository as a block of code."""
    return fenced((ROOT / path).read_text(encoding="utf-8"), _LANGUAGES.get((ROOT / path).suffix, "text"))


_INSERTS: dict[str, Callable[..., str]] = {
    "document": document,
    "section": section,
    "file": file,
    "commands": lambda page: commands.overview(),
    "command-details": lambda page: commands.details(),
    "exit-codes": lambda page: commands.exit_codes(),
    "presets": lambda page: settings.presets(),
    "settings": lambda page: settings.tables(),
    "plugins": lambda page: settings.plugins(),
    "record": lambda name, page: files.record_tables(name),
    "plain": lambda name, page: files.plain_table(name),
}
