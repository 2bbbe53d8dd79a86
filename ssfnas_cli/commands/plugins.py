"""`ssfnas plugins`: what can be named in flags and settings, with its options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from registry import REGISTRIES, PluginError
from registry.core import did_you_mean
from ssfnas_cli.commands import common
from ssfnas_cli.console import box_style, emit, set_verbosity
from ssfnas_cli.errors import UsageError

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from rich.console import Console


def command(
    kind: Annotated[
        str | None, typer.Option(help="op, relaxation, loss, head, sampler, network, …", show_default="all")
    ] = None,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    json: common.Json = False,
) -> None:
    """List every plugin with its options and where it came from; broken ones say why."""
    set_verbosity(quiet, verbose)
    if kind is not None and kind not in REGISTRIES:
        raise UsageError(
            f"--kind {kind}: unknown.{did_you_mean(kind, list(REGISTRIES))} Known: {', '.join(REGISTRIES)}"
        )
    entries = [
        describe_plugin(one, name) for one in ([kind] if kind else REGISTRIES) for name in REGISTRIES[one].names()
    ]
    emit({"kind": "plugins", "plugins": entries}, json, lambda console: _show(console, entries))


def describe_plugin(kind: str, name: str) -> dict[str, Any]:
    """What is known of a plugin, its options with their defaults included; of a broken one, why it is broken."""
    registry = REGISTRIES[kind]
    entry: dict[str, Any] = {"kind": kind, "name": name}
    try:
        plugin = registry.get(name)
    except PluginError as error:
        return entry | {"error": str(error)}
    options = {
        field.alias or key: {"default": _default(field), "description": field.description or ""}
        for key, field in plugin.options.model_fields.items()
    }
    entry |= {"origin": plugin.origin, "summary": plugin.summary, "options": options}
    clash = registry.clashes().get(name)
    return entry | ({"warning": clash} if clash else {})


def _default(field: FieldInfo) -> Any:
    """What an option is if it is not given, as JSON has it."""
    from pydantic_core import to_jsonable_python

    return to_jsonable_python(field.get_default(call_default_factory=True), fallback=str)


def _show(console: Console, entries: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(box=box_style())
    for column in ("kind", "name", "from", "what it is, and its options"):
        table.add_column(column, overflow="fold")
    for entry in entries:
        lines = [entry.get("summary") or entry.get("error", "")]
        lines += [entry["warning"]] if "warning" in entry else []
        lines += [f"  {key} = {o['default']}: {o['description']}" for key, o in entry.get("options", {}).items()]
        table.add_row(entry["kind"], entry["name"], entry.get("origin", "broken"), "\n".join(lines))
    console.print(table)
