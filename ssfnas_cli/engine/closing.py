"""Which figure of a finished run to look at, in which direction, and what guessing would give."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssfnas_cli.console import log
from ssfnas_cli.results.health import find_problems, health_in_words

RISE, SATURATED = 1.0, 99.0  # percent points over the last third of the epochs; training accuracy in percent


def say_search_figure(last: Mapping[str, Any], class_counts: Sequence[int]) -> None:
    """What a search's accuracy says.

    Args:
        last: the last epoch's line of metrics.
        class_counts: of the training split.
    """
    for name in ("accuracy_alpha_half", "probe_accuracy_alpha_half"):
        if name in last:
            log.info("look at %s: %s, higher is better", name, _beside_chance(last[name], class_counts))


def say_search_health(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Whether a search has decided, and whether it has collapsed.

    Args:
        lines: the metrics of every epoch; those of an earlier ssfnas hold no health.
        path: the run's folder.
    """
    for sentence in health_in_words(lines):
        log.info("search health: %s", sentence)
    for problem in find_problems(lines, shlex.quote(str(path))):
        log.warning("%s", problem.sentence)


def say_training_figure(lines: Sequence[Mapping[str, Any]], class_counts: Sequence[int], mixed: bool) -> None:
    """What a retraining's accuracy says, and whether it was still rising.

    Args:
        lines: the metrics of every epoch; those of a pretraining have no accuracy.
        mixed: whether the images were mixed with others.
    """
    accuracies = [line["train_accuracy"] for line in lines if "train_accuracy" in line]
    if not accuracies:
        return
    images = "mixed images, of two classes each," if mixed else "images"
    log.info(
        "train_accuracy: %s, higher is better; it is of %s that the network has learned from: 'evaluate' tells what it "
        "is worth on others",
        _beside_chance(accuracies[-1], class_counts),
        images,
    )
    if is_still_rising(accuracies):
        log.info("training accuracy was still rising: more epochs may help (--epochs %d)", 2 * len(accuracies))


def is_still_rising(accuracies: Sequence[float]) -> bool:
    """Whether a line through the last third of the epochs (at least 4) rises by more than RISE points.

    Args:
        accuracies: of every epoch, in percent.
    """
    last = np.asarray(accuracies[-max(4, len(accuracies) // 3) :])
    if len(last) < 4 or last[-1] >= SATURATED:
        return False
    slope = np.polyfit(np.arange(len(last)), last, 1)[0]
    return bool(slope * (len(last) - 1) > RISE)


def _beside_chance(accuracy: float, class_counts: Sequence[int]) -> str:
    largest = 100 * max(class_counts) / sum(class_counts)
    return (
        f"{accuracy:.1f} % (chance {100 / len(class_counts):.1f} %; always answering the largest class gives "
        f"{largest:.1f} %)"
    )
