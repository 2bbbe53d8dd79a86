"""Which mistakes are shown, against the plain rule applied image by image."""

import math

import numpy as np
import pytest

from ssfnas_cli.results.mistakes import find_mistakes


def drawn(seed, num=60, classes=4):
    numbers = np.random.default_rng(seed)
    labels = numbers.integers(0, classes, num)
    return numbers.normal(size=(num, classes)).astype(np.float32) * 3, labels


def probabilities(row):
    highest = max(row)
    powers = [math.exp(float(value) - float(highest)) for value in row]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("seed", range(3))
def test_the_most_confident_and_the_worst_of_each_class_in_turns(seed):
    scores, labels = drawn(seed)
    counts = [90, 5, 40, 20]
    found = find_mistakes(scores, labels, counts, 7)
    table = [probabilities(row) for row in scores]
    wrong = [n for n, row in enumerate(scores) if row.argmax() != labels[n]]
    assert (found.num_images, found.num_wrong) == (60, len(wrong))

    sure = sorted(wrong, key=lambda n: -max(table[n]))[:7]
    assert [one.row for one in found.confident] == sure
    by_class = {
        c: sorted((n for n in wrong if labels[n] == c and n not in sure), key=lambda n: table[n][c]) for c in range(4)
    }
    turns = [by_class[c][turn] for turn in range(60) for c in (1, 3, 2, 0) if turn < len(by_class[c])]
    assert [one.row for one in found.worst] == turns[:7]
    for one in (*found.confident, *found.worst):
        assert (one.true, one.predicted) == (labels[one.row], scores[one.row].argmax())
        assert one.confidence == pytest.approx(max(table[one.row]), abs=1e-12)
        assert one.truth == pytest.approx(table[one.row][one.true], abs=1e-12)


def test_fewer_mistakes_than_asked_and_none():
    scores, labels = drawn(0)
    found = find_mistakes(scores, labels, [1] * 4, 1000)
    assert len(found.confident) == found.num_wrong and not found.worst
    perfect = find_mistakes(np.eye(4)[labels] * 9, labels, [1] * 4, 5)
    assert perfect == (60, 0, [], [])


def test_certain_scores_are_finite():
    found = find_mistakes(np.array([[2000.0, -2000.0], [0.0, 5.0]]), np.array([1, 0]), [3, 3], 1)
    assert (found.confident[0].row, found.confident[0].confidence, found.confident[0].truth) == (0, 1.0, 0.0)
    assert found.worst[0].row == 1
