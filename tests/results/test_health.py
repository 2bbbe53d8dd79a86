"""What mixing weights and genotypes say about a search, against figures that are plain to see."""

import math

import numpy as np
import pytest

from ssfnas_cli.results.health import (
    changed_lately,
    collapsed_since,
    find_problems,
    genotype_figures,
    weight_figures,
)

FAMILIES = {"none": "none", "skip": "skip", "max": "pool", "conv": "learned"}


def weights(rows):
    return {"normal": np.array(rows, dtype=float), "reduce": np.array(rows, dtype=float)}


def test_equal_competing_weights_have_entropy_1_and_a_decided_edge_has_0():
    start = weights([[0.25] * 4, [0.25] * 4])
    assert weight_figures(start, start) == {"weights_moved": 0.0, "weights_entropy": pytest.approx(1.0)}
    now = weights([[1, 0, 0, 0], [0.25] * 4])
    assert weight_figures(start, now) == {"weights_moved": 0.75, "weights_entropy": pytest.approx(0.5)}


def test_entropy_against_the_sum_by_hand():
    rows = [[0.5, 0.3, 0.2], [0.7, 0.2, 0.1]]
    by_hand = sum(-p * math.log(p) for row in rows for p in row) / 2 / math.log(3)
    assert weight_figures(weights(rows), weights(rows))["weights_entropy"] == pytest.approx(by_hand, rel=1e-12)


def test_decided_are_sigmoids_within_a_tenth_of_0_or_1():
    start = weights([[0.5] * 4])
    now = weights([[0.1, 0.05, 0.95, 0.11]])
    assert weight_figures(start, now) == {"weights_moved": pytest.approx(0.45), "weights_decided": 0.75}


def test_edges_have_an_entropy_of_their_own_and_leave_that_of_the_ops_as_it_is():
    rows = weights([[0.25] * 4] * 14)
    equal = np.concatenate([np.full(n, 1 / n) for n in (2, 3, 4, 5)])
    decided = equal.copy()
    decided[:2] = 1, 0
    given = lambda own: {**rows, "normal_edges": own, "reduce_edges": equal}
    even, less = weight_figures(given(equal), given(equal)), weight_figures(given(equal), given(decided))
    assert even == {"weights_moved": 0.0, "weights_entropy": pytest.approx(1.0), "edges_entropy": pytest.approx(1.0)}
    assert less["edges_entropy"] == pytest.approx(7 / 8) and less["weights_moved"] == 0.0


def test_what_a_genotype_is_made_of():
    before = {"normal": [("conv", 0, 2), ("skip", 1, 2)], "reduce": [("max", 0, 2)]}
    now = {"normal": [("conv", 0, 2), ("max", 1, 2)], "reduce": [("max", 0, 2), ("skip", 0, 3)]}
    assert genotype_figures(before, now, FAMILIES) == {
        "genotype_changes": 2,
        "genotype_skips": 0.25,
        "genotype_pools": 0.5,
        "normal_ops_with_weights": 1,
    }
    assert genotype_figures(None, now, FAMILIES)["genotype_changes"] == 4
    without = {name: family for name, family in FAMILIES.items() if family != "learned"}
    only_skips = {"normal": [("skip", 0, 2)], "reduce": [("skip", 0, 2)]}
    figures = genotype_figures(None, only_skips, without)
    assert "normal_ops_with_weights" not in figures, "no candidate learns, so that none does is no collapse"


def line(epoch, learned, moved=0.3, **more):
    return {"epoch": epoch, "normal_ops_with_weights": learned, "weights_moved": moved, **more}


def test_a_collapse_must_last_and_is_not_the_arbitrary_start():
    lines = [line(1, 0), line(2, 4), line(3, 0), line(4, 0)]
    assert collapsed_since(lines) is None
    assert collapsed_since([*lines, line(5, 0)]) == 3
    assert collapsed_since([*lines, line(5, 1)]) is None
    assert collapsed_since([line(epoch, 0, moved=0.01) for epoch in range(1, 9)]) is None
    assert collapsed_since([{"epoch": 1}]) is None and collapsed_since([]) is None


@pytest.mark.parametrize(
    ("more", "advice"),
    [({"weights_entropy": 0.5}, "--relax sigmoid"), ({"weights_decided": 0.5}, "relax.zero_one_warmup")],
)
def test_a_collapse_is_said_with_what_helps_and_the_last_sound_epoch(more, advice):
    (found,) = find_problems([line(1, 3, **more), line(2, 3, **more), line(3, 0, **more)], "runs/x")
    assert found.what == "collapsed" and advice in found.sentence
    assert "ssfnas derive runs/x --epoch 2" in found.sentence
    (never_sound,) = find_problems([line(1, 0, **more)])
    assert "--epoch " not in never_sound.sentence


def test_alphas_at_their_start_are_said_with_the_rate():
    (found,) = find_problems([line(1, 0, moved=0.004, alpha_lr=3e-4)])
    assert found.what == "at_start" and "--set alpha_lr= (it was 0.0003)" in found.sentence
    assert find_problems([line(1, 2)]) == [] and find_problems([]) == []
    assert find_problems([{"epoch": 3, "accuracy_alpha_half": 50.0}]) == [], "an earlier ssfnas recorded no health"


def test_how_often_the_genotype_changed_lately():
    lines = [{"epoch": n, "genotype_changes": changes} for n, changes in enumerate([14, 2, 0, 1, 0, 0, 0], start=1)]
    assert changed_lately(lines) == (1, 5), "the last five: 0, 1, 0, 0, 0"
    assert changed_lately(lines[:1]) == (0, 0)
