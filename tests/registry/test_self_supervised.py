import numpy as np
import pytest
import torch

from registry import LOSSES

RNG = np.random.default_rng(3)
FIRST, SECOND = RNG.normal(size=(6, 4)) * 0.7, RNG.normal(size=(6, 4)) * 0.4 + 1


def build(name, **options):
    plugin = LOSSES.get(name)
    return plugin.factory(plugin.parse_options(options), num_classes=3, class_counts=[3, 3, 3])


def vicreg_terms(first, second):
    num, dims = first.shape
    invariance = sum((first[b, d] - second[b, d]) ** 2 for b in range(num) for d in range(dims)) / (num * dims)
    variance = covariance = 0.0
    for z in (first, second):
        mean = z.mean(0)
        cov = np.zeros((dims, dims))
        for b in range(num):
            cov += np.outer(z[b] - mean, z[b] - mean) / (num - 1)
        variance += sum(max(0.0, 1 - np.sqrt(cov[d, d] + 1e-4)) for d in range(dims)) / dims / 2
        covariance += sum(cov[i, j] ** 2 for i in range(dims) for j in range(dims) if i != j) / dims
    return invariance, variance, covariance


def value_and_gradients(objective, views):
    tensors = [torch.tensor(view, requires_grad=True) for view in views]
    loss = objective(tensors, None, 1.0)
    return loss.item(), [gradient.numpy() for gradient in torch.autograd.grad(loss, tensors)]


@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
def test_vicregs_three_terms_and_their_gradient_follow_the_definition(weights):
    direct = lambda *views: float(np.dot(weights, vicreg_terms(*views)))
    objective = build("vicreg", **dict(zip(("invariance", "variance", "covariance"), weights, strict=True)))
    value, gradients = value_and_gradients(objective, (FIRST, SECOND))
    assert value == pytest.approx(direct(FIRST, SECOND), rel=1e-10)
    assert value > 1e-3, "each term says something here"
    for number, gradient in enumerate(gradients):
        for place in np.ndindex(FIRST.shape):
            ends = []
            for step in (1e-6, -1e-6):
                views = [FIRST.copy(), SECOND.copy()]
                views[number][place] += step
                ends.append(direct(*views))
            assert gradient[place] == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-6)


def test_vicreg_takes_a_constant_dimension_and_refuses_a_single_image():
    flat = FIRST.copy()
    flat[:, 1] = 2.0
    value, gradients = value_and_gradients(build("vicreg"), (flat, SECOND))
    assert np.isfinite(value) and all(np.isfinite(gradient).all() for gradient in gradients)
    with pytest.raises(ValueError, match="at least 2 images"):
        build("vicreg").loss([torch.ones(1, 4)] * 2, None)


def test_simsiam_is_the_mean_of_both_negative_cosines_and_stops_the_gradient_of_what_is_predicted():
    parts = [torch.tensor(RNG.normal(size=(5, 4)), requires_grad=True) for _ in range(4)]
    z1, p1, z2, p2 = parts
    loss = build("simsiam")([(z1, p1), (z2, p2)], None, 1.0)
    cosine = lambda a, b: float(a @ b / np.sqrt(a @ a) / np.sqrt(b @ b))
    rows = [tuple(part.detach().numpy()[k] for part in parts) for k in range(5)]
    expected = sum(-cosine(b, c) / 2 - cosine(d, a) / 2 for a, b, c, d in rows) / 5
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    gradients = torch.autograd.grad(loss, parts, allow_unused=True)
    assert gradients[0] is None and gradients[2] is None, "no gradient through the projections"
    assert all(gradient.abs().max() > 1e-3 for gradient in (gradients[1], gradients[3]))


def test_simsiams_projector_learns_through_its_own_predictions_only():
    objective = build("simsiam", projector_dim=8, predictor_dim=3)
    head = objective.build_head(5).double()
    views = [torch.tensor(RNG.normal(size=(6, 5))) for _ in range(2)]
    objective([head(view) for view in views], None, 1.0).backward()
    got = head.projector[0].weight.grad.clone()
    head.zero_grad()
    (_, p1), (_, p2) = (head(view) for view in views)
    with torch.no_grad():
        fixed = [head(view)[0] for view in views]
    other = [torch.nn.functional.normalize(z, dim=1) for z in fixed]
    own = [torch.nn.functional.normalize(p, dim=1) for p in (p1, p2)]
    (-(own[0] * other[1]).sum(1).mean() / 2 - (own[1] * other[0]).sum(1).mean() / 2).backward()
    torch.testing.assert_close(got, head.projector[0].weight.grad)


@pytest.mark.parametrize(
    ("name", "reads", "head"), [("vicreg", "projections", "projector"), ("simsiam", "pairs", "predictor")]
)
def test_what_they_need(name, reads, head):
    objective = build(name)
    assert (objective.num_views, objective.supervised, objective.reads, objective.default_head) == (
        2,
        False,
        reads,
        head,
    )
