"""The reference of the commands, from the application's own parser."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Any

import typer

from generator.markdown import code, table, text
from ssfnas_cli import errors
from ssfnas_cli.main import app

REPORTED = {  # the exit codes that no error has
    0: "The command has done what it was asked for.",
    1: "This is a bug in ssfnas, or in a plugin.",
    130: "The run was interrupted (Ctrl-C), and the same command resumes it.",
}


@functools.cache
def parsers() -> dict[str, Any]:
    """The parser of every command, by name, in the order of the help."""
    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def overview() -> str:
    """A table of all commands."""
    rows = [[f"[{code(name)}](#{name})", text(_first_line(parser))] for name, parser in parsers().items()]
    return table(["command", "what it does"], rows)


def details() -> str:
    """A section for every command, with its arguments and its flags."""
    return "\n".join(_section(name, parser) for name, parser in parsers().items())


def exit_codes() -> str:
    """A table of the exit codes."""
    meanings = dict(REPORTED)
    for name, error in inspect.getmembers(errors, inspect.isclass):
        if issubclass(error, errors.SsfnasError) and "exit_code" in vars(error) and name != "SsfnasError":
            meanings[error.exit_code] = inspect.cleandoc(error.__doc__ or "").partition(".")[0] + "."
    return table(["exit code", "what it means"], [[str(number), meanings[number]] for number in sorted(meanings)])


def flags_by_name(command: str) -> dict[str, str]:
    """The flag of each parameter of a command."""
    return {one.name: max(one.opts, key=len) for one in parsers()[command].params if one.param_type_name == "option"}


def _section(name: str, parser: Any) -> str:
    arguments = [one for one in parser.params if one.param_type_name == "argument"]
    options = [one for one in parser.params if one.param_type_name == "option" and not one.hidden]
    usage = " ".join(["ssfnas", name, *map(_argument_name, arguments), "[OPTIONS]"])
    paragraphs = [text(" ".join(part.split())) for part in inspect.cleandoc(parser.help or "").split("\n\n")]
    tables = [
        table(["argument", "what it is"], [[code(_argument_name(one)), text(one.help or "")] for one in arguments]),
        table(["flag", "what it does", "default"], map(_option_row, options)),
    ]
    return "\n\n".join([f"## {name}", code(usage), *paragraphs, *filter(None, tables)]) + "\n"


def _argument_name(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    many = "..." if argument.nargs == -1 and not name.endswith("...") else ""
    return f"{name}{many}" if argument.required else f"[{name}{many}]"


def _option_row(option: Any) -> list[str]:
    value = "" if option.is_flag else f" {option.metavar or _value_name(option)}"
    names = [*sorted(option.opts, key=len, reverse=True), *option.secondary_opts]
    return [", ".join(code(name + value) for name in names), text(option.help), _default(option)]


def _value_name(option: Any) -> str:
    kinds = {int: "NUMBER", float: "NUMBER", Path: "PATH"}
    return kinds.get(getattr(option.type_descriptor, "annotation", None), "VALUE")


def _default(option: Any) -> str:
    if isinstance(option.show_default, str):
        return text(option.show_default)
    if option.is_flag or option.default in (None, [], ()):
        return ""
    return code(option.default)


def _first_line(parser: Any) -> str:
    return inspect.cleandoc(parser.help or "").partition("\n")[0]
