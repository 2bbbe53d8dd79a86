"""`ssfnas describe`: the size of a network, which a genotype stands for or a name."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ssfnas_cli.commands import common, references
from ssfnas_cli.console import emit, set_verbosity
from ssfnas_cli.errors import UsageError


def command(
    network: Annotated[
        str,
        typer.Argument(
            metavar="GENOTYPE",
            help="Genotype file, - for a pipe, or a name: resnet32, DARTS_V2, random-3, …",
            autocompletion=references.network_names,
        ),
    ],
    channels: Annotated[int | None, typer.Option(min=2, help="Width of the first cells.", show_default="36")] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Number of cells.", show_default="20")] = None,
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
    parsed, name = references.network(network)
    given = {"channels": channels, "layers": layers, "aux": aux or None}
    if name is not None and (wrong := next((key for key, value in given.items() if value is not None), None)):
        raise UsageError(f"--{wrong}: '{name}' has {'none' if wrong == 'aux' else 'its own'}; leave it out")
    facts: dict[str, Any] = {"num_params": 0, "num_macs": 0}
    if name is not None:
        facts["network"] = name
    else:
        facts |= {"channels": channels or 36, "layers": layers or 20}
    facts |= {"num_classes": num_classes, "image_size": image_size, "aux": aux}
    import torch

    from ssfnas_cli.engine.network import plain_classifier
    from ssfnas_cli.nets.count import count_macs, count_params
    from ssfnas_cli.nets.heads import Classifier

    with torch.device("meta"):
        if parsed is None:
            model = plain_classifier(str(name), in_channels, image_size, num_classes)
        else:
            shape = facts["channels"], facts["layers"]
            model = Classifier.of_genotype(parsed, in_channels, *shape, num_classes, aux)
    facts |= {"num_params": count_params(model), "num_macs": count_macs(model, in_channels, image_size)}
    for kind, cell in (parsed.cells() if parsed is not None else {}).items():
        live = cell.live()
        facts[kind] = {
            "edges": len(live.edges),
            "ops": cell.op_counts(),
            "nodes": live.nodes,
            "dead_nodes": live.dead_nodes,
            "concat": live.concat,
        }
    emit(facts, json)
