"""Evaluation of a retrained network on test splits, with metrics for each class."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ssfnas_cli import world
from ssfnas_cli.artifacts.dataset import DataSet
from ssfnas_cli.artifacts.metrics import FEW, MANY
from ssfnas_cli.artifacts.model import ModelCard
from ssfnas_cli.artifacts.predictions import Predicted
from ssfnas_cli.artifacts.run import EVALUATION, RunFolder
from ssfnas_cli.console import log
from ssfnas_cli.data.augment import Normalise
from ssfnas_cli.data.embedded import find_data
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.network import load_finished
from ssfnas_cli.engine.predict import predict
from ssfnas_cli.engine.ranks import agree_on_network
from ssfnas_cli.engine.shared_images import SharedSplits
from ssfnas_cli.errors import DiskError, InputError, UsageError
from ssfnas_cli.nets.heads import Classifier

NUM_BINS = 15
NUM_CONFUSIONS = 10


def evaluate_run(
    run: RunFolder,
    data_path: str,
    splits: Sequence[str],
    device: Device,
    other_data: bool = False,
    keep: Callable[[Sequence[str], Mapping[str, Predicted]], object] | None = None,
) -> dict[str, Any]:
    """Compute the metrics of the network of a retrained run.

    Metrics on the run's own data set are also written to the run folder.

    Args:
        run: a finished retrain run.
        data_path: the data set folder; empty means the one that the run recorded.
        splits: the splits to evaluate; if it is empty, all held-out splits are evaluated.
        device: where to compute.
        other_data: allow another data set that has the same classes. Its images are standardised with the statistics
            of the network's training images.
        keep: receives the class names, and what was predicted of every split.

    Returns:
        What `evaluate` prints, with whole confusion matrices. `kept_in` names the file in the run folder, if one holds
        them.

    Raises:
        InputError: the run is unfinished, or the data set does not match it.
        UsageError: the data set has no such split.
    """
    network, card, data = open_network_and_data(run, data_path, other_data)
    data.verify()
    world.agree({"data set": data.sha256, "splits": ", ".join(splits)})
    agree_on_network(network)
    unknown = [name for name in splits if name not in data.splits]
    if unknown:
        raise UsageError(f"--split {unknown[0]}: {data.path} has no such split. Available: {', '.join(data.splits)}")
    model, normalise = device.place(network), Normalise(tuple(card.mean), tuple(card.std))
    shared = SharedSplits(data, list(splits) or data.held_out)
    predicted = shared.predict(lambda split: predict(model, split, normalise, device))
    metrics: dict[str, Any] = {
        "kind": "metrics",
        "run": str(run.path),
        "data_sha256": data.sha256,
        "class_names": card.class_names,
        "train_counts": card.train_counts,
        "splits": {
            name: split_metrics(*scores, card.class_names, card.train_counts) for name, scores in predicted.items()
        },
        "same_images": shared.same,
    }
    if not world.is_first():
        return metrics
    if keep is not None:
        places = {name: split.source_index for name, split in shared.splits.items()}
        keep(card.class_names, {name: Predicted(*scores, places[name]) for name, scores in predicted.items()})
    if device.precision != "fp32":
        metrics["precision"] = device.precision
        log.info("the metrics are of %s, so those in the run folder stay as they are", device.precision)
    elif data.sha256 == card.data_sha256:
        try:
            run.write_evaluation(metrics)
            metrics["kept_in"] = str(run.path / EVALUATION)
        except DiskError as error:
            log.warning("the metrics are not kept in the run folder: %s", error)
    return metrics


def open_network_and_data(
    run: RunFolder, data_path: str = "", other_data: bool = False, splits: Collection[str] | None = None
) -> tuple[Classifier, ModelCard, DataSet]:
    """The network of a finished retraining, its card, and images that it can be used on.

    Args:
        run: the retraining.
        data_path, other_data: as for `evaluate_run`.
        splits: those that must be there; None means all.

    Raises:
        InputError: the run is unfinished, or the data set is not there or does not match it.
    """
    network, card = load_finished(run)
    data = find_data(data_path, card.data, card.data_sha256, "run", other_data, splits)
    if data.class_names != card.class_names or data.channels != card.in_channels:
        raise InputError(f"{data.path}: its classes or channels are not those of {run.path}")
    if data.image_size != card.image_size:
        raise InputError(
            f"{data.path}: its images have {data.image_size} pixels a side, and {run.path} was trained on "
            f"{card.image_size}: make it with 'ssfnas make-dataset --image-size {card.image_size}'"
        )
    return network, card, data


def split_metrics(
    scores: np.ndarray, labels: np.ndarray, class_names: Sequence[str], train_counts: Sequence[int]
) -> dict[str, Any]:
    """Compute all metrics of one split.

    Args:
        scores: logits [N, C].
        labels: [N].
        class_names: the names of the C classes.
        train_counts: training images per class, which define the head and the tail.

    Returns:
        Accuracies in percent; F1 and calibration error as fractions. `confusion` has a row for each true class and a
        column for each predicted one. For a class without images in the split, the accuracy is null and means over
        classes exclude it.
    """
    num_classes = len(class_names)
    predicted = scores.argmax(1)
    present = np.bincount(labels, minlength=num_classes) > 0
    confusion = np.bincount(labels * num_classes + predicted, minlength=num_classes**2).reshape(num_classes, -1)
    with np.errstate(invalid="ignore"):
        recall = np.diag(confusion) / confusion.sum(1)
    probabilities = torch.softmax(torch.from_numpy(scores).double(), 1).numpy()
    return {
        "num_images": len(labels),
        "top1": 100 * float((predicted == labels).mean()),
        "balanced_accuracy": 100 * float(recall[present].mean()),
        "macro_f1": float((2 * np.diag(confusion)[present] / (confusion.sum(0) + confusion.sum(1))[present]).mean()),
        "ece": calibration_error(probabilities, labels),
        "calibration": reliability_bins(probabilities, labels),
        "per_class": {name: 100 * float(recall[c]) if present[c] else None for c, name in enumerate(class_names)},
        "class_counts": confusion.sum(1).tolist(),
        "groups_by_count": _group_accuracies(confusion, groups_by_count(train_counts), class_names),
        "groups_by_thirds": _group_accuracies(confusion, groups_by_thirds(train_counts), class_names),
        "worst_confusions": worst_confusions(confusion, class_names),
        "confusion": confusion.tolist(),
    }


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, num_bins: int = NUM_BINS) -> float:
    """Expected calibration error over equal-width bins of the confidence (Guo et al., 2017), as a fraction.

    Args:
        probabilities: [N, C], whose rows sum to 1.
        labels: [N].
        num_bins: number of bins between 0 and 1.
    """
    confidence, correct, bins = _confidences(probabilities, labels, num_bins)
    gaps = np.bincount(bins, weights=confidence - correct, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(labels))


def reliability_bins(
    probabilities: np.ndarray, labels: np.ndarray, num_bins: int = NUM_BINS
) -> dict[str, list[int] | list[float | None]]:
    """The bins of the calibration error, of which a reliability diagram is drawn.

    Args:
        probabilities: [N, C], whose rows sum to 1.
        labels: [N].
        num_bins: number of bins between 0 and 1.

    Returns:
        For each bin, from the least confidence to the most: `num_images`, and the mean `confidence` and the `accuracy`
        (as fractions) of its images; null without images.
    """
    confidence, correct, bins = _confidences(probabilities, labels, num_bins)
    nums = np.bincount(bins, minlength=num_bins)
    means = lambda values: [
        float(total / num) if num else None
        for total, num in zip(np.bincount(bins, weights=values, minlength=num_bins), nums, strict=True)
    ]
    return {"num_images": nums.tolist(), "confidence": means(confidence), "accuracy": means(correct)}


def _confidences(
    probabilities: np.ndarray, labels: np.ndarray, num_bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The confidence of each image [N], whether its class is right, and the number of its bin."""
    confidence = probabilities.max(1)
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    return confidence, probabilities.argmax(1) == labels, bins


def groups_by_count(train_counts: Sequence[int]) -> dict[str, list[int]]:
    """Group classes by many (above 100), medium (20 to 100) and few (below 20) training images (ImageNet-LT)."""
    groups: dict[str, list[int]] = {"many": [], "medium": [], "few": []}
    for c, count in enumerate(train_counts):
        groups["many" if count > MANY else "few" if count < FEW else "medium"].append(c)
    return groups


def groups_by_thirds(train_counts: Sequence[int]) -> dict[str, list[int]]:
    """Divide the classes into head, medium and tail: thirds by number of training images, ties in class order.

    Of two classes, the smaller one is the tail.
    """
    order = sorted(range(len(train_counts)), key=lambda c: -train_counts[c])
    parts = [order[:1], [], order[1:]] if len(order) == 2 else [part.tolist() for part in np.array_split(order, 3)]
    return dict(zip(("head", "medium", "tail"), parts, strict=True))


def worst_confusions(confusion: np.ndarray, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """The classes that are most often taken for another one, the most images first; at most NUM_CONFUSIONS.

    Args:
        confusion: images [C, C], a row for each true class.
    """
    wrong = confusion - np.diag(np.diag(confusion))
    worst = np.argsort(-wrong, axis=None, kind="stable")[:NUM_CONFUSIONS]
    pairs = [divmod(int(place), len(class_names)) for place in worst]
    totals = confusion.sum(1)
    return [
        {
            "true": class_names[true],
            "predicted": class_names[predicted],
            "images": int(wrong[true, predicted]),
            "of": int(totals[true]),
        }
        for true, predicted in pairs
        if wrong[true, predicted]
    ]


def _group_accuracies(
    confusion: np.ndarray, groups: dict[str, list[int]], class_names: Sequence[str]
) -> dict[str, Any]:
    """For each group, its classes, its images and the mean of its classes' accuracies (null without images)."""
    totals = confusion.sum(1)
    correct = np.diag(confusion)
    out = {}
    for name, classes in groups.items():
        shares = [100 * correct[c] / totals[c] for c in classes if totals[c]]
        out[name] = {
            "classes": [class_names[c] for c in classes],
            "num_images": int(totals[classes].sum()) if classes else 0,
            "accuracy": float(np.mean(shares)) if shares else None,
        }
    return out
