"""Networks as after a training, for what evaluates them."""

import torch

from registry import OPS
from registry.norm import BatchNorm
from ssfnas_cli.artifacts.genotype import Cell, Edge, Genotype
from ssfnas_cli.engine.network import describe_network

CELL = Cell(edges=tuple(Edge(op=op, source=0, target=2) for op in OPS.names()), concat=(2,))
EVERY_OP = Genotype(normal=CELL, reduce=CELL)


def trained(model, size=24):
    """Scales, shifts and statistics as different as after a training, of maps that neither vanish nor explode."""
    torch.manual_seed(3)
    norms = norms_of(model)
    for norm in norms:
        norm.momentum = 1.0
        norm.weight.data.uniform_(0.5, 1.5)
        norm.bias.data.normal_(std=0.5)
    with torch.no_grad():
        model.train()(torch.randn(16, 3, size, size))
    for norm in norms:
        norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.7, 1.4)
    return model.eval()


def network(name, stem="cifar", size=24):
    torch.manual_seed(1)
    named = EVERY_OP if name == "every op" else name
    return trained(describe_network(named, 4, 3, 5, size, 3, aux=True, stem=stem), size)


def norms_of(model):
    return [module for module in model.modules() if isinstance(module, BatchNorm)]
