"""`ssfnas search`: from a data set to a run folder with alphas and a genotype."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ssfnas_cli import stop
from ssfnas_cli.commands import common
from ssfnas_cli.console import emit, set_verbosity
from ssfnas_cli.settings import SearchSettings


def command(
    data: Annotated[
        str | None, typer.Option(help="Data set folder; without it the embedded digits.", show_default=False)
    ] = None,
    relax: Annotated[
        str | None,
        typer.Option(
            help="Relaxation of the architecture: softmax (DARTS), sigmoid (FairDARTS), or a plugin's.",
            autocompletion=common.names_of("relaxation"),
            show_default="softmax",
        ),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            help="Training objective: ce, barlow, or a plugin's.",
            autocompletion=common.names_of("loss"),
            show_default="ce",
        ),
    ] = None,
    order: Annotated[int | None, typer.Option(help="1, or 2 for DARTS's second order.", show_default="1")] = None,
    epochs: Annotated[int | None, typer.Option(show_default=False)] = None,
    batch_size: Annotated[int | None, typer.Option(show_default=False)] = None,
    channels: Annotated[int | None, typer.Option(help="Width of the first cells.", show_default=False)] = None,
    layers: Annotated[int | None, typer.Option(help="Number of cells.", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(show_default="0")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Run folder; default: named after the settings, in runs/."),
    ] = None,
    preset: common.Preset = None,
    config: common.Config = None,
    sets: common.Set = None,
    show_settings: common.ShowSettings = False,
    device: common.DeviceName = None,
    threads: common.Threads = None,
    workers: common.Workers = None,
    precision: common.Precision = None,
    max_time: common.MaxTime = None,
    force: common.Force = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    json: common.Json = False,
) -> None:
    """Search an architecture: the same command on the same folder goes on where it stopped.

    With --data the preset is 'paper', without it 'quick'.
    """
    stop.install_handlers()
    set_verbosity(quiet, verbose)
    flags = common.flags_of(SearchSettings, locals())
    if preset is None:  # a data set may be named by a flag, --set or --config
        named = common.settings_from(SearchSettings, flags, config=config, sets=sets).data
        preset = "paper" if named else "quick"
    settings = common.settings_from(SearchSettings, flags, preset=preset, config=config, sets=sets)
    if show_settings:
        common.show_settings(settings)
        return
    from ssfnas_cli.engine.search import run_search

    emit(run_search(settings, output, force), json)
