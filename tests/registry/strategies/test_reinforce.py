"""The strategy `reinforce`: its gradient against the exact one, what it draws, and what it finds."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from strategies_support import build_strategy

from registry.strategies import candidates, reinforce
from registry.strategies.candidates import random_genes

OPS = ("none", "max_pool_3x3", "skip_connect", "dil_conv_3x3")


@pytest.fixture
def tiny(monkeypatch):
    """`tiny(lr=...)`: the strategy on one cell of two nodes with three ops, whose policy is not at its start."""
    monkeypatch.setattr(candidates.CandidateStrategy, "num_nodes", 2)
    for module in (candidates, reinforce):
        monkeypatch.setattr(module, "CELL_TYPES", ("normal",))

    def build(spread=1.0, **options):
        strategy = build_strategy("reinforce", options, OPS)
        generator = torch.Generator().manual_seed(1)
        for parameter in strategy.policy.parameters():
            parameter.data.add_(spread * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        return strategy

    return build


def all_genes():
    """Every architecture of that space: one pair of inputs for node 2, three for node 3, three ops on four edges."""
    for second in itertools.combinations(range(2, 5), 2):
        for ops in itertools.product((1, 2, 3), repeat=4):
            genes = np.full((1, 5), -1, np.int16)
            genes[0, [0, 1, *second]] = ops
            yield genes


def exact_gradient(strategy, rewards, weight):
    """Of the expected reward and the entropy of the whole distribution, by autograd through all probabilities."""
    logs = torch.stack([strategy.policy.chosen(genes).log_probability for genes in all_genes()])
    assert logs.exp().sum().item() == pytest.approx(1, abs=1e-12)
    value = (logs.exp() * torch.tensor(rewards)).sum() - weight * (logs.exp() * logs).sum()
    return torch.autograd.grad(value, list(strategy.policy.parameters()))


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_the_mean_of_its_gradients_is_the_exact_gradient(tiny, weight):
    strategy = tiny(entropy=weight)
    rewards = np.random.default_rng(0).random(243)
    mean = [torch.zeros_like(parameter) for parameter in strategy.policy.parameters()]
    baseline = 0.37  # any number
    for genes, reward in zip(all_genes(), rewards, strict=True):
        chosen = strategy.policy.chosen(genes)
        advantage = reward + weight * chosen.entropy.item() - baseline
        gradients = torch.autograd.grad(strategy.loss(chosen, advantage), list(strategy.policy.parameters()))
        for total, gradient in zip(mean, gradients, strict=True):
            total -= chosen.log_probability.exp().detach() * gradient
    for ours, exact in zip(mean, exact_gradient(strategy, rewards, weight), strict=True):
        assert exact.abs().max() > 1e-5
        torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-12)


def test_a_candidate_moves_the_controller_by_that_gradient(tiny):
    strategy = tiny(lr=0.01, entropy=0.2, baseline_decay=0.75)
    first = 0.6 + 0.2 * strategy.policy.chosen(strategy._next()).entropy.item()
    strategy.judge({"accuracy": 60.0, "balanced_accuracy": 0.0})
    assert strategy.baseline == pytest.approx(first, abs=1e-15), "the first reward is its own baseline"
    chosen = strategy.policy.chosen(strategy._next())
    second = 0.8 + 0.2 * chosen.entropy.item()
    expected = torch.autograd.grad(strategy.loss(chosen, second - first), list(strategy.policy.parameters()))
    strategy.judge({"accuracy": 80.0, "balanced_accuracy": 0.0})
    for parameter, gradient in zip(strategy.policy.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, gradient)
    assert strategy.baseline == pytest.approx(0.75 * first + 0.25 * second, abs=1e-15)


def test_it_draws_each_architecture_as_often_as_its_probability_says(tiny):
    strategy, numbers = tiny(), np.random.default_rng(0)
    numbered = {genes.tobytes(): number for number, genes in enumerate(all_genes())}
    probabilities = np.array([strategy.policy.chosen(genes).log_probability.exp().item() for genes in all_genes()])
    drawn = [numbered[strategy.propose(numbers).tobytes()] for _ in range(1500)]
    counts = np.bincount(drawn, minlength=243)
    common, rare = np.split(np.argsort(-probabilities), [60])  # a chi-square needs some of each
    groups = [*common.reshape(20, 3), rare]
    seen, expected = ([values[group].sum() for group in groups] for values in (counts, 1500 * probabilities))
    assert min(expected) > 5 and chisquare(seen, expected).pvalue > 0.001


def test_the_logits_of_edges_begin_with_the_uniform_distribution(tiny):
    strategy = tiny(0.0)
    chances = [strategy.policy.chosen(genes).log_probability.item() for genes in all_genes()]
    np.testing.assert_allclose(chances, -math.log(243), rtol=1e-12)
    assert strategy.policy.chosen(next(all_genes())).entropy.item() == pytest.approx(math.log(243))


def test_it_finds_the_best_of_a_tiny_space_and_then_draws_it(tiny):
    """All architectures differ in reward, and most of those beside the best are worse than some far from it."""
    best = list(all_genes())[200]
    strategy = tiny(0.0, candidates=200)
    noise = np.random.default_rng(1)
    for _ in range(200):
        fitness = 10.0 * float((strategy._next() == best).sum()) + float(noise.normal())
        strategy.judge({"accuracy": fitness, "balanced_accuracy": 0.0})
    assert np.array_equal(strategy.best(), best)
    assert np.mean([np.array_equal(genes, best) for genes in strategy.genes[-50:]]) > 0.8


def test_it_finds_better_architectures_than_random_draws_at_equal_numbers():
    target = random_genes(np.random.default_rng(99), [1, 2, 3])

    def best(strategy):
        for _ in range(120):
            likeness = float((strategy._next() == target).sum())
            strategy.judge({"accuracy": likeness, "balanced_accuracy": 0.0})
        return strategy.fitness.max()

    learned = [best(build_strategy("reinforce", {}, OPS, seed)) for seed in range(3)]
    drawn = [best(build_strategy("random", {}, OPS, seed)) for seed in range(3)]
    assert min(learned) > max(drawn)
