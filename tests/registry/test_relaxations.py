import numpy as np
import pytest
import torch

from registry import RELAXATIONS

RNG = np.random.default_rng(3)
ALPHAS = {"normal": RNG.normal(size=(14, 8)), "reduce": RNG.normal(size=(14, 8))}


def build(name, **options):
    plugin = RELAXATIONS.get(name)
    return plugin.factory(plugin.parse_options(options))


def tensors(values=ALPHAS):
    return {kind: torch.tensor(alphas, dtype=torch.float64, requires_grad=True) for kind, alphas in values.items()}


def sigma(x):
    return 1 / (1 + np.exp(-x))


def test_softmax_weights_are_darts_eq_1():
    exp = np.exp(ALPHAS["normal"])
    got = build("softmax").weights(tensors()["normal"], 0.3)
    np.testing.assert_allclose(got.detach().numpy(), exp / exp.sum(axis=1, keepdims=True), rtol=1e-12)


def test_sigmoid_weights_are_fairdarts_eq_5():
    got = build("sigmoid").weights(tensors()["normal"], 0.3)
    np.testing.assert_allclose(got.detach().numpy(), sigma(ALPHAS["normal"]), rtol=1e-12)


def test_mixing_weights_are_stable_for_huge_alphas():
    alphas = torch.tensor([[1000.0, 0.0], [-1000.0, 0.0]])
    assert build("softmax").weights(alphas, 0).tolist() == [[1, 0], [0, 1]]
    assert build("sigmoid").weights(alphas, 0).tolist() == [[1, 0.5], [0, 0.5]]


def zero_one(values, form, weight):
    """-weight * the mean over every sigmoid of both cell types, and its gradient, in numpy."""
    number = sum(alphas.size for alphas in values.values())
    total, gradients = 0.0, {}
    for kind, alphas in values.items():
        s = sigma(alphas)
        slope = s * (1 - s)
        if form == "l1":
            total += np.abs(s - 0.5).sum()
            gradients[kind] = -weight / number * np.sign(s - 0.5) * slope
        else:
            total += ((s - 0.5) ** 2).sum()
            gradients[kind] = -weight / number * 2 * (s - 0.5) * slope
    return -weight * total / number, gradients


@pytest.mark.parametrize("form", ["l1", "l2"])
@pytest.mark.parametrize("weight", [10.0, 0.7])
def test_the_zero_one_loss_and_its_gradient_are_the_papers(form, weight):
    alphas = tensors()
    loss = build("sigmoid", zero_one=form, zero_one_weight=weight).regulariser(alphas, 1.0)
    value, gradients = zero_one(ALPHAS, form, weight)
    assert loss.item() == pytest.approx(value, rel=1e-12)
    for kind, got in zip(alphas, torch.autograd.grad(loss, list(alphas.values())), strict=True):
        np.testing.assert_allclose(got.numpy(), gradients[kind], rtol=1e-10)


@pytest.mark.parametrize("form", ["l1", "l2"])
def test_the_zero_one_gradient_agrees_with_finite_differences(form):
    relaxation, step = build("sigmoid", zero_one=form), 1e-6
    alphas = tensors()
    (gradient,) = torch.autograd.grad(relaxation.regulariser(alphas, 1.0), [alphas["reduce"]])
    for place in [(0, 0), (5, 3), (13, 7)]:
        moved = {}
        for sign in (1, -1):
            values = {kind: value.copy() for kind, value in ALPHAS.items()}
            values["reduce"][place] += sign * step
            moved[sign] = relaxation.regulariser(tensors(values), 1.0).item()
        assert gradient[place].item() == pytest.approx((moved[1] - moved[-1]) / (2 * step), rel=1e-6)


def test_the_weight_multiplies_the_mean_over_both_cells_not_over_one():
    values = {"normal": np.full((14, 8), 50.0), "reduce": np.zeros((14, 8))}
    loss = build("sigmoid").regulariser(tensors(values), 1.0)
    assert loss.item() == pytest.approx(-10 * 0.25)  # half of the sigmoids are 0.5 away from 0.5


@pytest.mark.parametrize("form", ["l1", "l2"])
def test_at_one_half_neither_form_pushes(form):
    alphas = tensors({"normal": np.zeros((14, 8)), "reduce": np.zeros((14, 8))})
    loss = build("sigmoid", zero_one=form).regulariser(alphas, 1.0)
    for gradient in torch.autograd.grad(loss, list(alphas.values())):
        assert not gradient.any()


def test_beside_one_half_l1_pushes_at_full_strength_and_l2_softly():
    values = {"normal": np.full((14, 8), 1e-4), "reduce": np.full((14, 8), -1e-4)}
    push = {}
    for form in ("l1", "l2"):
        alphas = tensors(values)
        (push[form],) = torch.autograd.grad(build("sigmoid", zero_one=form).regulariser(alphas, 1.0), alphas["normal"])
    assert push["l1"][0, 0].item() == pytest.approx(-10 * 0.25 / 224, rel=1e-4)
    assert abs(push["l2"][0, 0].item()) < 1e-3 * abs(push["l1"][0, 0].item())


def test_the_zero_one_weight_rises_in_a_straight_line_over_the_warmup():
    relaxation, full = build("sigmoid", zero_one_warmup=0.5), build("sigmoid").regulariser(tensors(), 0.0).item()
    for progress, share in [(0.0, 0.0), (0.125, 0.25), (0.25, 0.5), (0.5, 1.0), (0.9, 1.0)]:
        assert relaxation.regulariser(tensors(), progress).item() == pytest.approx(share * full)


def test_without_a_warmup_the_weight_is_whole_from_the_start():
    assert build("sigmoid").regulariser(tensors(), 0.0).item() == build("sigmoid").regulariser(tensors(), 1.0).item()


@pytest.mark.parametrize(("name", "options"), [("sigmoid", {"zero_one": "none"}), ("softmax", {})])
def test_no_regulariser_is_zero(name, options):
    assert build(name, **options).regulariser(tensors(), 1.0).item() == 0


def test_initial_alphas_are_the_papers():
    seeded = lambda: torch.Generator().manual_seed(0)
    alphas = build("softmax").initial_alphas(14, 8, seeded())
    assert alphas.shape == (14, 8) and 5e-4 < alphas.std() < 2e-3 and abs(alphas.mean()) < 4e-4
    assert torch.equal(alphas, build("softmax").initial_alphas(14, 8, seeded()))
    assert not build("sigmoid").initial_alphas(14, 8, seeded()).any()
    assert build("sigmoid", init_std=0.1).initial_alphas(14, 8, seeded()).std() > 0.05


def test_the_alpha_optimizers_defaults_are_the_papers():
    facts = {name: build(name) for name in ("softmax", "sigmoid")}
    assert [(r.lr, r.betas, r.weight_decay, r.default_rule) for r in facts.values()] == [
        (3e-4, (0.5, 0.999), 1e-3, "darts"),
        (3e-3, (0.9, 0.999), 1e-3, "fairdarts"),
    ]
    assert build("sigmoid").options.zero_one == "l1" and build("sigmoid").options.zero_one_weight == 10
