"""How the format of a comparison is named."""

from pathlib import Path

import pytest

from ssfnas_cli.commands.compare import _format
from ssfnas_cli.errors import UsageError


@pytest.mark.parametrize(
    ("named", "meant"),
    [("md", "markdown"), ("markdown", "markdown"), ("tex", "latex"), ("txt", "text"), ("csv", "csv"), ("json", "json")],
)
def test_a_format_is_named_in_words_or_as_the_suffix_of_its_files(named, meant):
    assert _format(named, None, json=False) == meant
    suffix = "md" if named == "markdown" else named
    assert _format(None, Path(f"table.{suffix}"), json=False) == meant


def test_another_format_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="--format docx: should be one of text, json, csv, markdown, latex"):
        _format("docx", None, json=False)
