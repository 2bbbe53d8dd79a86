"""Searches whose relaxation samples: what a step computes, what is evaluated, and what a resumed one draws."""

import pytest
import torch
from search_support import WITH_CONVOLUTION as TINY
from search_support import alphas_of, run

from registry.space import edge_list
from ssfnas_cli.engine.loop import seed_for_step
from ssfnas_cli.engine.rules import derive
from ssfnas_cli.engine.search_phase import step_generator

SAMPLED = {
    "gdas": {"sets": ["relax.temperature_start=2"], "relax": "gumbel"},
    "gdas, second order": {"relax": "gumbel", "order": 2},
    "dsnas": {"sets": ["relax.estimator=dsnas"], "relax": "gumbel"},
    "dirichlet": {"sets": ["relax.kl_weight=0.01"], "relax": "dirichlet"},
    "softmax with both options": {"sets": ["strategy.skip_dropout=0.5", "strategy.beta_decay=5"], "relax": "softmax"},
}


@pytest.fixture(params=SAMPLED)
def sampled(request, search):
    """Make phases of one sampled search."""
    settings = dict(SAMPLED[request.param])
    sets = settings.pop("sets", [])
    return lambda **more: search(*sets, **settings, **more)


def test_a_resumed_search_draws_what_an_undisturbed_one_does_and_ends_bit_equal(sampled):
    whole, first, second = sampled(), sampled(), sampled()
    run(whole, 3)
    run(first, 1)
    second.load({name: tensor.detach().clone() for name, tensor in first.tensors().items()})
    run(second, 2, start=1)
    ours, theirs = whole.tensors(), second.tensors()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    other = sampled(seed=1)
    run(other, 3)
    assert not torch.equal(alphas_of(whole), alphas_of(other))


def drawn_by(phase, step):
    """The ops that the weight step draws: {(cell type, edge, column)}."""
    seed_for_step(phase.seed, 0, step)
    mixing = phase.strategy.mixing(step / phase.num_steps(0) / phase.epochs, step_generator())
    return {(kind, edge, column) for kind, rows in mixing.items() for edge, column in rows.nonzero().tolist()}


@pytest.mark.parametrize("estimator", ["gdas", "dsnas"])
def test_a_gumbel_step_trains_the_drawn_ops_alone(search, estimator):
    phase = search(f"relax.estimator={estimator}", "relax.init_std=1", relax="gumbel")
    column, trained = TINY["ops"].index("dil_conv_3x3"), set()
    run(phase, 1)
    for cell in phase.model.encoder.cells:
        for edge in range(len(edge_list())):
            gradients = [weight.grad for weight in cell.of_edge[edge][str(column)].parameters()]
            if any(gradient is not None for gradient in gradients):
                trained.add(("reduce" if cell.reduction else "normal", edge, column))
    drawn = {place for place in drawn_by(phase, 0) if place[2] == column}
    assert trained == drawn and 0 < len(drawn) < 28


def test_a_gumbel_supernet_is_evaluated_as_its_most_probable_path_and_derived_from_probabilities(search):
    phase = search("relax.init_std=1", relax="gumbel", epochs=1)
    run(phase, 2)
    line = phase.end_epoch(0)
    path = {}
    for kind, alphas in phase.strategy.alphas.items():
        path[kind] = torch.zeros(14, len(TINY["ops"]))
        path[kind][range(14), alphas.argmax(1)] = 1
    with phase.estimated_statistics(path):
        assert line["accuracy_alpha_half"] == phase.accuracy(phase.split, phase.halves[1], path)
    probabilities = {
        kind: alphas.detach().double().softmax(1).numpy() for kind, alphas in phase.strategy.alphas.items()
    }
    weights = phase.strategy.weights_at(phase.strategy.record(), 1)
    assert derive(weights, TINY["ops"], "darts").genotype == derive(probabilities, TINY["ops"], "darts").genotype
    assert line["weights_entropy"] < 1
