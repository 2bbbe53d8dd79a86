"""Links as the site needs them. In the repository a page may link to any file; the site has the pages only."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = "docs"
PAGES = {  # what the site has of the files that are not pages in docs/
    "README.md": "docs/index.md",
    "CONTRIBUTING.md": "docs/contributing.md",
    "CHANGELOG.md": "docs/changelog.md",
    "examples/slurm": "docs/slurm.md",
    "examples/plugin": "docs/plugins.md",
    "examples/plugin/README.md": "docs/plugins.md",
}
_FENCE = re.compile(r"^ *(```|~~~)")
_LINK = re.compile(r"(?P<code>`[^`]*`)|\[(?P<text>[^\[\]]*)\]\((?P<target>[^()\s]+)\)")


def localise(markdown: str, source: str, page: str) -> str:
    """Rewrite the links of a text for the page that it stands in.

    A link to a file that has a page becomes one to that page. A link to another file of the repository becomes its
    path, in code.

    Args:
        markdown: the text.
        source: the file that it was written in, relative to the repository: its links are relative to that file.
        page: the page that it stands in, relative to the repository.

    Raises:
        FileNotFoundError: a link leads to no file.
    """
    return outside_code(markdown, lambda line: _LINK.sub(lambda link: _rewrite(link, source, page), line))


def outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Change every line that is not in a block of code."""
    lines, fence = [], ""
    for line in markdown.splitlines(keepends=True):
        mark = _FENCE.match(line)
        lines.append(line if fence or mark else change(line))
        if mark and fence in ("", mark[1]):
            fence = "" if fence else mark[1]
    return "".join(lines)


def _rewrite(link: re.Match[str], source: str, page: str) -> str:
    if link["code"] or re.match(r"[a-z]+:|#", link["target"]):
        return link[0]
    path, hash_mark, anchor = link["target"].partition("#")
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if not (ROOT / target).exists():
        raise FileNotFoundError(f"{source}: links to {link['target']}, which is not there")
    text = _title(target, anchor) if link["text"].endswith(".md") else link["text"]
    target = PAGES.get(target, target)
    if not target.startswith(f"{DOCS}/"):
        return link["text"] if link["text"].strip("`") == target else f"{link['text']} (`{target}`)"
    return f"[{text}]({posixpath.relpath(target, posixpath.dirname(page))}{hash_mark}{anchor})"


def _title(path: str, anchor: str) -> str:
    """The heading that a link leads to, in place of the name of a file, which the site does not show."""
    headings = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
    by_anchor = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-"): heading for heading in headings}
    return by_anchor.get(anchor, headings[0])
