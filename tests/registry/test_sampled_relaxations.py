"""Draws by chi-square, and the mean of their gradients against means that are enumerated or integrated."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.special import digamma, gammaln
from scipy.stats import chisquare

from registry import RELAXATIONS
from ssfnas_cli.engine.loop import seed_for_step
from ssfnas_cli.engine.search_phase import step_generator

EDGES, OPS = 5, 3  # a cell of two nodes, so that its 3^5 paths can be enumerated
ALPHAS = np.random.default_rng(1).normal(size=(EDGES, OPS))
PATHS = list(itertools.product(range(OPS), repeat=EDGES))


def build(name, **options):
    plugin = RELAXATIONS.get(name)
    return plugin.factory(plugin.parse_options(options))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def probabilities(alphas=ALPHAS):
    exp = np.exp(alphas)
    return exp / exp.sum(-1, keepdims=True)


def copies(number, alphas=ALPHAS):
    """[number, edges, ops], one leaf, so that each draw has a gradient of its own."""
    return torch.tensor(alphas).expand(number, *alphas.shape).clone().requires_grad_()


# gumbel: the draws


@pytest.mark.parametrize("estimator", ["gdas", "dsnas"])
def test_the_paths_of_a_whole_cell_are_drawn_with_the_product_of_their_probabilities(estimator):
    drawn = build("gumbel", estimator=estimator).weights(copies(100_000), 0.4, generator()).detach()
    assert ((drawn == 0) | (drawn == 1)).all() and (drawn.sum(-1) == 1).all()
    numbers = (drawn.argmax(-1) * torch.tensor([OPS**k for k in reversed(range(EDGES))])).sum(-1)
    counts = np.bincount(numbers.numpy(), minlength=len(PATHS))
    p = probabilities()
    expected = np.array([math.prod(p[edge, op] for edge, op in enumerate(path)) for path in PATHS])
    assert 100_000 * expected.min() > 5, "a chi-square needs five expected draws a bin"
    assert chisquare(counts, 100_000 * expected).pvalue > 0.001
    uniform = np.full(len(PATHS), 100_000 / len(PATHS))
    assert chisquare(counts, uniform).pvalue < 1e-9, "the test can tell distributions apart"


def test_the_steps_of_a_search_draw_independently_of_each_other():
    relaxation, alphas = build("gumbel"), torch.tensor(ALPHAS[:1]).float()
    chosen = []
    for step in range(3000):
        seed_for_step(7, 0, step)
        chosen.append(int(relaxation.weights(alphas, 0.0, step_generator()).argmax()))
    p = probabilities()[0]
    assert chisquare(np.bincount(chosen, minlength=OPS), 3000 * p).pvalue > 0.001
    pairs = np.bincount(np.array(chosen[0::2]) * OPS + np.array(chosen[1::2]), minlength=OPS * OPS)
    assert chisquare(pairs, 1500 * np.outer(p, p).ravel()).pvalue > 0.001


@pytest.mark.parametrize("name", ["gumbel", "dirichlet"])
def test_a_draw_follows_from_the_generator_and_leaves_the_global_one_alone(name):
    relaxation, alphas = build(name), torch.tensor(ALPHAS).float()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = [relaxation.weights(alphas, 0.2, generator(seed)) for seed in (1, 1, 2)]
    assert torch.equal(one[0], one[1]) and not torch.equal(one[0], one[2])
    assert torch.equal(torch.get_rng_state(), before) and torch.initial_seed() == 5
    both = generator(1)
    assert torch.equal(relaxation.weights(alphas, 0.2, both), one[0])
    assert not torch.equal(relaxation.weights(alphas, 0.2, both), one[0]), "the cell types draw on their own"


# gumbel: the gradients


def loss_of(weights):
    """A loss that is no linear function of the mixing weights [..., edges, ops], and uses the zero ones, too."""
    ops = torch.tensor(np.random.default_rng(2).normal(size=(EDGES, OPS)))
    edges = (weights * ops).sum(-1)
    node = torch.tanh(edges[..., 0] + 2 * edges[..., 1])
    last = edges[..., 2] * node + edges[..., 3] - edges[..., 4] * edges[..., 0]
    return (last - 0.7).square()


def enumerated(slope_of):
    """The mean over all paths of dL/dw of each chosen op times the slope [edges, ops] of that op's weight."""
    p, total = probabilities(), np.zeros_like(ALPHAS)
    for path in PATHS:
        weights = torch.zeros(EDGES, OPS, dtype=torch.float64)
        weights[range(EDGES), path] = 1
        weights.requires_grad_()
        (pull,) = torch.autograd.grad(loss_of(weights), weights)
        chance = math.prod(p[edge, op] for edge, op in enumerate(path))
        for edge, op in enumerate(path):
            total[edge] += chance * pull[edge, op].item() * slope_of(edge, op)
    return total


def log_probability_slope(edge, op):
    return np.eye(OPS)[op] - probabilities()[edge]


def tempered_slopes(temperature, num_points=48):
    """The mean slope of the chosen op's softmax((alpha + g) / temperature), given that its alpha + g is the largest.

    Given the largest, whose value is Gumbel with location log sum exp(alpha), the others are Gumbels cut off there
    (Maddison et al., A* Sampling, 2014). The integral over the three uniform numbers is a Gauss-Legendre sum.
    """
    points, point_weights = np.polynomial.legendre.leggauss(num_points)
    points, point_weights = (points + 1) / 2, point_weights / 2
    u = np.stack(np.meshgrid(points, points, points, indexing="ij"), -1).reshape(-1, OPS)
    weight = np.prod(np.meshgrid(point_weights, point_weights, point_weights, indexing="ij"), axis=0).ravel()
    slopes = np.zeros((EDGES, OPS, OPS))
    for edge, op in itertools.product(range(EDGES), range(OPS)):
        alphas = ALPHAS[edge]
        top = np.log(np.exp(alphas).sum()) - np.log(-np.log(u[:, 0]))
        noisy = np.empty_like(u)
        for k, other in enumerate([k for k in range(OPS) if k != op], start=1):
            noisy[:, other] = alphas[other] - np.log(np.exp(alphas[other] - top) - np.log(u[:, k]))
        noisy[:, op] = top
        soft = np.exp((noisy - top[:, None]) / temperature)
        soft /= soft.sum(1, keepdims=True)
        slope = soft[:, [op]] * (np.eye(OPS)[op] - soft) / temperature
        slopes[edge, op] = weight @ slope
    return slopes


@pytest.mark.parametrize("estimator", ["gdas", "dsnas"])
def test_the_mean_of_the_draws_gradients_is_the_enumerated_mean_of_the_estimator(estimator):
    options = {"temperature_start": 3.0, "temperature_end": 1.0}
    relaxation, number = build("gumbel", estimator=estimator, **options), 300_000
    alphas = copies(number)
    losses = loss_of(relaxation.weights(alphas, 0.5, generator(3)))
    (gradients,) = torch.autograd.grad(losses.sum(), alphas)
    mean, error = gradients.mean(0).numpy(), gradients.std(0).numpy() / math.sqrt(number)
    tempered = tempered_slopes(2.0)  # half way from 3 to 1
    means = {"gdas": enumerated(lambda edge, op: tempered[edge, op]), "dsnas": enumerated(log_probability_slope)}
    assert (np.abs(mean - means.pop(estimator)) < 4.5 * error).all()
    (other,) = means.values()
    assert (np.abs(mean - other) > 10 * error).any(), "the test can tell the estimators apart"


def test_the_temperature_falls_linearly_from_gdas_start_to_its_end():
    relaxation = build("gumbel")
    assert [relaxation.temperature(progress) for progress in (0, 0.5, 1)] == pytest.approx([10, 5.05, 0.1])


def test_gumbel_is_ranked_by_probabilities_and_evaluated_as_its_most_probable_path():
    relaxation, alphas = build("gumbel"), torch.tensor(ALPHAS)
    np.testing.assert_allclose(relaxation.weights(alphas, 0.3).numpy(), probabilities(), rtol=1e-12)
    path = relaxation.evaluated(alphas, 0.3)
    assert (path.sum(-1) == 1).all() and path.argmax(-1).tolist() == ALPHAS.argmax(-1).tolist()


# dirichlet


def concentrations(alphas=ALPHAS):
    return np.where(alphas > 0, alphas + 1, np.exp(alphas))


def test_dirichlet_draws_have_the_mean_and_the_variance_of_the_distribution():
    number, c = 200_000, concentrations()
    drawn = build("dirichlet").weights(copies(number), 0.3, generator()).detach().numpy()
    np.testing.assert_allclose(drawn.sum(-1), 1)
    total = c.sum(-1, keepdims=True)
    mean, variance = c / total, c * (total - c) / (total**2 * (total + 1))
    assert (np.abs(drawn.mean(0) - mean) < 4.5 * np.sqrt(variance / number)).all()
    np.testing.assert_allclose(drawn.var(0), variance, rtol=0.03)
    np.testing.assert_allclose(build("dirichlet").weights(torch.tensor(ALPHAS), 0.3).numpy(), mean, rtol=1e-12)


def test_the_mean_of_dirichlet_gradients_is_that_of_the_closed_form():
    """The loss is a quadratic form of an edge's weights, whose mean follows from the second moments."""
    number, form = 200_000, torch.tensor(np.random.default_rng(4).normal(size=(OPS, OPS)))
    alphas = copies(number)
    drawn = build("dirichlet").weights(alphas, 0.3, generator(1))
    (gradients,) = torch.autograd.grad(torch.einsum("nei,ij,nej->", drawn, form, drawn), alphas)
    mean, error = gradients.mean(0), gradients.std(0) / math.sqrt(number)
    exact = torch.tensor(ALPHAS, requires_grad=True)
    c = torch.where(exact > 0, exact + 1, exact.exp())
    total = c.sum(-1)
    moments = (c[:, :, None] * c[:, None, :] + torch.diag_embed(c)) / (total * (total + 1))[:, None, None]
    (expected,) = torch.autograd.grad((moments * form).sum(), exact)
    assert ((mean - expected).abs() < 4.5 * error).all() and (expected.abs() > 20 * error).any()


def test_dirichlet_stays_finite_far_out():
    alphas = torch.tensor([[-30.0, 40.0, 0.0], [-8.0, -8.0, -8.0]], requires_grad=True)
    for seed in range(50):
        drawn = build("dirichlet").weights(alphas, 0.5, generator(seed))
        (gradient,) = torch.autograd.grad(drawn.square().sum(), alphas)
        assert torch.isfinite(drawn).all() and torch.isfinite(gradient).all()


def test_the_divergence_from_the_uniform_dirichlet_is_that_of_its_formula():
    values = {"normal": torch.tensor(ALPHAS), "reduce": torch.tensor(-ALPHAS)}
    c = np.concatenate([concentrations(ALPHAS), concentrations(-ALPHAS)])
    total = c.sum(1)
    divergence = gammaln(total) - gammaln(c).sum(1) - gammaln(OPS)
    divergence += ((c - 1) * (digamma(c) - digamma(total)[:, None])).sum(1)
    got = build("dirichlet", kl_weight=0.01).regulariser(values, 0.5).item()
    assert got == pytest.approx(0.01 * divergence.sum(), rel=1e-10)
    assert build("dirichlet").regulariser(values, 0.5).item() == 0
