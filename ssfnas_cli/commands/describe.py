"""`ssfnas describe`: the size of the network that a genotype stands for, or that a run has trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.commands import common, inputs
from ssfnas_cli.console import emit, log, set_verbosity
from ssfnas_cli.errors import InputError, UsageError
from ssfnas_cli.settings import RetrainSettings

if TYPE_CHECKING:
    from rich.console import Console

    from ssfnas_cli.artifacts.genotype import Genotype

OF_LATENCY = "Latency"
# The papers' network on CIFAR-10, which a genotype alone is counted in
DEFAULTS: dict[str, Any] = {
    **{"channels": 36, "layers": 20, "stem": "auto"},
    **{"num_classes": 10, "image_size": 32, "in_channels": 3},
}
STEMS = get_args(RetrainSettings.model_fields["stem"].annotation)


def command(
    network: Annotated[
        str,
        typer.Argument(
            metavar="GENOTYPE",
            help="Genotype file, run folder, - for a pipe that brings either, or a name: resnet32, DARTS_V2, …",
            autocompletion=inputs.network_names,
        ),
    ],
    channels: Annotated[
        int | None, typer.Option(min=2, max=65_536, help="Width of the first cells.", show_default="the run's, or 36")
    ] = None,
    layers: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Number of cells.", show_default="the run's, or 20")
    ] = None,
    stem: Annotated[str | None, typer.Option(help=common.STEM_HELP, show_default="the run's, or auto")] = None,
    num_classes: Annotated[
        int | None, typer.Option(min=1, max=10**6, help="Number of classes.", show_default="the run's, or 10")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=8, max=65_536, help="Side in pixels.", show_default="the run's, or 32")
    ] = None,
    in_channels: Annotated[
        int | None, typer.Option(min=1, max=1024, help="3 for colour, 1 for grey.", show_default="the run's, or 3")
    ] = None,
    aux: Annotated[bool, typer.Option("--aux", help="Count the auxiliary head's weights too.")] = False,
    latency: Annotated[
        bool,
        typer.Option(
            "--latency",
            help="Its latency, too: as the table of 'ssfnas latency' predicts it, and measured here.",
            rich_help_panel=OF_LATENCY,
        ),
    ] = False,
    table: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A table that was made elsewhere.",
            show_default="this machine's, which is completed",
            rich_help_panel=OF_LATENCY,
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=1, max=1_000_000, help="Images at a time.", show_default="1", rich_help_panel=OF_LATENCY),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="auto, cpu, cuda, …", show_default="auto", rich_help_panel=OF_LATENCY),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=0, help="Processor threads; 0: torch's own choice.", show_default="0", rich_help_panel=OF_LATENCY
        ),
    ] = None,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    json: common.Json = False,
) -> None:
    """Count the weights and the multiply-adds (of convolutions and linear layers, for one image) of a network."""
    set_verbosity(quiet, verbose)
    given = {name: value for name, value in locals().items() if name in DEFAULTS and value is not None}
    timing = {"table": table, "batch": batch, "device": device, "threads": threads}
    for name, value in timing.items() if not latency else ():
        if value is not None:
            raise UsageError(f"--{name}: is for --latency: give that, too, or leave it out")
    if stem not in (None, *STEMS):
        raise UsageError(f"--stem {stem}: should be one of {', '.join(STEMS)}")
    parsed, named, run = inputs.read_network_or_run(network)
    for name in RetrainSettings.OF_CELLS if named is not None else ():
        if name in given:
            raise UsageError(f"--{name}: '{named}' has its own; leave it out")
    if named is not None and aux:
        raise UsageError(f"--aux: '{named}' has no auxiliary head; leave it out")
    size = {**DEFAULTS, **(_size_of(run, given) if run is not None else {}), **given}
    import torch

    from ssfnas_cli.engine.network import describe_network
    from ssfnas_cli.nets.count import count_macs, count_params
    from ssfnas_cli.nets.stems import choose_stem

    size["stem"], _ = choose_stem(size["stem"], size["image_size"])
    with torch.device("meta"):
        model = describe_network(parsed if parsed is not None else str(named), **size, aux=aux)
    if named is not None:
        size = {name: value for name, value in size.items() if name not in RetrainSettings.OF_CELLS}
    facts: dict[str, Any] = {
        **({"run": str(run.path)} if run is not None else {}),
        **({"network": named} if named is not None else {}),
        "num_params": count_params(model),
        "num_macs": count_macs(model, size["in_channels"], size["image_size"]),
        **size,
        "aux": aux,
    }
    for kind, cell in parsed.cells().items() if parsed is not None else ():
        live = cell.pruned()
        facts[kind] = {
            "edges": len(live.edges),
            "ops": cell.op_counts(),
            "nodes": live.nodes,
            "dead_nodes": live.dead_nodes,
            "concat": live.concat,
        }
    if latency:
        facts |= _latencies(parsed, named, size, timing)
    emit(facts, json, lambda console: _show(console, facts))


def _latencies(
    genotype: Genotype | None, named: str | None, size: dict[str, Any], timing: Mapping[str, Any]
) -> dict[str, Any]:
    """How long the network takes, in ms: as the sum of its parts in the table, and measured.

    A table is one of genotypes' networks; a plain network is only measured.
    """
    from ssfnas_cli.engine.device import Device
    from ssfnas_cli.engine.latency import LatencyTable, conditions_of, network_latency
    from ssfnas_cli.nets.parts import NetworkShape, network_parts

    place = Device(timing["device"] or "auto", timing["threads"] or 0).torch
    common.warn_of_busy_cores(timing["threads"] or 0)
    batch, predicted = timing["batch"] or 1, {}
    if genotype is not None:
        shape = NetworkShape(**size)
        parts = network_parts(genotype, shape)
        if timing["table"] is None:
            table, _ = LatencyTable.measured(parts, place, batch)
        else:
            table = LatencyTable.read(timing["table"])
            ops = {edge.op for cell in genotype.cells().values() for edge in cell.edges}
            table.refuse_missing(parts, shape, sorted(ops))
        predicted = {"predicted_ms": sum(map(table, parts)), "predicted_by": str(table.where)}
        predicted["predicted_for"] = table.file.conditions.words()
    elif timing["table"] is not None:
        raise UsageError(f"--table: '{named}' is no network of cells, and a table is of their parts: leave it out")
    measured = network_latency(genotype if genotype is not None else str(named), size, place, batch)
    return {**predicted, "measured_ms": measured, "measured_on": conditions_of(place, batch).words()}


def _size_of(run: RunFolder, given: Mapping[str, Any]) -> dict[str, Any]:
    """The size of a run's own network, from its settings and its data set."""
    from ssfnas_cli.artifacts.dataset import DataSet

    settings = run.config["settings"]
    size = {name: settings[name] for name in ("channels", "layers") if isinstance(settings.get(name), int)}
    if run.stem not in STEMS:
        raise InputError(f"{run.path}: has the stem '{run.stem}', which this ssfnas does not know: upgrade ssfnas")
    size["stem"] = run.stem
    try:
        data = DataSet.open(run.config["data"]["path"])
    except InputError as error:
        missing = [name for name in ("num_classes", "image_size", "in_channels") if name not in given]
        if missing:
            assumed = ", ".join(f"--{name.replace('_', '-')} {DEFAULTS[name]}" for name in missing)
            log.warning("%s: counting with %s", error, assumed)
        return size
    return size | data.network_facts


def _show(console: Console, facts: Mapping[str, Any]) -> None:
    for key, value in facts.items():
        if isinstance(value, Mapping):
            told = [f"{value['edges']} edges", ", ".join(f"{name} {count}" for name, count in value["ops"].items())]
            told += [f"nodes without input: {value['dead_nodes']}"] if value["dead_nodes"] else []
            text = "; ".join(told)
        else:
            text = f"{value:,}" if key.startswith("num_") else f"{value:.3f}" if key.endswith("_ms") else str(value)
        console.print(f"{key:>12}  {text}", soft_wrap=True)
