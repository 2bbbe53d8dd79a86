"""The parts of derived networks: their counts add up to those of the networks, which are the published ones."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from registry.cost import SearchCost, costs_of
from registry.space import CELL_TYPES, edge_list
from registry.strategies.candidates import random_genes
from ssfnas_cli.artifacts.genotype import Cell, Edge, Genotype, parse_genotype
from ssfnas_cli.artifacts.named import named_genotype
from ssfnas_cli.nets.count import count_macs, count_params
from ssfnas_cli.nets.heads import Classifier
from ssfnas_cli.nets.parts import NetworkShape, Space, network_parts, part_macs, part_params
from ssfnas_cli.settings import PAPER_OPS

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
SMALL = NetworkShape(4, 5, "cifar", 7, 13, 1)  # odd sides, grey


def of_parts(genotype, shape):
    parts = network_parts(genotype, shape)
    return sum(map(part_params, parts)), sum(map(part_macs, parts))


def of_network(genotype, shape):
    with torch.device("meta"):
        network = Classifier.of_genotype(
            genotype, shape.in_channels, shape.channels, shape.layers, shape.num_classes, aux=False, stem=shape.stem
        )
    return count_params(network), count_macs(network, shape.in_channels, shape.image_size)


@pytest.mark.parametrize("name", ["darts_v2", "fairdarts_a", "pdarts", "amoebanet"])
def test_the_parts_of_published_networks_add_up_to_their_counts(name):
    facts = json.loads((GOLDEN / f"{name}.json").read_text())
    genotype = parse_genotype(json.dumps(facts["genotype"]).encode(), name)
    shape = NetworkShape(facts["channels"], facts["layers"], "cifar", facts["num_classes"], facts["image_size"], 3)
    assert of_parts(genotype, shape) == (facts["num_params"], facts["num_macs"])


def test_and_on_imagenet():
    shape = NetworkShape(48, 14, "imagenet", 1000, 224, 3)
    assert of_parts(named_genotype("DARTS_V2"), shape) == (4_718_752, 529_911_552)


def test_dead_nodes_and_two_ops_on_an_edge_count_as_in_the_network():
    edge = lambda op, source, target: Edge(op=op, source=source, target=target)
    normal = Cell(edges=(edge("sep_conv_3x3", 0, 2), edge("skip_connect", 0, 2)), concat=(2, 3))
    reduce = Cell(
        edges=(edge("dil_conv_5x5", 1, 2), edge("skip_connect", 1, 3), edge("sep_conv_5x5", 4, 5)), concat=(2, 3, 5)
    )
    genotype = Genotype(normal=normal, reduce=reduce)
    for stem, side in (("cifar", 13), ("imagenet", 45)):
        shape = SMALL._replace(stem=stem, image_size=side)
        assert of_parts(genotype, shape) == of_network(genotype, shape)


def genotype_of(genes, ops, num_nodes):
    """The genotype of genes [cell types, edges]."""
    cells = {}
    for kind, cell in zip(CELL_TYPES, genes, strict=True):
        edges = [
            Edge(op=ops[op], source=source, target=target)
            for (source, target), op in zip(edge_list(num_nodes), cell.tolist(), strict=True)
            if op >= 0
        ]
        cells[kind] = Cell(edges=tuple(edges), concat=tuple(range(2, 2 + num_nodes)))
    return Genotype(**cells)


def test_the_costs_of_a_space_are_those_of_its_networks():
    space = Space(SMALL, PAPER_OPS, {})
    params, macs = space.costs(part_params), space.costs(part_macs)
    for seed in range(2):
        genes = random_genes(np.random.default_rng(seed), range(1, 8))
        sizes = costs_of(genes, *params), costs_of(genes, *macs)
        assert sizes == of_network(genotype_of(genes, PAPER_OPS, 4), SMALL)
    parts = space.parts()
    assert len(parts) == len(set(parts)) and set(network_parts(named_genotype("DARTS_V2"), SMALL)) <= set(parts)


def test_the_expected_cost_is_the_mean_of_the_networks_of_a_tiny_space():
    """Two nodes, three ops. A network's size is that of its normal plus that of its reduction cells."""
    ops, shape = ("none", "skip_connect", "dil_conv_3x3"), NetworkShape(2, 3, "cifar", 2, 8, 1)
    numbers = np.random.default_rng(0)
    probabilities = {kind: numbers.dirichlet([1, 1, 1], 5) for kind in CELL_TYPES}
    cells, chances = [], []
    for second in itertools.combinations((2, 3, 4), 2):
        for columns in itertools.product((1, 2), repeat=4):
            cell = np.full(5, -1)
            cell[[0, 1, *second]] = columns
            cells.append(cell)
    for kind in CELL_TYPES:
        among = probabilities[kind][:, 1:] / probabilities[kind][:, 1:].sum(1, keepdims=True)
        chances.append([np.prod([among[row, op - 1] for row, op in enumerate(cell) if op > 0]) / 3 for cell in cells])

    def size(normal, reduce):
        genotype = genotype_of(np.stack([normal, reduce]), ops, 2)
        with torch.device("meta"):
            return count_params(Classifier.of_genotype(genotype, 1, 2, 3, 2, aux=False))

    sizes = [[size(cell, cells[0]) for cell in cells], [size(cells[0], cell) for cell in cells]]
    assert size(cells[5], cells[40]) == sizes[0][5] + sizes[1][40] - size(cells[0], cells[0])
    wanted = sum(np.array(chances[k]) @ np.array(sizes[k]) for k in (0, 1)) - size(cells[0], cells[0])
    given = {kind: torch.from_numpy(values) for kind, values in probabilities.items()}
    costs = Space(shape, ops, {}, num_nodes=2).costs(part_params)
    cost = SearchCost(costs.ops, costs.fixed, choices=(1, 2), kept=2)
    assert cost.expected(given).item() == pytest.approx(wanted, rel=1e-12)
