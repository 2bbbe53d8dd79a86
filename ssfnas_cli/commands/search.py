"""`ssfnas search`: from a data set to a run folder with alphas and a genotype."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer

from ssfnas_cli import stop
from ssfnas_cli.commands import closing, common
from ssfnas_cli.commands.training import Flags, with_training_flags
from ssfnas_cli.settings import SearchSettings


@with_training_flags(SearchSettings)
def command(
    data: Annotated[
        str | None,
        typer.Option(
            help="Data set folder that make-dataset made; without it the embedded digits.", show_default=False
        ),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="The search strategy: gradient, progressive, random, evolution, reinforce, or a plugin's.",
            autocompletion=common.names_of("strategy"),
            show_default="gradient",
        ),
    ] = None,
    relax: Annotated[
        str | None,
        typer.Option(
            help="How alphas become mixing weights: softmax (DARTS), sigmoid (FairDARTS), gumbel (GDAS, DSNAS), "
            "dirichlet (DrNAS), or a plugin's.",
            autocompletion=common.names_of("relaxation"),
            show_default="softmax",
        ),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            help="Training objective: ce (cross-entropy), ldam, … (supervised), barlow (Barlow Twins), vicreg, … "
            "(self-supervised: they need no labels); see 'ssfnas plugins'.",
            autocompletion=common.names_of("loss"),
            show_default="ce",
        ),
    ] = None,
    order: Annotated[int | None, typer.Option(help="1, or 2 for DARTS's second order.", show_default="1")] = None,
    init_from: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="A finished search, on balanced images perhaps, whose supernet this one begins with.",
            show_default=False,
        ),
    ] = None,
    adapt: Annotated[
        str | None,
        typer.Option(
            help="With --init-from, what learns beside the architecture: all weights, head (a new head on the frozen "
            "backbone) or none.",
            autocompletion=common.one_of(("all", "head", "none")),
            show_default="all",
        ),
    ] = None,
    *,
    flags: Flags,
) -> None:
    """Search an architecture: the same command on the same folder goes on where it stopped.

    With --data the preset is 'standard', without it 'quick'. 'ssfnas --help' explains the words.
    """
    own = {"data": data, "strategy": strategy, "relax": relax, "loss": loss, "order": order}
    own |= {"init_from": init_from, "adapt": adapt}
    settings, preset = flags.load(SearchSettings, own, lambda named: "standard" if named else "quick")

    def search() -> dict[str, Any]:
        from ssfnas_cli.engine.search import run_search

        return run_search(settings, flags.output, flags.force)

    def predict() -> dict[str, Any]:
        with stop.interruptible():  # for torch
            from ssfnas_cli.engine.dry_run import predict_search
        return predict_search(settings, flags.output, flags.force)

    flags.run(settings, settings.data, search, predict, partial(closing.say_search_is_done, preset))
