"""`ssfnas search`: from a data set to a run folder with alphas and a genotype."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssfnas_cli import stop
from ssfnas_cli.commands import common
from ssfnas_cli.console import box_style, emit, set_verbosity
from ssfnas_cli.settings import SearchSettings

if TYPE_CHECKING:
    from rich.console import Console


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
    epochs: Annotated[int | None, common.by_preset(SearchSettings, "epochs", "Passes over the training half.")] = None,
    batch_size: Annotated[int | None, common.by_preset(SearchSettings, "batch_size", "Images a step.")] = None,
    channels: Annotated[int | None, common.by_preset(SearchSettings, "channels", "Width of the first cells.")] = None,
    layers: Annotated[int | None, common.by_preset(SearchSettings, "layers", "Number of cells.")] = None,
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
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Take a few steps, predict time, memory and disk, and write no run folder.",
            rich_help_panel=common.RUN_PANEL,
        ),
    ] = False,
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
    common.warn_of_busy_cores(settings.threads)
    if dry_run:
        _dry_run(settings, output, force, json)
        return
    from ssfnas_cli.engine.search import run_search

    emit(run_search(settings, output, force), json)


def _dry_run(settings: SearchSettings, output: Path | None, force: bool, as_json: bool) -> None:
    with stop.waiting():  # for torch
        from ssfnas_cli.engine.dry_run import dry_run
    facts = dry_run(settings, output, force)
    emit(facts, as_json, lambda console: _show(console, facts))


def _show(console: Console, facts: dict[str, Any]) -> None:
    from rich.table import Table

    from ssfnas_cli.engine.progress import clock

    slowest, evaluation = facts["step_seconds_range"][1], f"{facts['evaluation_seconds']:.1f} s evaluation"
    rows = {
        "a step": f"{facts['step_seconds']:.3f} s (median of {facts['timed_steps']}; at most {slowest:.3f} s)",
        "an epoch": f"{clock(facts['epoch_seconds'])} ({facts['steps_per_epoch']} steps, {evaluation})",
        "the search": f"{clock(facts['search_seconds'])} ({facts['epochs']} epochs)",
        "peak memory": f"{facts['peak_memory_bytes'] / 2**20:,.0f} MB",
        "weights": f"{facts['num_params']:,}",
        "disk": f"{facts['disk_bytes'] / 2**20:,.1f} MB (a checkpoint {facts['checkpoint_bytes'] / 2**20:,.1f} MB)",
        "computed by": f"{facts['computed_by']} ({facts['device']}, {facts['threads']} threads, {facts['kernels']})",
        "run folder": f"{facts['path']} (not written)",
    }
    table = Table(box=box_style(), show_header=False)
    for name, text in rows.items():
        table.add_row(name, text)
    console.print(table)
