"""`ssfnas evaluate`: from a retrained run to metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ssfnas_cli import stop, world
from ssfnas_cli.artifacts.metrics import split_off_tables
from ssfnas_cli.artifacts.predictions import Predicted, check_suffix, write_predictions
from ssfnas_cli.commands import closing, common, inputs, outputs
from ssfnas_cli.commands.metrics_table import show_metrics
from ssfnas_cli.console import emit, is_stream, log, set_verbosity
from ssfnas_cli.json_text import layout_json


def command(
    run: Annotated[str, typer.Argument(help="Retrain or adjust run folder, or - for what either printed.")],
    data: Annotated[str | None, typer.Option(help="Data set folder.", show_default="the run's")] = None,
    other_data: common.OtherData = False,
    split: Annotated[
        list[str] | None,
        typer.Option(help="train, val, test or test_longtail; repeatable.", show_default="all but train"),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Metrics file; default: stdout.")] = None,
    save_predictions: Annotated[
        Path | None,
        typer.Option(
            help="FILE.safetensors or .csv for the logits of every image, for metrics of one's own.", show_default=False
        ),
    ] = None,
    device: common.DeviceName = None,
    threads: common.Threads = None,
    precision: common.Precision = None,
    force: common.Force = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    json: common.Json = False,
) -> None:
    """Evaluate a retrained network: accuracy by class and group, balanced accuracy, F1, calibration, confusion.

    The confusion matrix of more than 100 classes goes into a CSV file of its own, in the run folder and beside -o FILE.
    """
    stop.install_handlers()
    set_verbosity(quiet, verbose)
    if save_predictions is not None:
        check_suffix(save_predictions, "--save-predictions")
        outputs.refuse_existing(save_predictions, force, "--save-predictions")
    outputs.refuse_existing(output, force)

    def save(class_names: Sequence[str], splits: Mapping[str, Predicted]) -> None:
        if save_predictions is not None:
            with outputs.new_file(save_predictions, force, "--save-predictions") as temporary:
                write_predictions(temporary, class_names, splits)

    with stop.interruptible("before the end; no metrics are written"):
        folder = inputs.open_run(run, "retrain", ["ssfnas_cli.engine.evaluate"])
        from ssfnas_cli.engine.device import Device
        from ssfnas_cli.engine.evaluate import evaluate_run

        place = Device.for_evaluation(device, threads, precision)
        metrics = evaluate_run(folder, data or "", split or [], place, other_data, save)
    if not world.is_first():
        return
    if output is not None and not is_stream(output):
        _write(metrics, output, force)
    else:
        kept, _ = split_off_tables(metrics, Path(metrics["kept_in"]) if "kept_in" in metrics else None)
        if any(facts.get("confusion_file", "") is None for facts in kept["splits"].values()):
            log.warning("the confusion matrix of so many classes is not printed: -o FILE writes it beside FILE")
        emit(kept, json or output is not None, show_metrics(metrics))
    closing.say_what_metrics_mean(metrics)


def _write(metrics: dict[str, Any], output: Path, force: bool) -> None:
    """The metrics into a file, and large confusion matrices beside it."""
    kept, tables = split_off_tables(metrics, output)
    for table in tables:
        outputs.refuse_existing(table, force)
    for table, data in tables.items():
        outputs.write_output(table, data, force)
    outputs.write_output(output, f"{layout_json(kept)}\n".encode(), force)
