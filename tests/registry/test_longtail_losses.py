"""Every loss for long-tailed data and its gradient against a slow float64 computation, and the identities."""

import numpy as np
import pytest
import torch

from registry import LOSSES, PluginError

COUNTS = [50, 20, 9, 4, 1]
LABELS = [0, 1, 2, 3, 4, 4, 0]
SCORES = np.random.default_rng(5).normal(size=(7, 5)) * 2


def build(name, counts=COUNTS, **options):
    plugin = LOSSES.get(name)
    return plugin.factory(plugin.parse_options(options), num_classes=len(counts), class_counts=counts)


def evaluate(objective, scores=SCORES, progress=1.0):
    tensor = torch.tensor(scores, dtype=torch.float64, requires_grad=True)
    loss = objective([tensor], torch.tensor(LABELS), progress)
    return loss.item(), torch.autograd.grad(loss, tensor)[0].numpy()


def differences(function, scores=SCORES, step=1e-6):
    gradient = np.zeros_like(scores)
    for place in np.ndindex(scores.shape):
        ends = []
        for sign in (1, -1):
            moved = scores.copy()
            moved[place] += sign * step
            ends.append(function(moved))
        gradient[place] = (ends[0] - ends[1]) / (2 * step)
    return gradient


def log_p(row):
    return row - row.max() - np.log(np.exp(row - row.max()).sum())


def mean_over_images(of_image):
    """A loss from a function of an image's scores and label."""
    return lambda scores: sum(of_image(row, y) for row, y in zip(scores, LABELS, strict=True)) / len(LABELS)


def normalised(raw):
    return np.array(raw) * len(raw) / sum(raw)


def inverse(counts=COUNTS):
    return normalised([1 / n for n in counts])


def effective(beta, counts=COUNTS):
    return normalised([(1 - beta) / (1 - beta**n) for n in counts])


def ce(row, y):
    return -log_p(row)[y]


def focal(gamma, weights=None):
    weights = np.ones(5) if weights is None else weights
    return mean_over_images(lambda row, y: weights[y] * (1 - np.exp(log_p(row)[y])) ** gamma * ce(row, y))


def ldam(weights, scale=30.0, largest=0.5):
    margins = np.array([n**-0.25 for n in COUNTS])
    margins *= largest / margins.max()

    def of_image(row, y):
        row = row.copy()
        row[y] -= scale * margins[y]
        return weights[y] * ce(row, y)

    return mean_over_images(of_image)


def adjusted(tau):
    shift = tau * np.log(np.array(COUNTS) / sum(COUNTS))
    return mean_over_images(lambda row, y: ce(row + shift, y))


def smoothed(head, tail):
    low, high = min(COUNTS), max(COUNTS)

    def of_image(row, y):
        eps = tail + (head - tail) * np.sin(np.pi * (COUNTS[y] - low) / (2 * (high - low)))
        target = np.full(5, eps / 5)
        target[y] += 1 - eps
        return -(target * log_p(row)).sum()

    return mean_over_images(of_image)


def smooth_ce(row, y, eps):
    return -((1 - eps) * log_p(row)[y] + eps * log_p(row).mean())


def smooth_ldam(eps):
    margins = 0.5 * np.array([n**-0.25 for n in COUNTS])  # the smallest class has one image, so the largest is 0.5
    return mean_over_images(lambda row, y: smooth_ce(row - 30 * margins[y] * np.eye(5)[y], y, eps))


CASES = [
    ("inverse_frequency", {}, mean_over_images(lambda row, y: inverse()[y] * ce(row, y))),
    ("class_balanced", {"beta": 0.9}, mean_over_images(lambda row, y: effective(0.9)[y] * ce(row, y))),
    ("class_balanced", {}, mean_over_images(lambda row, y: effective(0.9999)[y] * ce(row, y))),
    ("focal", {"gamma": 2}, focal(2)),
    ("focal", {"gamma": 0.5, "weights": "inverse_frequency"}, focal(0.5, inverse())),
    ("focal", {"gamma": 1.5, "weights": "class_balanced", "beta": 0.8}, focal(1.5, effective(0.8))),
    ("ldam", {}, ldam(np.ones(5))),
    ("ldam", {"weights": "class_balanced", "max_margin": 0.2, "scale": 10}, ldam(effective(0.9999), 10, 0.2)),
    ("logit_adjusted", {}, adjusted(1)),
    ("logit_adjusted", {"tau": 2.5}, adjusted(2.5)),
    ("balanced_softmax", {}, mean_over_images(lambda row, y: ce(row + np.log(COUNTS), y))),
    ("inverse_frequency", {"label_smoothing": 0.2}, mean_over_images(lambda r, y: inverse()[y] * smooth_ce(r, y, 0.2))),
    (
        "class_balanced",
        {"beta": 0.9, "label_smoothing": 0.1},
        mean_over_images(lambda row, y: effective(0.9)[y] * smooth_ce(row, y, 0.1)),
    ),
    ("ldam", {"label_smoothing": 0.1}, smooth_ldam(0.1)),
    ("label_aware_smoothing", {}, smoothed(0.1, 0.0)),
    ("label_aware_smoothing", {"head": 0.4, "tail": 0.1}, smoothed(0.4, 0.1)),
]


@pytest.mark.parametrize(
    ("name", "options", "direct"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_the_loss_and_its_gradient_follow_the_definition(name, options, direct):
    value, gradient = evaluate(build(name, **options))
    assert value == pytest.approx(direct(SCORES), rel=1e-10)
    np.testing.assert_allclose(gradient, differences(direct), atol=1e-7)


def ghm_weights(scores, bins):
    """N / GD(g) of every score: GD is the count of the bin over the bin's width."""
    norms = np.array(
        [
            [abs(1 / (1 + np.exp(-z)) - (c == y)) for c, z in enumerate(row)]
            for row, y in zip(scores, LABELS, strict=True)
        ]
    )
    place = np.minimum((norms * bins).astype(int), bins - 1)
    return np.array(
        [[norms.size / ((place == place[i, c]).sum() * bins) for c in range(5)] for i in range(len(LABELS))]
    )


@pytest.mark.parametrize("bins", [1, 10, 30])
def test_ghm_weighs_by_the_density_of_the_batch_and_lets_no_gradient_through_it(bins):
    weights = ghm_weights(SCORES, bins)

    def direct(scores):
        total = 0.0
        for i, (row, y) in enumerate(zip(scores, LABELS, strict=True)):
            for c, z in enumerate(row):
                p = 1 / (1 + np.exp(-z))
                total -= weights[i, c] * np.log(p if c == y else 1 - p)
        return total / scores.size

    value, gradient = evaluate(build("ghm", bins=bins))
    assert value == pytest.approx(direct(SCORES), rel=1e-10)
    np.testing.assert_allclose(gradient, differences(direct), atol=1e-8)
    assert bins == 1 or np.ptp(weights) > 0.5


def test_ghm_takes_a_gradient_of_one_into_the_last_bin():
    value, gradient = evaluate(build("ghm"), np.full((7, 5), 800.0))
    assert np.isfinite(value) and np.isfinite(gradient).all()


# Identities

PLAIN = evaluate(build("ce"))
UNIFORM = [8] * 5


def is_plain(objective, progress=1.0):
    value, gradient = evaluate(objective, progress=progress)
    return value == pytest.approx(PLAIN[0], rel=1e-12) and np.allclose(gradient, PLAIN[1], rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("logit_adjusted", {"tau": 0}),
        ("focal", {"gamma": 0}),
        ("class_balanced", {"beta": 0}),
        ("ldam", {"max_margin": 0}),
    ],
)
def test_the_option_that_switches_a_loss_off_makes_it_cross_entropy(name, options):
    assert is_plain(build(name, **options))


@pytest.mark.parametrize("name", ["inverse_frequency", "class_balanced", "logit_adjusted", "balanced_softmax"])
def test_with_equal_counts_there_is_nothing_to_correct(name):
    assert is_plain(build(name, UNIFORM)) and not is_plain(build(name))


def test_balanced_softmax_is_logit_adjustment_at_tau_one():
    one, other = evaluate(build("balanced_softmax")), evaluate(build("logit_adjusted"))
    assert one[0] == pytest.approx(other[0], rel=1e-12)
    np.testing.assert_allclose(one[1], other[1], atol=1e-14)


def test_margins_are_larger_for_smaller_classes_and_equal_for_equal_ones():
    margins = build("ldam").margins()
    assert margins[-1] == 0.5 and (np.diff(margins) > 0).all()
    np.testing.assert_allclose(build("ldam", UNIFORM).margins(), 0.5)


def test_smoothing_runs_from_the_tails_to_the_heads_and_equal_classes_have_the_heads():
    smoothing = build("label_aware_smoothing", head=0.4, tail=0.1).smoothing()
    assert smoothing[0] == pytest.approx(0.4) and smoothing[-1] == pytest.approx(0.1)
    np.testing.assert_allclose(build("label_aware_smoothing", UNIFORM, head=0.4).smoothing(), 0.4)


@pytest.mark.parametrize("name", ["inverse_frequency", "class_balanced"])
def test_a_deferred_loss_is_cross_entropy_until_its_share_of_the_training(name):
    late = build(name, defer=0.8)
    assert is_plain(late, 0.0) and is_plain(late, 31.9 / 40) and not is_plain(late, 32 / 40)
    assert evaluate(late, progress=0.9)[0] == evaluate(build(name))[0]


@pytest.mark.parametrize("name", ["focal", "ldam", "ghm"])
def test_what_a_loss_does_beside_its_class_weights_is_not_deferred_but_ghms_density_is(name):
    weights = {} if name == "ghm" else {"weights": "inverse_frequency"}
    late, without = build(name, defer=0.5, **weights), build(name)
    early = evaluate(late, progress=0.49)[0]
    if name == "ghm":
        bce = torch.nn.functional.binary_cross_entropy_with_logits
        target = torch.nn.functional.one_hot(torch.tensor(LABELS)).double()
        assert early == pytest.approx(bce(torch.tensor(SCORES), target).item())
    else:
        assert early == pytest.approx(evaluate(without)[0])
    assert evaluate(late, progress=0.5)[0] != pytest.approx(early)


@pytest.mark.parametrize("gamma", [0.3, 1.0, 4.0])
def test_focal_is_finite_where_the_probability_is_one(gamma):
    sure = np.full((7, 5), -900.0)
    sure[range(7), LABELS] = 900.0
    value, gradient = evaluate(build("focal", gamma=gamma), sure)
    assert value == 0 and np.isfinite(gradient).all()


@pytest.mark.parametrize("name", [name for name, *_ in CASES] + ["ghm"])
def test_a_class_without_images_makes_nothing_infinite(name):
    value, gradient = evaluate(build(name, [50, 20, 9, 4, 0]))
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_shifted_scores_have_the_bayes_rule_of_the_balanced_distribution():
    """Trained on p(x, y), the scores of logit adjustment at tau 1 are those for equally frequent classes."""
    rng = np.random.default_rng(1)
    likelihood = rng.dirichlet(np.ones(6), size=3)  # p(x | y): 3 classes, 6 values of x
    prior = np.array([0.8, 0.15, 0.05])
    joint = torch.tensor(likelihood * prior[:, None])  # [C, X]
    counts = [800, 150, 50]
    scores = torch.zeros(6, 3, dtype=torch.float64, requires_grad=True)
    objective, points = build("logit_adjusted", counts), [(x, y) for x in range(6) for y in range(3)]
    optimizer = torch.optim.LBFGS([scores], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-15)

    def closure():
        optimizer.zero_grad()
        loss = sum(joint[y, x] * objective([scores[x : x + 1]], torch.tensor([y]), 1.0) for x, y in points)
        loss.backward()
        return loss

    optimizer.step(closure)
    balanced = likelihood / likelihood.sum(0)
    np.testing.assert_allclose(scores.detach().softmax(1).numpy(), balanced.T, atol=1e-4)
    plain = np.log(likelihood * prior[:, None]).T  # the scores of cross-entropy, corrected afterwards
    assert (np.argmax(plain - np.log(prior), 1) == scores.detach().numpy().argmax(1)).all()


def test_even_smoothing_stays_even_under_class_weights_and_would_not_under_a_shift():
    """Why the re-weighted losses take it and the shifted ones do not: the scores of least risk, by hand."""
    posterior, eps = np.array([0.9, 0.09, 0.01, 0.0, 0.0]), 0.1  # of one image

    def risk(scores):
        row = torch.stack([scores])
        return sum(p * objective([row], torch.tensor([y]), 1.0) for y, p in enumerate(posterior))

    objective = build("inverse_frequency", label_smoothing=eps)
    scores = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([scores], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-15)

    def closure():
        optimizer.zero_grad()
        loss = risk(scores)
        loss.backward()
        return loss

    optimizer.step(closure)
    weighted = inverse() * posterior
    expected = (1 - eps) * weighted / weighted.sum() + eps / 5
    np.testing.assert_allclose(scores.detach().softmax(0).numpy(), expected, atol=1e-6)
    prior = np.array(COUNTS) / sum(COUNTS)
    shifted = np.log(((1 - eps) * posterior + eps / 5) / prior)
    assert shifted.argmax() == 4 and posterior[4] == 0, "the rarest class wins on an image that is never of it"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("focal", "its factor is of the label's probability"),
        ("ghm", "distance from a target of 0 or 1"),
        (
            "logit_adjusted",
            "high scores of rare classes on every image; ce, inverse_frequency, class_balanced and ldam",
        ),
        ("balanced_softmax", "high scores of rare classes"),
        ("label_aware_smoothing", "loss.head and loss.tail are its smoothing"),
    ],
)
def test_a_loss_that_even_smoothing_does_not_suit_says_why_it_has_none(name, words):
    with pytest.raises(PluginError, match=f"'{name}' has no option 'label_smoothing': .*{words}"):
        build(name, label_smoothing=0.1)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("logit_adjusted", {"tau": -1}, "'tau' of 'logit_adjusted'.*greater than or equal to 0"),
        ("class_balanced", {"beta": 1}, "'beta' of 'class_balanced'.*less than 1"),
        ("inverse_frequency", {"defer": 1}, "'defer' of 'inverse_frequency'.*less than 1"),
        ("focal", {"weights": "inverse"}, "'weights' of 'focal'"),
        ("label_aware_smoothing", {"head": 1}, "'head' of"),
        ("balanced_softmax", {"tau": 1}, "has no option 'tau'"),
    ],
)
def test_options_out_of_range_are_refused_in_one_line(name, options, words):
    with pytest.raises(PluginError, match=words):
        build(name, **options)
