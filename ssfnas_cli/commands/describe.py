"""`ssfnas describe`: the size of the network a genotype stands for."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ssfnas_cli.commands import common, references
from ssfnas_cli.console import emit, set_verbosity


def command(
    genotype: Annotated[str, typer.Argument(help="Genotype file, or - for a pipe.")],
    channels: Annotated[int, typer.Option(min=2, help="Width of the first cells.")] = 36,
    layers: Annotated[int, typer.Option(min=1, help="Number of cells.")] = 20,
    num_classes: Annotated[int, typer.Option(min=1)] = 10,
    image_size: Annotated[int, typer.Option(min=8, help="Side in pixels.")] = 32,
    in_channels: Annotated[int, typer.Option(min=1, help="3 for colour, 1 for grey.")] = 3,
    aux: Annotated[bool, typer.Option("--aux", help="Count the auxiliary head's weights too.")] = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    json: common.Json = False,
) -> None:
    """Count the weights and the multiply-adds (of convolutions and linear layers, for one image) of a network."""
    set_verbosity(quiet, verbose)
    parsed = references.genotype(genotype)
    import torch

    from ssfnas_cli.nets.count import count_macs, count_params
    from ssfnas_cli.nets.heads import Classifier

    with torch.device("meta"):
        network = Classifier.of_genotype(parsed, in_channels, channels, layers, num_classes, aux)
    facts: dict[str, Any] = {
        "num_params": count_params(network),
        "num_macs": count_macs(network, in_channels, image_size),
        "channels": channels,
        "layers": layers,
        "num_classes": num_classes,
        "image_size": image_size,
        "aux": aux,
    }
    for kind, cell in parsed.cells().items():
        live = cell.pruned()
        facts[kind] = {
            "edges": len(live.edges),
            "ops": cell.op_counts(),
            "nodes": live.nodes,
            "dead_nodes": live.dead_nodes,
            "concat": live.concat,
        }
    emit(facts, json)
