import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from ssfnas_cli.data.batches import normaliser
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.evaluate import (
    calibration_error,
    groups_by_count,
    groups_by_thirds,
    reliability_bins,
    split_metrics,
    worst_confusions,
)
from ssfnas_cli.engine.predict import predict
from ssfnas_cli.engine.shared_images import SharedSplits

NAMES = ["ant", "bee", "cat", "dog", "elk"]
COUNTS = [150, 101, 100, 20, 19]


def scores_and_labels(num=200, classes=5, seed=0, labels=None):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, num) if labels is None else np.asarray(labels)
    scores = rng.normal(size=(len(labels), classes)) * 2
    scores[np.arange(len(labels)), labels] += 1.5
    return scores.astype(np.float32), labels


def softmax(scores):
    exp = np.exp(scores.astype(np.float64) - scores.max(1, keepdims=True))
    return exp / exp.sum(1, keepdims=True)


def slow_ece(probabilities, labels, num_bins=15):
    """Guo et al.: bins (k/15, (k+1)/15]; the sum of |accuracy - confidence| weighed by the share of the images."""
    total = 0.0
    for k in range(num_bins):
        inside = [
            n
            for n, row in enumerate(probabilities)
            if k / num_bins < row.max() <= (k + 1) / num_bins or (k == 0 and row.max() == 0)
        ]
        if inside:
            accuracy = np.mean([probabilities[n].argmax() == labels[n] for n in inside])
            confidence = np.mean([probabilities[n].max() for n in inside])
            total += len(inside) / len(labels) * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize("seed", range(4))
def test_calibration_error_is_that_of_the_definition(seed):
    scores, labels = scores_and_labels(seed=seed)
    probabilities = softmax(scores)
    assert calibration_error(probabilities, labels) == pytest.approx(slow_ece(probabilities, labels), abs=1e-12)
    assert split_metrics(scores, labels, NAMES, COUNTS)["ece"] == pytest.approx(
        slow_ece(probabilities, labels), abs=1e-9
    )


@pytest.mark.parametrize("seed", range(3))
def test_reliability_bins_are_those_of_a_direct_count_and_give_the_calibration_error(seed):
    scores, labels = scores_and_labels(seed=seed)
    probabilities = softmax(scores)
    bins = reliability_bins(probabilities, labels, 10)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    for k in range(10):
        inside = (confidence > k / 10) & (confidence <= (k + 1) / 10)
        assert bins["num_images"][k] == inside.sum()
        if inside.any():
            assert bins["confidence"][k] == pytest.approx(confidence[inside].mean())
            assert bins["accuracy"][k] == pytest.approx(right[inside].mean())
        else:
            assert bins["confidence"][k] is None and bins["accuracy"][k] is None
    filled = [k for k in range(10) if bins["num_images"][k]]
    gaps = [abs(bins["confidence"][k] - bins["accuracy"][k]) * bins["num_images"][k] for k in filled]
    assert sum(gaps) / len(labels) == pytest.approx(calibration_error(probabilities, labels, 10), rel=1e-12)
    # the probabilities of split_metrics are torch's, and differ in the last bit
    assert split_metrics(scores, labels, NAMES, COUNTS)["calibration"]["num_images"][:3] == [0, 0, 0]


def test_calibration_error_of_plain_cases():
    sure = np.array([[1.0, 0.0]] * 4)
    assert calibration_error(sure, np.array([0, 0, 0, 0])) == 0
    assert calibration_error(sure, np.array([1, 1, 1, 1])) == 1
    assert calibration_error(sure, np.array([0, 0, 0, 1])) == 0.25
    # two bins whose errors point apart do not cancel: 0.6 sure and always right, 1.0 sure and right 3 times in 5
    mixed = np.array([[0.6, 0.4]] * 5 + [[1.0, 0.0]] * 5)
    assert calibration_error(mixed, np.array([0] * 5 + [0, 0, 0, 1, 1])) == pytest.approx(0.4)
    # 0.6 = 9/15 closes the bin of 0.55 and is not in that of 0.65
    assert calibration_error(np.array([[0.6, 0.4], [0.65, 0.35]]), np.array([0, 1])) == pytest.approx((0.4 + 0.65) / 2)
    assert calibration_error(np.array([[0.6, 0.4], [0.55, 0.45]]), np.array([0, 1])) == pytest.approx(0.15 / 2)


def test_every_figure_equals_a_direct_count():
    scores, labels = scores_and_labels()
    got = split_metrics(scores, labels, NAMES, COUNTS)
    predicted = [max(range(5), key=lambda c, row=row: row[c]) for row in scores.tolist()]
    pairs = list(zip(labels.tolist(), predicted, strict=True))
    recall = [100 * sum(p == t == c for t, p in pairs) / sum(t == c for t, _ in pairs) for c in range(5)]
    f1 = [
        2 * sum(p == t == c for t, p in pairs) / (sum(t == c for t, _ in pairs) + sum(p == c for _, p in pairs))
        for c in range(5)
    ]
    counts = [sum(t == c for t, _ in pairs) for c in range(5)]

    def group(names, images, recalls):
        return {"classes": names, "num_images": sum(images), "accuracy": pytest.approx(np.mean(recalls))}

    assert got["num_images"] == 200
    assert got["top1"] == pytest.approx(100 * np.mean([t == p for t, p in pairs]))
    assert got["balanced_accuracy"] == pytest.approx(np.mean(recall))
    assert got["macro_f1"] == pytest.approx(np.mean(f1))
    assert got["per_class"] == {name: pytest.approx(value) for name, value in zip(NAMES, recall, strict=True)}
    assert got["confusion"] == [[sum((t, p) == (i, j) for t, p in pairs) for j in range(5)] for i in range(5)]
    assert got["groups_by_count"] == {
        "many": group(["ant", "bee"], counts[:2], recall[:2]),
        "medium": group(["cat", "dog"], counts[2:4], recall[2:4]),
        "few": group(["elk"], counts[4:], recall[4:]),
    }
    assert got["groups_by_thirds"]["head"] == group(["ant", "bee"], counts[:2], recall[:2])
    assert got["class_counts"] == counts
    assert json.loads(json.dumps(got)) == got, "the metrics are JSON"


def test_on_a_long_tail_top1_and_balanced_accuracy_differ():
    scores = np.tile([5.0, 0.0], (10, 1))
    got = split_metrics(scores, np.array([0] * 9 + [1]), ["a", "b"], [9, 1])
    assert (got["top1"], got["balanced_accuracy"]) == (90, 50)


def test_a_class_without_images_is_null_and_takes_no_part_in_means():
    scores, labels = scores_and_labels(labels=[0, 0, 1, 1, 3, 3, 0, 1])
    got = split_metrics(scores, labels, NAMES, COUNTS)
    assert got["per_class"]["cat"] is None and got["per_class"]["elk"] is None
    present = [value for value in got["per_class"].values() if value is not None]
    assert got["balanced_accuracy"] == pytest.approx(np.mean(present))
    dog = got["per_class"]["dog"]
    assert got["groups_by_count"]["medium"] == {"classes": ["cat", "dog"], "num_images": 2, "accuracy": dog}
    assert got["groups_by_count"]["few"] == {"classes": ["elk"], "num_images": 0, "accuracy": None}
    assert 0 <= got["macro_f1"] <= 1 and not math.isnan(got["macro_f1"])


def test_groups_by_count_have_imagenet_lts_borders():
    assert groups_by_count(COUNTS) == {"many": [0, 1], "medium": [2, 3], "few": [4]}
    assert groups_by_count([5]) == {"many": [], "medium": [], "few": [0]}


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([10, 9, 8, 7, 6, 5], ([0, 1], [2, 3], [4, 5])),
        ([1, 5, 3], ([1], [2], [0])),
        ([4, 4, 4, 9], ([3, 0], [1], [2])),  # ties in class order
        (list(range(10, 0, -1)), ([0, 1, 2, 3], [4, 5, 6], [7, 8, 9])),
        ([2, 3], ([1], [], [0])),  # the smaller of two is the tail
        ([3], ([0], [], [])),
    ],
)
def test_thirds_go_from_most_to_fewest_training_images(counts, expected):
    assert tuple(groups_by_thirds(counts).values()) == expected
    assert list(groups_by_thirds(counts)) == ["head", "medium", "tail"]


def test_huge_scores_give_finite_figures():
    scores = np.array([[1e4, -1e4], [3e38, 0.0]], np.float32)
    got = split_metrics(scores, np.array([0, 1]), ["a", "b"], [1, 1])
    assert got["ece"] == pytest.approx(0.5)


def test_the_worst_confusions_are_the_largest_cells_off_the_diagonal_and_say_of_how_many():
    confusion = np.array([[50, 3, 0], [7, 1, 2], [0, 7, 5]])
    assert worst_confusions(confusion, ["a", "b", "c"]) == [
        {"true": "b", "predicted": "a", "images": 7, "of": 10},
        {"true": "c", "predicted": "b", "images": 7, "of": 12},
        {"true": "a", "predicted": "b", "images": 3, "of": 53},
        {"true": "b", "predicted": "c", "images": 2, "of": 10},
    ]
    assert worst_confusions(np.diag([4, 5]), ["a", "b"]) == []
    assert len(worst_confusions(np.ones((20, 20), int), [str(c) for c in range(20)])) == 10


@pytest.fixture
def network_and_data(tiny_digits):
    """A network with random weights and how it scores a split, with a record of what it was given."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 10))
    seen = []

    def score(split):
        seen.append(len(split))
        return predict(model, split, normaliser(tiny_digits), Device("cpu", 1))

    return score, tiny_digits, seen


@pytest.mark.parametrize("names", [["test", "test_longtail"], ["test_longtail", "train", "test"]])
def test_the_network_sees_no_image_twice_and_the_figures_are_those_of_each_split_alone(network_and_data, names):
    score, data, seen = network_and_data
    assert 0 < len(data.split("test_longtail")) < len(data.split("test"))
    shared = SharedSplits(data, names)
    got, same = shared.predict(score), shared.same
    assert sorted(seen) == sorted(len(data.split(name)) for name in names if name != "test_longtail")
    assert same == []
    for name in names:
        scores, labels = score(data.split(name))
        assert np.array_equal(got[name][1], labels)
        np.testing.assert_allclose(got[name][0], scores, rtol=0, atol=1e-5)  # another batch, other last digits
        mine, alone = (
            split_metrics(*one, data.class_names, data.counts("train")) for one in (got[name], (scores, labels))
        )
        assert mine.pop("ece") == pytest.approx(alone.pop("ece"), abs=1e-6)
        assert mine == alone


def test_scores_are_reused_only_for_the_very_same_images(network_and_data, monkeypatch):
    score, data, seen = network_and_data
    longtail = data.split("test_longtail")
    rows = longtail.rows
    monkeypatch.setattr(longtail, "rows", lambda places: 255 - rows(places))
    splits = {"test": data.split("test"), "test_longtail": longtail}
    monkeypatch.setattr(data, "split", splits.get)
    shared = SharedSplits(data, ["test", "test_longtail"])
    got, same = shared.predict(score), shared.same
    assert len(seen) == 2, "the long-tailed images differ from those of the same place in the source"
    assert same == [] and len(got["test_longtail"][0]) == len(longtail)


def test_splits_of_the_same_images_are_told(network_and_data, monkeypatch):
    score, data, seen = network_and_data
    test = data.split("test")
    monkeypatch.setattr(data, "split", lambda name: test)
    shared = SharedSplits(data, ["test_longtail", "test"])
    got, same = shared.predict(score), shared.same
    assert len(seen) == 1 and [sorted(pair) for pair in same] == [["test", "test_longtail"]]
    assert np.array_equal(got["test"][0], got["test_longtail"][0])
