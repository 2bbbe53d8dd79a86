"""The options of `gradient` that work with every relaxation, on mixing weights alone."""

import math

import pytest
import torch
from strategies_support import build_strategy

from registry import RELAXATIONS
from ssfnas_cli.settings import PAPER_OPS

SKIP = PAPER_OPS.index("skip_connect")
RELAXED = RELAXATIONS.names()[:4]


def build(relax="softmax", **options):
    return build_strategy("gradient", options, PAPER_OPS, relax=relax, init_std=0.5)


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("relax", RELAXED)
def test_without_options_the_mixing_weights_are_the_relaxations_and_nothing_more_is_drawn(relax):
    strategy, ours, theirs = build(relax), generator(3), generator(3)
    mixing = strategy.mixing(0.3, ours)
    for kind, alphas in strategy.alphas.items():
        assert torch.equal(mixing[kind], strategy.relaxation.weights(alphas, 0.3, theirs))
    assert torch.equal(ours.get_state(), theirs.get_state())
    assert torch.equal(strategy._regulariser(0.3), strategy.relaxation.regulariser(strategy.alphas, 0.3))


@pytest.mark.parametrize("progress", [0.0, 0.4])
def test_skips_are_dropped_at_the_falling_rate_and_their_mean_stays(progress):
    dropping, plain = build(skip_dropout=0.6), build()
    rate = 0.6 * math.exp(-5 * progress)
    whole = plain.mixing(progress)["normal"]
    draws = torch.stack([dropping.mixing(progress, generator(seed))["normal"] for seed in range(1000)]).detach()
    others = [k for k in range(len(PAPER_OPS)) if k != SKIP]
    assert torch.equal(draws[..., others], whole[:, others].detach().expand(1000, -1, -1))
    dropped = draws[..., SKIP] == 0
    spread = math.sqrt(rate * (1 - rate) / dropped.numel())
    assert abs(dropped.double().mean() - rate) < 4.5 * spread
    torch.testing.assert_close(draws[..., SKIP][~dropped], (whole[:, SKIP] / (1 - rate)).expand(1000, -1)[~dropped])
    together = (dropped[:, 0] & dropped[:, 1]).double().mean()
    assert abs(together - rate**2) < 0.06, "edges drop independently"


def test_skips_are_never_dropped_in_an_evaluation():
    assert torch.equal(build(skip_dropout=0.9).mixing(0.0)["normal"], build().mixing(0.0)["normal"])


@pytest.mark.parametrize("relax", RELAXED)
def test_the_beta_decay_is_the_mean_log_sum_exp_with_a_weight_that_rises_linearly(relax):
    strategy, plain = build(relax, beta_decay=50.0), build(relax)
    alphas = list(strategy.alphas.values())
    more = strategy._regulariser(0.25) - plain._regulariser(0.25).detach()
    edges = torch.cat(alphas).detach().double()
    assert more.item() == pytest.approx(12.5 * edges.exp().sum(1).log().mean().item(), rel=1e-5)
    theirs = plain._regulariser(0.25)
    before = torch.autograd.grad(theirs, list(plain.alphas.values())) if theirs.requires_grad else [0.0, 0.0]
    for got, values, own in zip(torch.autograd.grad(more, alphas), alphas, before, strict=True):
        slope = torch.exp(values.detach()) / torch.exp(values.detach()).sum(1, keepdim=True)
        torch.testing.assert_close(got, own + 12.5 * slope / 28, rtol=1e-4, atol=1e-6)
    assert strategy._regulariser(0.0).item() == plain._regulariser(0.0).item()
