import logging

import pytest

from ssfnas_cli.console import _Formatter, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Größe 猫 é 😀 a\\b", "Größe 猫 é 😀 a\\b"),
        ("\x1b[2Jgone\x07", "\\x1b[2Jgone\\x07"),
        ("a\r\nb\tc\x7f\x9b", "a\\r\\nb\\tc\\x7f\\x9b"),
        ("\u202etxt.exe\u2066\u200f\ufeff", "\\u202etxt.exe\\u2066\\u200f\\ufeff"),
        ("a\u2028b", "a\\u2028b"),
        ("\udcff", "\\udcff"),
        ("", ""),
    ],
)
def test_what_would_steer_a_terminal_is_escaped_and_words_are_not(text, shown):
    assert printable(text) == shown


def test_a_message_with_a_strange_name_stays_on_its_line():
    record = logging.LogRecord("ssfnas", logging.WARNING, "", 0, "%s: odd", ("a\n\x1b[31mb",), None)
    assert _Formatter().format(record) == "ssfnas: warning: a\\n\\x1b[31mb: odd"
