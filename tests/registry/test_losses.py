import numpy as np
import pytest
import torch
from torch import nn

from registry import LOSSES, Options
from registry.losses import Objective, cross_correlation
from registry.norm import BatchNorm

RNG = np.random.default_rng(11)
FIRST, SECOND = RNG.normal(size=(7, 5)) * 2 + 0.5, RNG.normal(size=(7, 5)) - 1.0


def build(name, num_classes=5, **options):
    plugin = LOSSES.get(name)
    return plugin.factory(plugin.parse_options(options), num_classes=num_classes, class_counts=[3] * num_classes)


def loss_and_gradients(objective, views, labels=None):
    tensors = [torch.tensor(view, dtype=torch.float64, requires_grad=True) for view in views]
    loss = objective.loss(tensors, None if labels is None else torch.tensor(labels))
    return loss.item(), [gradient.numpy() for gradient in torch.autograd.grad(loss, tensors)]


def finite_differences(function, views, step=1e-6):
    gradients = []
    for number, view in enumerate(views):
        gradient = np.zeros_like(view)
        for place in np.ndindex(view.shape):
            values = []
            for sign in (1, -1):
                moved = [other.copy() for other in views]
                moved[number][place] += sign * step
                values.append(function(*moved))
            gradient[place] = (values[0] - values[1]) / (2 * step)
        gradients.append(gradient)
    return gradients


def cross_entropy(scores, labels, smoothing):
    """By its definition: the target has (1 - s) on the label and s spread over all classes."""
    total = 0.0
    for row, label in zip(scores, labels, strict=True):
        log_p = row - row.max() - np.log(np.exp(row - row.max()).sum())
        target = np.full(len(row), smoothing / len(row))
        target[label] += 1 - smoothing
        total -= (target * log_p).sum()
    return total / len(labels)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_cross_entropy_and_its_gradient_follow_the_definition(smoothing):
    labels = [0, 1, 2, 3, 4, 4, 4]
    value, (gradient,) = loss_and_gradients(build("ce", label_smoothing=smoothing), [FIRST], labels)
    assert value == pytest.approx(cross_entropy(FIRST, labels, smoothing), rel=1e-12)
    (expected,) = finite_differences(lambda scores: cross_entropy(scores, labels, smoothing), [FIRST])
    np.testing.assert_allclose(gradient, expected, atol=1e-8)


def barlow(first, second, lambda_, centred, scale=1.0):
    """Eq. 8 entry by entry; Eq. 9 as written, or of dimensions standardised over the batch (eps 1e-5)."""
    num, dims = first.shape
    if centred:
        first, second = ((z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) for z in (first, second))
    total = 0.0
    for i in range(dims):
        for j in range(dims):
            if centred:
                c = sum(first[b, i] * second[b, j] for b in range(num)) / num
            else:
                norms = np.sqrt((first[:, i] ** 2).sum()) * np.sqrt((second[:, j] ** 2).sum())
                c = sum(first[b, i] * second[b, j] for b in range(num)) / norms
            total += (c - 1) ** 2 if i == j else lambda_ * c**2
    return scale * total


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(("lambda_", "scale"), [(0.0051, 1.0), (0.5, 0.1)])
def test_barlow_and_its_gradient_follow_eq_8_and_9(centred, lambda_, scale):
    objective = build("barlow", centred=centred, scale=scale, **{"lambda": lambda_})
    value, gradients = loss_and_gradients(objective, [FIRST, SECOND])
    direct = lambda first, second: barlow(first, second, lambda_, centred, scale)
    assert value == pytest.approx(direct(FIRST, SECOND), rel=1e-12)
    for got, expected in zip(gradients, finite_differences(direct, [FIRST, SECOND]), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-7)
        assert np.abs(expected).max() > 1e-4


def test_centred_and_uncentred_differ_where_the_means_are_not_zero():
    assert abs(barlow(FIRST, SECOND, 0.5, True) - barlow(FIRST, SECOND, 0.5, False)) > 0.1


def test_barlow_is_zero_for_equal_views_with_uncorrelated_dimensions():
    views = [np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])] * 2
    for centred in (True, False):
        assert loss_and_gradients(build("barlow", centred=centred), views)[0] == pytest.approx(0, abs=1e-8)


def test_the_correlation_divides_by_the_actual_batch():
    for num in (2, 3, 7):
        z = torch.tensor(FIRST[:num])
        assert torch.diagonal(cross_correlation(z, z, centred=True)).numpy() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("centred", [True, False])
def test_a_batch_of_one_is_refused(centred):
    one = torch.ones(1, 4)
    with pytest.raises(ValueError, match="needs at least 2 images"):
        build("barlow", centred=centred).loss([one, one], None)


def test_a_constant_dimension_gives_a_finite_loss_and_gradient():
    flat = FIRST.copy()
    flat[:, 2] = 3.0
    for centred in (True, False):
        value, gradients = loss_and_gradients(build("barlow", centred=centred), [flat, SECOND])
        assert np.isfinite(value) and all(np.isfinite(gradient).all() for gradient in gradients)


def test_the_heads_are_those_of_the_papers():
    head = build("barlow", projector_dim=6).build_head(4)
    kinds = [type(layer) for layer in head]
    assert kinds == [nn.Linear, BatchNorm, nn.ReLU, nn.Linear, BatchNorm, nn.ReLU, nn.Linear]
    assert [layer.weight.shape for layer in head if isinstance(layer, nn.Linear)] == [(6, 4), (6, 6), (6, 6)]
    assert all(layer.bias is None for layer in head if isinstance(layer, nn.Linear))
    assert build("ce", num_classes=3).build_head(4).weight.shape == (3, 4)


def test_objectives_say_what_they_need():
    ce, self_supervised = build("ce"), build("barlow")
    assert (ce.num_views, ce.head) == (1, "linear")
    assert (self_supervised.num_views, self_supervised.head) == (2, "projector")
    assert (self_supervised.options.lambda_, self_supervised.options.centred) == (0.0051, True)


def test_a_loss_sees_how_far_training_is_and_one_of_an_older_form_still_works():
    class New(Objective):
        def loss(self, outputs, labels, progress=1.0):
            return outputs[0].sum() * progress

    class Old(Objective):
        def loss(self, outputs, labels):
            return outputs[0].sum()

    class Any(Objective):
        def loss(self, outputs, labels, **more):
            return outputs[0].sum() * more["progress"]

    values = [kind(Options(), 2, [1, 1])([torch.ones(1, 2)], torch.zeros(1), 0.25).item() for kind in (New, Old, Any)]
    assert values == [0.5, 2.0, 0.5]


def test_a_loss_gets_float32_from_heads_of_any_precision_and_a_tuple_as_a_tuple():
    seen = []

    class Spy(Objective):
        num_views = 2

        def loss(self, outputs, labels, progress=1.0):
            seen.extend(outputs), seen.append(labels)
            return outputs[0].sum()

    half = torch.ones(2, 3, dtype=torch.bfloat16)
    Spy(Options(), 2, [1, 1])([half, (half, half)], torch.zeros(2), 0.0)
    assert seen[0].dtype == torch.float32 and [part.dtype for part in seen[1]] == [torch.float32] * 2
    assert seen[2] is None, "a self-supervised loss never sees the labels"


def test_an_older_name_of_the_linear_head_still_works():
    class Old(Objective):
        head = "classifier"

        def loss(self, outputs, labels):
            return outputs[0].sum()

    head = Old(Options(), 4, [1] * 4).build_head(8)
    assert (head.in_features, head.out_features) == (8, 4)
