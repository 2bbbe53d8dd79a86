"""The page: sections of blocks as one HTML file, which has no script and asks for nothing from outside."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from ssfnas_cli import __version__
from ssfnas_cli.console import printable
from ssfnas_cli.plots.report.blocks import Section
from ssfnas_cli.plots.report.inline import inline_svg


def render(title: str, sections: Sequence[Section]) -> bytes:
    """The page as the bytes of an HTML file; the same sections give the same bytes.

    Every text in them is escaped: names of classes, files and settings may come from strangers.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("ssfnas_cli.plots.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    numbers = itertools.count(1)
    environment.globals |= {"new_id": lambda: f"n{next(numbers)}", "inline_svg": inline_svg}
    page = environment.get_template("page.html").render(title=title, sections=sections, version=__version__)
    return page.encode("utf-8", "backslashreplace")
