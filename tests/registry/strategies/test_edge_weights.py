"""The weights of edges: a softmax over a node's inputs."""

import numpy as np
import torch

from registry.space import edge_list
from registry.strategies.edge_weights import initial_edges, weights_of_edges


def test_the_inputs_of_a_node_compete():
    numbers = torch.randn(3, 14, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = weights_of_edges(numbers).numpy()
    for epoch in range(3):
        for row, (_, target) in enumerate(edge_list()):
            rivals = [other for other, (_, theirs) in enumerate(edge_list()) if theirs == target]
            exps = np.exp(numbers[epoch].numpy())
            np.testing.assert_allclose(weights[epoch, row], exps[row] / exps[rivals].sum(), rtol=1e-12)


def test_the_first_numbers_are_small_and_follow_from_the_generator():
    one, same = (initial_edges(torch.Generator().manual_seed(3)) for _ in range(2))
    assert one.keys() == {"normal_edges", "reduce_edges"} and all(torch.equal(one[name], same[name]) for name in one)
    assert 0 < one["normal_edges"].std() < 3e-3 and not torch.equal(*one.values())
