"""`ssfnas derive`: from a search run to a genotype."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from registry import OPS
from ssfnas_cli import stop
from ssfnas_cli.artifacts.genotype import Genotype
from ssfnas_cli.commands import closing, common, inputs, outputs
from ssfnas_cli.console import is_stream, log, set_verbosity, write_bytes
from ssfnas_cli.errors import UsageError
from ssfnas_cli.settings import (
    PERTURBATION_RULE,
    PerturbationSettings,
    SearchSettings,
    load_settings,
    parse_amount,
    read_configs,
)

OF_PERTURBATION = "With --rule perturbation"
OF_SIZE = "To fit a size"


def _flag(text: str, default: str | bool = False, **more: Any) -> Any:
    """A flag of the rule that is a run of its own."""
    return typer.Option(help=text, show_default=default, rich_help_panel=OF_PERTURBATION, **more)


def command(
    run: Annotated[str, typer.Argument(help="Search run folder, or - for what search printed.")],
    rule: Annotated[
        str | None,
        typer.Option(
            help="darts, argmax, fairdarts, fairdarts-edge; or perturbation (DARTS-PT), which leaves ops out of the "
            "supernet, keeps those that are missed most, and tunes it in between: a run of its own.",
            show_default="the relaxation's",
        ),
    ] = None,
    threshold: Annotated[str, typer.Option(help="A number, or auto: 0.85, lowered where a node needs it.")] = "auto",
    epoch: Annotated[
        int | None, typer.Option(help="Which epoch's alphas; 0: the initial.", show_default="last")
    ] = None,
    max_skips: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="M",
            help="At most M skip connections in the normal cell: the weakest give way to what the rule keeps next.",
            show_default="any number",
        ),
    ] = None,
    candidate: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Of a search that judged candidates (random, evolution, …): the number of one, such as of its front.",
            show_default="the fittest",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Genotype file; default: stdout. With --rule perturbation the run folder; default: named after the "
            "settings, in runs/.",
        ),
    ] = None,
    force: common.Force = False,
    max_params: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER",
            help="The most weights: 3.5M, 3.5e6, … Ops are replaced or dropped so that the least mixing weight is "
            "lost; of judged candidates the fittest that fits is taken.",
            show_default=False,
            rich_help_panel=OF_SIZE,
        ),
    ] = None,
    max_macs: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER", help="The most multiply-adds: 300M, …", show_default=False, rich_help_panel=OF_SIZE
        ),
    ] = None,
    cost_channels: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=65_536,
            help="Width of the first cells of the network that is meant.",
            show_default="the search's, or 36",
            rich_help_panel=OF_SIZE,
        ),
    ] = None,
    cost_layers: Annotated[
        int | None,
        typer.Option(
            min=1, max=1000, help="Number of its cells.", show_default="the search's, or 20", rich_help_panel=OF_SIZE
        ),
    ] = None,
    epochs_between: Annotated[
        int | None, _flag("Epochs in which the supernet is tuned after each decision.", "5")
    ] = None,
    criterion: Annotated[
        str | None,
        _flag(
            "What an op is judged by on the alpha half: accuracy, balanced_accuracy or loss.",
            "accuracy",
            autocompletion=common.one_of(("accuracy", "balanced_accuracy", "loss")),
        ),
    ] = None,
    data: Annotated[str | None, _flag("Data set folder, if it moved.", "the run's")] = None,
    configs: common.Configs = None,
    sets: common.Set = None,
    show_settings: common.ShowSettings = False,
    device: common.DeviceName = None,
    threads: common.Threads = None,
    workers: common.Workers = None,
    max_time: common.MaxTime = None,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
) -> None:
    """Derive the genotype of a search run, from any of its epochs.

    All rules but perturbation read it off the alphas, in no time.
    """
    set_verbosity(quiet, verbose)
    value = _parse_threshold(threshold)
    flags = common.flags_of(PerturbationSettings, locals())
    of_size = {"cost_channels": cost_channels, "cost_layers": cost_layers}
    if rule == PERTURBATION_RULE:
        others = {"threshold": None if threshold == "auto" else threshold, "epoch": epoch, "candidate": candidate}
        others |= {"max_params": max_params, "max_macs": max_macs, **of_size, "max_skips": max_skips}
        _refuse_given(others, "is for the other rules")
        layers: dict[str, Any] = {"configs": read_configs(configs), "sets": sets or (), "flags": flags}
        _perturb(run, load_settings(PerturbationSettings, **layers), locals())
        return
    given = {**flags, "config": configs or None, "set": sets or None, "show-settings": show_settings or None}
    _refuse_given(given, "is for --rule perturbation")
    most = _amounts({"max_params": max_params, "max_macs": max_macs})
    if not most:
        _refuse_given(of_size, "is for --max-params and --max-macs")
    if cost_channels is not None and cost_channels % 2:
        raise UsageError(f"--cost-channels {cost_channels}: should be even, as the channels of every network")
    outputs.refuse_existing(output, force)
    folder = inputs.open_run(run, "search", ["ssfnas_cli.engine.derive_run"])
    from ssfnas_cli.engine.derive_run import derive_run
    from ssfnas_cli.engine.fit import Limits

    recorded = folder.settings(SearchSettings)
    size = cost_channels or recorded.cost_channels, cost_layers or recorded.cost_layers
    limits = Limits(most, *size) if most else None
    genotype = derive_run(folder, rule, value, epoch, max_skips, candidate, limits)
    _say_what_it_is(genotype, fitted=limits is not None)
    outputs.write_output(output, genotype.to_json(), force)
    if output is not None and not is_stream(output):
        closing.say_next("retrain", str(output))


def _amounts(given: Mapping[str, str | None]) -> dict[str, float]:
    """The limits that are given, by measure."""
    found = {}
    for name, text in given.items():
        if text is not None:
            try:
                value = parse_amount(text)
            except ValueError as error:
                raise UsageError(f"--{name.replace('_', '-')} {text}: {error}") from None
            if not isinstance(value, float) or value <= 0:
                raise UsageError(f"--{name.replace('_', '-')} {text}: should be above 0")
            found[name.removeprefix("max_")] = value
    return found


def _refuse_given(given: Mapping[str, Any], why: str) -> None:
    """Refuse a flag that there is no use for; None stands for one that was not given."""
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"--{name.replace('_', '-')}: {why}: leave it out")


def _perturb(run: str, settings: PerturbationSettings, given: Mapping[str, Any]) -> None:
    """Derive by perturbation: a run folder, and the genotype on stdout."""
    stop.install_handlers()
    output: Path | None = given["output"]
    if given["show_settings"]:
        common.show_settings(settings)
        return
    if output is not None and is_stream(output):
        raise UsageError(
            "--output -: with --rule perturbation it is a run folder, and stdout gets the genotype in any case"
        )
    common.warn_of_busy_cores(settings.threads)
    with stop.interruptible():
        folder = inputs.open_run(run, "search", ["ssfnas_cli.engine.derive_perturbation"])
        from ssfnas_cli.engine.derive_perturbation import derive_by_perturbation
    path, genotype = derive_by_perturbation(folder, settings, output, given["force"])
    _say_what_it_is(genotype)
    write_bytes(genotype.to_json())
    closing.say_next("retrain", str(path / "genotype.json"))


def _say_what_it_is(genotype: Genotype, fitted: bool = False) -> None:
    """What of the genotype cannot be built, and whether the search may have collapsed, or the limits are too tight."""
    for kind, cell in genotype.cells().items():
        live = cell.pruned()
        if live.dead_edges or live.dead_nodes:
            log.info("%s cell: %d edges from nodes without input will be pruned", kind, len(live.dead_edges))
    _warn_of_collapse(genotype, fitted)


def _warn_of_collapse(genotype: Genotype, fitted: bool) -> None:
    """Searches are known to end in skip connections (Chu et al., FairDARTS), and such a cell learns nothing."""
    empty = [
        f"{kind} cell ({', '.join(f'{name} {count}' for name, count in cell.op_counts().items())})"
        for kind, cell in genotype.cells().items()
        if all(OPS.get(name).facts.parameter_free for name in cell.op_counts())
    ]
    if empty:
        why = (
            "the network may learn little at this size; raise --max-params or --max-macs"
            if fitted
            else "the search may have collapsed; try another --epoch or a longer search"
        )
        log.warning("the ops of the %s have no weights: %s", " and of the ".join(empty), why)


def _parse_threshold(text: str) -> float | str:
    """Parse `auto` or a finite number."""
    if text == "auto":
        return text
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if value != value or value in (float("inf"), float("-inf")):
        raise UsageError(f"--threshold {text}: should be auto or a number such as 0.85")
    return value
