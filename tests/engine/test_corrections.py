"""The mathematics of corrections, against Bayes's rule where everything is known, and against slow direct code."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from registry import LOSSES, SAMPLERS
from registry.balance import power_of_prior
from registry.core import Options
from registry.losses import Objective
from ssfnas_cli.engine.corrections import (
    COLDEST,
    HOTTEST,
    TAUS,
    balanced_accuracy,
    choose_tau,
    choose_temperature,
    likelihood_shift,
    negative_log_likelihood,
    prior_shift,
    tau_normalised,
)

# How many images of each class look like each of five pictures: 60, 20 and 5 images of three classes.
TABLE = np.array([[30, 2, 1], [12, 1, 1], [10, 12, 1], [6, 4, 1], [2, 1, 1]])
COUNTS = TABLE.sum(0)


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def bayes(table, prior):
    """The posterior of the classes under a prior, for every picture, by Bayes's rule."""
    joint = table / table.sum(0) * prior
    return joint / joint.sum(1, keepdims=True)


def loss_named(name, options=None, counts=COUNTS):
    plugin = LOSSES.get(name)
    return plugin.factory(plugin.parse_options(options), num_classes=len(counts), class_counts=list(counts))


def trained(objective):
    """The logits of every picture that minimise the loss over all images, in float64."""
    pictures = torch.from_numpy(np.repeat(np.arange(5), TABLE.sum(1)))
    labels = torch.from_numpy(np.concatenate([np.repeat(np.arange(3), row) for row in TABLE]))
    logits = torch.zeros(5, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = objective([logits[pictures]], labels, 1.0)
        loss.backward()
        return loss

    optimizer.step(closure)
    return logits.detach().numpy()


UNIFORM = np.full(3, 1 / 3)


@pytest.mark.parametrize(
    ("name", "options", "tau"),
    [("ce", {}, 0), ("logit_adjusted", {"tau": 0.4}, 0.4), ("logit_adjusted", {"tau": 1.7}, 1.7)],
)
def test_an_adjusted_loss_and_a_post_hoc_adjustment_give_the_same_bayes_rule(name, options, tau):
    objective = loss_named(name, options)
    logits, held = trained(objective), objective.held_prior()
    np.testing.assert_allclose(softmax(logits), bayes(TABLE, held), atol=1e-6)
    assert held == pytest.approx((COUNTS / 85) ** (1 - tau) / ((COUNTS / 85) ** (1 - tau)).sum())
    corrected = logits + prior_shift(held, 1)
    np.testing.assert_allclose(softmax(corrected), bayes(TABLE, UNIFORM), atol=1e-6)
    np.testing.assert_allclose(softmax(corrected), softmax(trained(loss_named("balanced_softmax"))), atol=1e-6)
    partly = logits + prior_shift(held, 0.3)
    np.testing.assert_allclose(softmax(partly), bayes(TABLE, power_of_prior(held, 0.7)), atol=1e-6)


def test_the_uniform_prior_is_what_balanced_losses_hold():
    for objective in (loss_named("balanced_softmax"), loss_named("logit_adjusted", {"tau": 1})):
        assert objective.held_prior() == pytest.approx(UNIFORM)


def test_what_re_weighting_margins_and_plugins_hold_is_not_known():
    for name in ("inverse_frequency", "class_balanced", "focal", "ghm", "ldam", "label_aware_smoothing"):
        assert loss_named(name).held_prior() is None, name
    assert loss_named("ce", {"label_smoothing": 0.1}).held_prior() is None

    class Plain(Objective):
        def loss(self, outputs, labels, progress=1.0):
            return outputs[0].sum()

    assert Plain(Options(), 3, [3, 2, 1]).held_prior() is None


def test_of_all_samplers_only_the_one_that_shows_every_image_keeps_the_prior():
    keep = {}
    for name in SAMPLERS.names():
        plugin = SAMPLERS.get(name)
        keep[name] = plugin.factory(plugin.parse_options(), class_counts=[5, 4]).keeps_prior
    assert [name for name, kept in keep.items() if kept] == ["instance"] and len(keep) > 4


def test_extreme_exponents_of_a_prior_stay_positive_and_finite():
    for exponent in (-400, 400):
        prior = power_of_prior([0.999, 0.001], exponent)
        assert (prior > 0).all() and prior.sum() == pytest.approx(1)
    assert power_of_prior([0.9, 0.1], 1) == pytest.approx([0.9, 0.1]) and power_of_prior([0.9, 0.1], 0) == (
        pytest.approx([0.5, 0.5])
    )


def test_class_vectors_are_divided_by_their_norms_to_a_power():
    weight = np.random.default_rng(0).normal(size=(4, 6))
    for tau in (0.0, 0.5, 1.0, 2.0):
        for c, vector in enumerate(weight):
            norm = math.sqrt(sum(value**2 for value in vector))
            assert tau_normalised(weight, tau)[c] == pytest.approx([value / norm**tau for value in vector])
    assert np.array_equal(tau_normalised(weight, 0), weight)
    assert not tau_normalised(np.zeros((2, 3)), 1).any()


# Choosing tau


def test_balanced_accuracy_is_the_mean_over_the_classes_that_there_are():
    labels, predicted = np.array([0, 0, 0, 0, 2, 2]), np.array([0, 0, 0, 1, 2, 0])
    assert balanced_accuracy(predicted, labels) == pytest.approx((75 + 50) / 2)


def test_tau_is_the_one_of_the_best_balanced_accuracy():
    rng = np.random.default_rng(1)
    labels = rng.choice(3, 400, p=COUNTS / 85)
    logits = rng.normal(size=(400, 3)) + np.log(COUNTS / 85) + 1.5 * np.eye(3)[labels]
    choice = choose_tau(lambda tau: logits + prior_shift(COUNTS / 85, tau), labels)
    slow = {}
    for tau in TAUS:
        right, total = [0] * 3, [0] * 3
        for row, label in zip(logits, labels, strict=True):
            adjusted = [z - tau * math.log(n / 85) for z, n in zip(row, COUNTS, strict=True)]
            total[label] += 1
            right[label] += int(np.argmax(adjusted)) == label
        slow[tau] = 100 * sum(r / t for r, t in zip(right, total, strict=True)) / 3
    assert dict(choice.curve) == pytest.approx(slow)
    best = [tau for tau in TAUS if slow[tau] >= max(slow.values()) - 1e-9]
    assert choice.value in best and abs(choice.value - 1) == min(abs(tau - 1) for tau in best)
    assert (choice.setting, choice.criterion, TAUS[0], TAUS[-1]) == ("tau", "balanced_accuracy", 0, 3)


def test_where_no_tau_is_better_it_is_1():
    logits, labels = np.eye(2) * 9, np.array([0, 1])
    assert choose_tau(lambda tau: logits, labels).value == 1


def test_the_largest_tau_says_that_a_better_one_may_lie_beyond():
    labels = np.array([0, 0, 0, 1])
    logits = np.array([[9.0, 0], [9, 0], [9, 0], [8, 0]])
    choice = choose_tau(lambda tau: logits - np.array([tau * 2.68, 0]), labels)
    assert choice.value == 3 and choice.at_the_end


# Choosing the temperature


def drawn(num, posterior, rng):
    """Labels that are drawn from posteriors [N, C]."""
    return (posterior.cumsum(1) < rng.random((num, 1))).sum(1)


def test_the_temperature_minimises_the_likelihood_as_a_direct_search_does():
    rng = np.random.default_rng(2)
    logits, shift = rng.normal(size=(300, 4)) * 4, np.array([0.3, -0.2, 0.0, 0.9])
    labels = drawn(300, softmax(logits / 2.5), rng)
    choice = choose_temperature(logits, labels, shift)

    def direct(temperature):
        total = 0.0
        for row, label in zip(logits / temperature + shift, labels, strict=True):
            total += math.log(sum(math.exp(value) for value in row)) - row[label]
        return total / len(labels)

    found = minimize_scalar(direct, bounds=(0.5, 10), method="bounded", options={"xatol": 1e-10})
    assert choice.value == pytest.approx(found.x, rel=1e-6)
    assert dict(choice.curve)[choice.value] == pytest.approx(found.fun, rel=1e-12)
    assert min(value for _, value in choice.curve) == dict(choice.curve)[choice.value] and not choice.at_the_end
    assert negative_log_likelihood(logits + shift, labels) == pytest.approx(direct(1.0), rel=1e-12)


def test_the_temperature_of_overconfident_outputs_is_found():
    rng = np.random.default_rng(3)
    true = rng.normal(size=(20_000, 5)) * 2
    labels = drawn(20_000, softmax(true), rng)
    assert choose_temperature(3 * true, labels, np.zeros(5)).value == pytest.approx(3, rel=0.05)


def test_outputs_that_hold_another_prior_than_the_images_are_calibrated_under_theirs():
    rng = np.random.default_rng(4)
    counts = np.array([900, 90, 10])
    under_uniform = rng.normal(size=(30_000, 3)) * 2
    under_counts = under_uniform + np.log(counts / 1000)
    labels = drawn(30_000, softmax(under_counts), rng)
    shift = likelihood_shift(UNIFORM, counts.tolist())
    assert choose_temperature(2 * under_uniform, labels, shift).value == pytest.approx(2, rel=0.05)
    assert choose_temperature(2 * under_uniform, labels, np.zeros(3)).value > 3, "the plain likelihood is misled"
    assert not likelihood_shift(None, counts.tolist()).any()
    same = likelihood_shift((counts / 1000).tolist(), counts.tolist())
    assert same == pytest.approx([0, 0, 0], abs=1e-12)


def test_a_temperature_without_an_optimum_ends_at_its_bounds():
    logits = np.array([[4.0, 0.0], [0.0, 4.0]])
    right, wrong = (choose_temperature(logits, np.array(labels), np.zeros(2)) for labels in ([0, 1], [1, 0]))
    assert (right.value, wrong.value) == (COLDEST, HOTTEST) and right.at_the_end and wrong.at_the_end
