"""`ssfnas adjust`: from a finished retraining to the same network, corrected for the long tail without retraining."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssfnas_cli import stop
from ssfnas_cli.commands import closing, common, inputs
from ssfnas_cli.console import emit, set_verbosity
from ssfnas_cli.settings import ADJUST_METHODS, AdjustSettings, load_settings, read_configs, refuse_useless

if TYPE_CHECKING:
    from rich.console import Console


def command(
    run: Annotated[str, typer.Argument(help="Retrain run folder, or - for what retrain printed.")],
    method: Annotated[
        str | None,
        typer.Option(
            help="logit (z - tau log prior), tau-norm (class vectors over their norm to the power of tau), crt (a new "
            "classifier on frozen features), lws (a learned factor for each class) or temperature.",
            autocompletion=common.one_of(ADJUST_METHODS),
            show_default="logit",
        ),
    ] = None,
    tau: Annotated[
        str | None,
        typer.Option(
            help="Of logit and tau-norm: a number, or auto for the best balanced accuracy on images that are held out.",
            show_default="1",
        ),
    ] = None,
    from_prior: Annotated[
        str | None,
        typer.Option(
            metavar="train|uniform|FILE",
            help="Of logit and temperature: the class shares that the outputs hold; a file holds counts as JSON.",
            show_default="as the run records",
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Of crt and lws: passes over the images.", show_default="10")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Of crt and lws: images a step.", show_default="the run's")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Of crt and lws: learning rate.", show_default="0.025")] = None,
    data: Annotated[str | None, typer.Option(help="Data set folder, if it moved.", show_default="the run's")] = None,
    output: common.RunOutput = None,
    configs: common.Configs = None,
    sets: common.Set = None,
    show_settings: common.ShowSettings = False,
    device: common.DeviceName = None,
    threads: common.Threads = None,
    workers: common.Workers = None,
    max_time: common.MaxTime = None,
    force: common.Force = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    json: common.Json = False,
) -> None:
    """Correct a trained network for the long tail in minutes; the result is a run folder that 'evaluate' reads.

    What has to be chosen is chosen on val, or on what retrain --set holdout=0.1 set aside: never on a test split.
    """
    stop.install_handlers()
    set_verbosity(quiet, verbose)
    flags = common.flags_of(AdjustSettings, locals())
    settings = load_settings(AdjustSettings, configs=read_configs(configs), sets=sets or (), flags=flags)
    refuse_useless(settings)
    if show_settings:
        common.show_settings(settings)
        return
    with stop.interruptible():
        folder = inputs.open_run(run, "retrain", ["ssfnas_cli.engine.adjust"])
        from ssfnas_cli.engine.adjust import run_adjust
    result = run_adjust(folder, settings, output, force)
    emit(result, json, lambda console: _show(console, result))
    closing.say_next("evaluate", result["path"])


def _show(console: Console, result: dict[str, Any]) -> None:
    """A line for each entry; the curve of a choice is for programs."""
    for key, value in result.items():
        if key == "choice":
            value = None if value is None else f"by {value['criterion'].replace('_', ' ')} on {value['split']}"
        if value is not None:
            console.print(f"{key:>28}  {value}", soft_wrap=True)
