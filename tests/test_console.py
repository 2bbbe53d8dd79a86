"""What a terminal is shown, and the words that several commands share."""

import io

import pytest

from ssfnas_cli import console


def shown(text, width=60):
    stream = io.StringIO()
    page = console.plain_console(stream)
    page.width = width
    page.print(text, soft_wrap=True)
    return stream.getvalue().rstrip("\n")


@pytest.mark.parametrize("text", ["dog [old]", "[red]cat", "x[/y]", "[/]", ":car:", "\\[bold]", "日本 é"])
def test_text_is_shown_as_it_is(text):
    assert shown(text) == text


def test_tables_show_titles_headers_and_cells_as_they_are():
    from rich.table import Table

    table = Table("[bold]head", title="x[/y]")
    table.add_row("[red]cat")
    text = shown(table)
    assert all(part in text for part in ("[bold]head", "x[/y]", "[red]cat"))


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\tb\x07\x7f\x85", "a\\tb\\x07\\x7f\\x85"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\u2066\u200f", "\\u2066\\u200f"),
        ("Größe 日本", "Größe 日本"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped_and_no_other_letter(text, escaped):
    assert console.printable(text) == escaped
    assert shown(text) == escaped


def test_the_command_line_can_be_typed_again(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/usr/bin/ssfnas", "search", "--data", "my data", "--set", "ops=none,a"])
    assert console.command_line() == "ssfnas search --data 'my data' --set ops=none,a"


@pytest.mark.parametrize(
    ("kind", "state", "command", "expected"),
    [
        ("search", "done", "", "ssfnas derive 'my run'"),
        ("retrain", "done", "ssfnas retrain g.json", "ssfnas evaluate 'my run'"),
        ("search", "stopped", "ssfnas search -o r", "ssfnas search -o r"),
        ("search", "interrupted", "", "run the same command again: it goes on"),
        ("search", "running", "", "wait"),
        ("search", "diverged", "", "try a lower '--set lr=' or '--set alpha_lr=', with --force or another -o"),
        ("retrain", "diverged", "", "try a lower '--set lr=', with --force or another -o"),
    ],
)
def test_the_next_step(kind, state, command, expected):
    assert console.next_step(kind, "my run", state, command) == expected


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_text_is_decoded_by_its_byte_order_mark(encoding):
    text = "a = 'é'"
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    assert console.decode_text((mark + text).encode(encoding)) == text
