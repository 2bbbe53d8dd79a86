"""`ssfnas latency`: a table of how long each part of a derived network takes on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssfnas_cli.commands import common, describe, outputs
from ssfnas_cli.console import box_style, emit, is_stream, set_verbosity
from ssfnas_cli.errors import UsageError
from ssfnas_cli.settings import PAPER_OPS, SearchSettings, load_settings

if TYPE_CHECKING:
    from rich.console import Console


def command(
    channels: Annotated[
        int, typer.Option(min=2, max=65_536, help="Width of the first cells of the network that is meant.")
    ] = 36,
    layers: Annotated[int, typer.Option(min=1, max=1000, help="Number of its cells.")] = 20,
    stem: Annotated[str, typer.Option(help=common.STEM_HELP)] = "auto",
    data: Annotated[
        Path | None,
        typer.Option(help="Data set folder, for classes, side and channels of the images.", show_default=False),
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option(min=1, max=10**6, help="Number of classes.", show_default="the data's, or 10")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=8, max=65_536, help="Side in pixels.", show_default="the data's, or 32")
    ] = None,
    in_channels: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="3 for colour, 1 for grey.", show_default="the data's, or 3"),
    ] = None,
    ops: Annotated[str, typer.Option(help="The candidate ops, with commas.", show_default="the paper's")] = "",
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="An option of an op: op_options.OP.KEY=VALUE; repeatable."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=1_000_000, help="Images at a time.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, max=100_000, help="Measurements of a part; the median counts.")] = 20,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A copy of the table, for --cost-table elsewhere; - is stdout."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Measure what the table has already, too; an old output is moved aside.")
    ] = False,
    device: common.DeviceName = None,
    threads: common.Threads = None,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    json: common.Json = False,
) -> None:
    """Measure how long each candidate op and the other parts of a derived network take here, for --cost latency.

    What the cache has of this device, these threads and this batch is not measured again.
    """
    set_verbosity(quiet, verbose)
    names = {"ops": ops or list(PAPER_OPS)}
    settings = load_settings(SearchSettings, sets=sets or (), flags=names)
    size: dict[str, Any] = {**describe.DEFAULTS, "channels": channels, "layers": layers, "stem": stem}
    if stem not in describe.STEMS:
        raise UsageError(f"--stem {stem}: should be one of {', '.join(describe.STEMS)}")
    outputs.refuse_existing(output, force)
    common.warn_of_busy_cores(threads or 0)
    if data is not None:
        from ssfnas_cli.artifacts.dataset import DataSet

        size |= DataSet.open(data, splits=()).network_facts
    given = {"num_classes": num_classes, "image_size": image_size, "in_channels": in_channels}
    size |= {name: value for name, value in given.items() if value is not None}
    from ssfnas_cli.engine.device import Device
    from ssfnas_cli.engine.latency import LatencyTable
    from ssfnas_cli.nets.parts import NetworkShape, Space
    from ssfnas_cli.nets.stems import choose_stem

    size["stem"], _ = choose_stem(size["stem"], size["image_size"])
    settings = settings.resolve_plugins()
    space = Space(NetworkShape(**size), settings.ops, settings.op_options)
    place = Device(device or "auto", threads or 0).torch
    table, measured = LatencyTable.measured(space.parts(), place, batch, repeats, force)
    if output is not None:
        outputs.write_output(output, table.file.to_json(), force)
        if is_stream(output):
            return
    wanted = set(space.parts())
    kept = [entry for part, entry in table.entries() if part in wanted]
    facts = {
        **{"kind": "latency", "path": str(table.where), **table.file.conditions.model_dump()},
        **{"measured": measured, "known": len(wanted) - measured, **size},
        "parts": [entry.model_dump(mode="json") for entry in kept],
    }
    emit(facts, json, lambda console: _show(console, facts))


def _show(console: Console, facts: Mapping[str, Any]) -> None:
    """A row for each part, a column for each shape of an op."""
    from rich.table import Table

    named = f"{facts['device']}, {facts['threads']} threads, batch {facts['batch']}; ms, medians"
    console.print(
        f"{facts['path']}: {facts['measured']} parts measured, {facts['known']} known ({named})", soft_wrap=True
    )
    ops = [part for part in facts["parts"] if part["kind"] == "op"]
    shapes = list(dict.fromkeys((one["in_channels"], one["side"], one["stride"]) for one in ops))
    table = Table(box=box_style())
    for title in ("op", *(f"{channels} at {side}{', /2' * (stride > 1)}" for channels, side, stride in shapes)):
        table.add_column(title, justify="left" if title == "op" else "right")
    times = {(one["name"], one["in_channels"], one["side"], one["stride"]): one["ms"] for one in ops}
    for name in dict.fromkeys(one["name"] for one in ops):
        table.add_row(name, *(f"{times[name, *shape]:.3f}" for shape in shapes))
    console.print(table)
    for part in facts["parts"]:
        if part["kind"] != "op":
            shape = f"{part['in_channels']} to {part['out_channels']} channels at {part['side']}"
            console.print(f"{part['ms']:>9.3f}  {part['kind']} {part['name']} {shape}", soft_wrap=True)
