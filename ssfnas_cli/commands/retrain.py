"""`ssfnas retrain`: from a genotype, or from the name of a plain network, to a trained network."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer

from ssfnas_cli import stop
from ssfnas_cli.commands import closing, common, inputs
from ssfnas_cli.commands.training import Flags, with_training_flags
from ssfnas_cli.settings import RetrainSettings


@with_training_flags(RetrainSettings)
def command(
    network: Annotated[
        str,
        typer.Argument(
            metavar="GENOTYPE",
            help="Genotype file (a search leaves one in its run folder), - for a pipe, or a name: resnet32, "
            "mobilenet_v2, DARTS_V2, random-3, …",
            autocompletion=inputs.network_names,
        ),
    ],
    data: Annotated[str | None, typer.Option(help="Data set folder.", show_default="the genotype's")] = None,
    other_data: common.OtherData = False,
    loss: Annotated[
        str | None,
        typer.Option(
            help="Supervised objective: ce (cross-entropy), or a plugin's.",
            autocompletion=common.names_of("loss"),
            show_default="ce",
        ),
    ] = None,
    pretrain: Annotated[
        str | None,
        typer.Option(
            help="Self-supervised objective (learned without labels) to pretrain with, e.g. barlow.",
            autocompletion=common.names_of("loss"),
            show_default="none",
        ),
    ] = None,
    pretrain_epochs: Annotated[
        int | None, common.by_preset(RetrainSettings, "pretrain_epochs", "Passes of the pretraining.")
    ] = None,
    init_from: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="A finished search, whose supernet's weights the network begins with where their shapes fit.",
            show_default=False,
        ),
    ] = None,
    *,
    flags: Flags,
) -> None:
    """Retrain the network of a genotype, or train a plain one, after a self-supervised pretraining if asked.

    The preset is 'quick' on the embedded digits, otherwise 'standard'.
    """
    with stop.interruptible():
        genotype, name = inputs.read_network(network, ["ssfnas_cli.engine.retrain", "torch._dynamo"])
    from ssfnas_cli.data.embedded import is_embedded

    recorded = None if genotype is None else genotype.provenance.data
    fixed = {} if name is None else {key: f"'{name}' has its own; leave it out" for key in RetrainSettings.OF_CELLS}
    own = {"data": data, "network": name, "loss": loss, "pretrain": pretrain, "pretrain_epochs": pretrain_epochs}
    own["init_from"] = init_from
    settings, preset = flags.load(
        RetrainSettings, own, lambda named: "quick" if is_embedded(named, recorded) else "standard", fixed=fixed
    )

    def retrain() -> dict[str, Any]:
        from ssfnas_cli.engine.retrain import run_retrain

        return run_retrain(genotype, settings, flags.output, flags.force, other_data)

    def predict() -> dict[str, Any]:
        with stop.interruptible():  # for torch
            from ssfnas_cli.engine.dry_run import predict_retrain
        return predict_retrain(genotype, settings, flags.output, flags.force, other_data)

    close = partial(closing.say_retraining_is_done, preset)
    flags.run(settings, settings.data or recorded, retrain, predict, close)
