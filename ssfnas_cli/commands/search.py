"""`ssfnas search`: from a data set to a run folder with alphas and a genotype."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer

from ssfnas_cli import stop
from ssfnas_cli.commands import closing, common
from ssfnas_cli.commands.training import Flags, with_training_flags
from ssfnas_cli.settings import SearchSettings

OF_COST = "Cost of the derived network"


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
    cost: Annotated[
        str | None,
        typer.Option(
            help="What the search minds of the derived network beside its accuracy: params, macs (multiply-adds) or "
            "latency (by a table that 'ssfnas latency' makes).",
            autocompletion=common.one_of(("params", "macs", "latency")),
            show_default="none",
            rich_help_panel=OF_COST,
        ),
    ] = None,
    cost_target: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER",
            help="What to reach: 300M, 0.3G, 3e8; a latency in ms. Of candidates (random, evolution, …) the most.",
            show_default="the cheaper the better",
            rich_help_panel=OF_COST,
        ),
    ] = None,
    cost_channels: Annotated[
        int | None,
        typer.Option(
            help="Width of the first cells of the network that is meant.", show_default="36", rich_help_panel=OF_COST
        ),
    ] = None,
    cost_layers: Annotated[
        int | None, typer.Option(help="Number of its cells.", show_default="20", rich_help_panel=OF_COST)
    ] = None,
    cost_table: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="With --cost latency: a table of 'ssfnas latency', of another device perhaps.",
            show_default="this machine's, made on first use",
            rich_help_panel=OF_COST,
        ),
    ] = None,
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
    own |= {"init_from": init_from, "adapt": adapt, "cost": cost, "cost_target": cost_target}
    own |= {"cost_channels": cost_channels, "cost_layers": cost_layers, "cost_table": cost_table}
    settings, preset = flags.load(SearchSettings, own, lambda named: "standard" if named else "quick")

    def search() -> dict[str, Any]:
        from ssfnas_cli.engine.search import run_search

        return run_search(settings, flags.output, flags.force)

    def predict() -> dict[str, Any]:
        with stop.interruptible():  # for torch
            from ssfnas_cli.engine.dry_run import predict_search
        return predict_search(settings, flags.output, flags.force)

    flags.run(settings, settings.data, search, predict, partial(closing.say_search_is_done, preset))
