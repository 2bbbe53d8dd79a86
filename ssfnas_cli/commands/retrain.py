"""`ssfnas retrain`: from a genotype to a trained network."""

from __future__ import annotations

from typing import Annotated

import typer

from ssfnas_cli import stop
from ssfnas_cli.commands import common, references
from ssfnas_cli.console import emit, set_verbosity
from ssfnas_cli.settings import RetrainSettings


def command(
    genotype: Annotated[str, typer.Argument(help="Genotype file, or - for a pipe.")],
    data: Annotated[str | None, typer.Option(help="Data set folder.", show_default="the genotype's")] = None,
    other_data: common.OtherData = False,
    loss: Annotated[
        str | None,
        typer.Option(help="Supervised objective.", autocompletion=common.names_of("loss"), show_default="ce"),
    ] = None,
    pretrain: Annotated[
        str | None,
        typer.Option(
            help="Self-supervised objective to pretrain with, e.g. barlow.",
            autocompletion=common.names_of("loss"),
            show_default="none",
        ),
    ] = None,
    pretrain_epochs: Annotated[
        int | None, common.by_preset(RetrainSettings, "pretrain_epochs", "Passes of the pretraining.")
    ] = None,
    epochs: Annotated[
        int | None, common.by_preset(RetrainSettings, "epochs", "Passes over the training split.")
    ] = None,
    batch_size: Annotated[int | None, common.by_preset(RetrainSettings, "batch_size", "Images a step.")] = None,
    channels: Annotated[int | None, common.by_preset(RetrainSettings, "channels", "Width of the first cells.")] = None,
    layers: Annotated[int | None, common.by_preset(RetrainSettings, "layers", "Number of cells.")] = None,
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
    """Retrain the network of a genotype, after a self-supervised pretraining where asked.

    The preset is 'quick' on the embedded digits, otherwise 'paper'.
    """
    stop.install_handlers()
    set_verbosity(quiet, verbose)
    flags = common.flags_of(RetrainSettings, locals())
    with stop.waiting():
        parsed = references.genotype(genotype)
    from ssfnas_cli.data.embedded import is_embedded

    default = lambda named: "quick" if is_embedded(named, parsed.provenance.data) else "paper"
    settings = common.training_settings(RetrainSettings, flags, config, sets, preset, default)
    if show_settings:
        common.show_settings(settings)
        return
    common.warn_of_busy_cores(settings.threads)
    from ssfnas_cli.engine.retrain import run_retrain

    emit(run_retrain(parsed, settings, output, force, other_data), json)
