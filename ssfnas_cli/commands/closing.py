"""What a stage says at its end, on stderr: the figure to look at, whether it was a trial, and the next command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssfnas_cli.console import log


def say_search_is_done(preset: str, path: Path) -> None:
    """After a search: it has derived a genotype of its own, if its alphas gave a network."""
    genotype = path / "genotype.json"
    if genotype.exists():
        trial = ["--preset", "quick"] if preset == "quick" else []
        say_next("retrain", str(genotype), *trial)
    else:
        say_next("derive", str(path), "-o", "genotype.json")
    _say_trial(preset)


def say_retraining_is_done(preset: str, path: Path) -> None:
    """After a retraining."""
    say_next("evaluate", str(path))
    _say_trial(preset)


def say_next(*words: str) -> None:
    """The next command, as it can be typed."""
    log.info("next: %s", shlex.join(["ssfnas", *words]))


def _say_trial(preset: str) -> None:
    """That the preset `quick` gives no results."""
    if preset == "quick":
        log.info("this was a trial (preset quick): for results, use --preset standard in both search and retrain")


def say_what_metrics_mean(metrics: Mapping[str, Any]) -> None:
    """Which figure of an evaluation to look at, and what guessing would give."""
    names = [name for name in ("test", "val", *metrics["splits"]) if name in metrics["splits"]]
    split, facts = names[0], metrics["splits"][names[0]]
    present = [count for count in facts["class_counts"] if count]
    log.info(
        "look at balanced_accuracy of %s: %.1f %% (chance %.1f %%), higher is better; it counts every class alike. "
        "Always answering the largest class would give a top-1 of %.1f %% (here %.1f %%)",
        split,
        facts["balanced_accuracy"],
        100 / len(present),
        100 * max(present) / sum(present),
        facts["top1"],
    )
