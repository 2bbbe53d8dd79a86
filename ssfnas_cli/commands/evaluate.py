"""`ssfnas evaluate`: from a retrained run to metrics."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssfnas_cli.artifacts.files import dump_json
from ssfnas_cli.commands import common, references
from ssfnas_cli.console import box_style, emit, is_stream, set_verbosity

if TYPE_CHECKING:
    from rich.console import Console


def command(
    run: Annotated[str, typer.Argument(help="Retrain run folder, or - for what retrain printed.")],
    data: Annotated[str | None, typer.Option(help="Data set folder.", show_default="the run's")] = None,
    other_data: common.OtherData = False,
    split: Annotated[
        list[str] | None, typer.Option(help="val, test, test_longtail; repeatable.", show_default="all")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Metrics file; default: stdout.")] = None,
    device: common.DeviceName = None,
    threads: common.Threads = None,
    force: common.Force = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    json: common.Json = False,
) -> None:
    """Evaluate a retrained network: accuracy by class and group, balanced accuracy, F1, calibration, confusion."""
    set_verbosity(quiet, verbose)
    references.refuse_existing(output, force)
    folder = references.run(run, "retrain")
    from ssfnas_cli.engine.device import Device
    from ssfnas_cli.engine.evaluate import evaluate_run

    metrics = evaluate_run(folder, data or "", split or [], Device(device or "auto", threads or 0), other_data)
    if output is not None and not is_stream(output):
        references.write_output(output, dump_json(metrics), force)
    else:
        emit(metrics, json or output is not None, _show(metrics))


def _show(metrics: dict[str, Any]) -> Callable[[Console], None]:
    def show(console: Console) -> None:
        from rich.table import Table

        table = Table(title=metrics["run"], box=box_style(), title_justify="left")
        table.add_column("percent")
        splits = metrics["splits"]
        for name in splits:
            table.add_column(name, justify="right")

        def row(label: str, pick: Callable[[dict[str, Any]], float | None], style: str = "") -> None:
            values = [pick(split) for split in splits.values()]
            table.add_row(label, *("-" if value is None else f"{value:.2f}" for value in values), style=style)

        row("top-1", lambda split: split["top1"], "bold")
        row("balanced accuracy", lambda split: split["balanced_accuracy"])
        row("macro F1", lambda split: 100 * split["macro_f1"])
        row("calibration error", lambda split: 100 * split["ece"])
        first = next(iter(splits.values()))
        for kind in ("groups_by_count", "groups_by_thirds"):
            for group, facts in first[kind].items():
                if facts["classes"]:
                    row(f"{group} ({len(facts['classes'])} classes)", partial(_group, kind, group))
        for name in first["per_class"]:
            row(f"  {name}", partial(_class, name), "dim")
        console.print(table)

    return show


def _group(kind: str, group: str, split: dict[str, Any]) -> float | None:
    return split[kind][group]["accuracy"]


def _class(name: str, split: dict[str, Any]) -> float | None:
    return split["per_class"][name]
