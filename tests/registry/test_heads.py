import numpy as np
import pytest
import torch

from registry import HEADS, PluginError


def build(name, features=6, classes=4, **options):
    torch.manual_seed(0)
    plugin = HEADS.get(name)
    return plugin.factory(plugin.parse_options(options), features, classes, [1] * classes)


@pytest.mark.parametrize("scale", [30.0, 7.0])
def test_cosine_scores_are_scaled_cosines_whatever_the_lengths(scale):
    head, x = build("cosine", scale=scale).double(), torch.randn(5, 6, dtype=torch.float64)
    scores, weight = head(x).detach().numpy(), head.weight.detach().numpy()
    for i, row in enumerate(x.numpy()):
        for c, w in enumerate(weight):
            assert scores[i, c] == pytest.approx(scale * row @ w / np.linalg.norm(row) / np.linalg.norm(w))
    torch.testing.assert_close(head(100 * x), head(x))
    assert [name for name, _ in head.named_parameters()] == ["weight"], "no bias"


@pytest.mark.parametrize(("features", "classes"), [(6, 4), (4, 4), (64, 10), (3, 2)])
def test_the_vectors_of_the_simplex_have_length_one_and_equal_angles(features, classes):
    head = build("etf", features, classes)
    cosines = (head.weight.double() @ head.weight.double().T).numpy()
    expected = np.full((classes, classes), -1 / (classes - 1))
    np.fill_diagonal(expected, 1)
    np.testing.assert_allclose(cosines, expected, atol=1e-6)


def test_the_simplex_is_fixed_drawn_from_the_seed_and_kept_in_the_state():
    head = build("etf")
    assert list(head.parameters()) == [] and list(head.state_dict()) == ["weight"]
    assert torch.equal(head.weight, build("etf").weight)
    x = torch.randn(3, 6)
    torch.testing.assert_close(head(x), 30 * torch.nn.functional.normalize(x) @ head.weight.T)


@pytest.mark.parametrize(("features", "classes"), [(4, 5), (4, 1)])
def test_a_simplex_that_does_not_fit_is_refused_with_the_reason(features, classes):
    with pytest.raises(PluginError, match=rf"head 'etf'.*{classes} classes, {features} features"):
        build("etf", features, classes)


def test_a_predictor_gives_projections_that_end_in_bn_and_predictions():
    head = build("predictor", width=8, hidden=2)
    projections, predictions = head(torch.randn(16, 6))
    assert projections.shape == predictions.shape == (16, 8)
    np.testing.assert_allclose(projections.mean(0).detach(), 0, atol=1e-5)
    assert head.predictor[0].weight.shape == (2, 8)


def test_every_head_says_what_it_gives():
    gives = {name: HEADS.get(name).facts.gives for name in HEADS.names()}
    assert gives == {
        "linear": "scores",
        "cosine": "scores",
        "etf": "scores",
        "projector": "projections",
        "predictor": "pairs",
    }
