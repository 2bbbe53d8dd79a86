"""`ssfnas search`: from a data set to a run folder with alphas and a genotype."""

from __future__ import annotations

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
    epochs: common.Epochs = None,
    batch_size: common.BatchSize = None,
    channels: common.Channels = None,
    layers: common.Layers = None,
    seed: common.Seed = None,
    output: common.RunOutput = None,
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
    default = lambda named: "paper" if named else "quick"
    settings = common.training_settings(SearchSettings, flags, config, sets, preset, default)
    if show_settings:
        common.show_settings(settings)
        return
    from ssfnas_cli.engine.search import run_search

    emit(run_search(settings, output, force), json)
