"""Losses that move the scores of a class, or soften its targets, by how many images it has."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from registry.balance import class_priors, positive_counts, power_of_prior
from registry.core import LOSSES, Options
from registry.gpu import placed_like
from registry.losses import Objective, Smoothed
from registry.reweighting import Reweighted, Weighted


class LDAMOptions(Weighted, Smoothed):
    """Options of `ldam`."""

    max_margin: float = Field(0.5, ge=0, description="margin of the smallest class, in units of the cosine")
    scale: float = Field(30.0, gt=0, description="s, which the head multiplies cosines by")


@LOSSES.register("ldam", options=LDAMOptions)
class LDAM(Reweighted):
    """Cross-entropy with a margin that is larger for smaller classes, on scaled cosines (Cao et al., 2019).

    The margin of class c is max_margin * n_c^(-1/4) / max(n^(-1/4)) (their Eq. 13). The head gives s * cos, and
    s * margin is subtracted from the label's score. LDAM-DRW is `weights=class_balanced`, `defer=0.8`.
    """

    head = "cosine"
    options: LDAMOptions

    def head_options(self) -> Mapping[str, Any]:
        return {"scale": self.options.scale}

    def refuses_head(self, name: str, options: Mapping[str, Any]) -> str | None:
        scale = options.get("scale")
        if scale is None:
            return "loss 'ldam' puts margins on scaled cosines: take cosine or etf"
        if scale != self.options.scale:
            return (
                f"its scale is {scale:g} and the loss's is {self.options.scale:g}: set head.scale and loss.scale alike"
            )
        return None

    def margins(self) -> np.ndarray:
        """The margin of every class [C], in units of the cosine."""
        raw = positive_counts(self.class_counts) ** -0.25
        return self.options.max_margin * raw / raw.max()

    def image_losses(self, scores: Tensor, labels: Tensor) -> Tensor:
        shifts = self.options.scale * placed_like(self.margins(), scores)
        of_label = F.one_hot(labels, scores.shape[1]).to(scores.dtype)
        smoothing = self.options.label_smoothing
        return F.cross_entropy(scores - of_label * shifts, labels, reduction="none", label_smoothing=smoothing)


class PriorShiftedOptions(Options):
    """Options of a loss with shifted scores. Even smoothing and a shift contradict each other.

    The best scores would be log(((1 - e) * p_c + e / C) / pi_c^tau). Where a class is impossible they are
    log(e / C) - tau * log(pi_c): on every image high for a class that is rare.
    """

    LACKS: ClassVar = {
        "label_smoothing": "its shift by the priors would turn even smoothing into high scores of rare classes on "
        "every image; ce, inverse_frequency, class_balanced and ldam take it"
    }


class _PriorShifted(Objective):
    """Cross-entropy of scores that are shifted by a multiple of the log priors."""

    @property
    @abc.abstractmethod
    def tau(self) -> float:
        """What multiplies the log priors."""

    def held_prior(self) -> np.ndarray | None:
        """The class shares to the power of 1 - tau: the loss adds the rest before its softmax."""
        return power_of_prior(class_priors(self.class_counts), 1 - self.tau)

    def loss(self, outputs: Sequence[Tensor], labels: Tensor | None, progress: float = 1.0) -> Tensor:
        assert labels is not None, "a supervised objective needs labels"
        log_priors = placed_like(np.log(class_priors(self.class_counts)), outputs[0])
        return F.cross_entropy(outputs[0] + self.tau * log_priors, labels)


class LogitAdjustedOptions(PriorShiftedOptions):
    """Options of `logit_adjusted`."""

    tau: float = Field(1.0, ge=0, le=100, description="0: cross-entropy, 1: the scores are for equally many images")


@LOSSES.register("logit_adjusted", options=LogitAdjustedOptions)
class LogitAdjusted(_PriorShifted):
    """Cross-entropy of the scores plus tau times the log of the class priors (Menon et al., 2021, Eq. 10)."""

    options: LogitAdjustedOptions

    @property
    def tau(self) -> float:
        return self.options.tau


@LOSSES.register("balanced_softmax", options=PriorShiftedOptions)
class BalancedSoftmax(_PriorShifted):
    """Cross-entropy of a softmax that multiplies each class by its number of images (Ren et al., 2020, Eq. 3).

    It is `logit_adjusted` with tau 1: log n differs from log n / N by the same number for all classes.
    """

    tau = 1.0


class LabelAwareSmoothingOptions(Options):
    """Options of `label_aware_smoothing`."""

    head: float = Field(0.1, ge=0, lt=1, description="smoothing of the largest class")
    tail: float = Field(0.0, ge=0, lt=1, description="smoothing of the smallest class")

    LACKS: ClassVar = {"label_smoothing": "loss.head and loss.tail are its smoothing"}


@LOSSES.register("label_aware_smoothing", options=LabelAwareSmoothingOptions)
class LabelAwareSmoothing(Objective):
    """Cross-entropy with label smoothing that is stronger for larger classes (MiSLAS: Zhong et al., 2021).

    Class y has the smoothing tail + (head - tail) * sin(pi (n_y - n_min) / (2 (n_max - n_min))), which is spread over
    all classes; classes of equal size all have that of the head.
    """

    options: LabelAwareSmoothingOptions

    def smoothing(self) -> np.ndarray:
        """The smoothing of every class [C]."""
        counts = np.asarray(self.class_counts, dtype=np.float64)
        smallest, largest = counts.min(), counts.max()
        place = (counts - smallest) / (largest - smallest) if largest > smallest else np.ones_like(counts)
        head, tail = self.options.head, self.options.tail
        return tail + (head - tail) * np.sin(math.pi / 2 * place)

    def loss(self, outputs: Sequence[Tensor], labels: Tensor | None, progress: float = 1.0) -> Tensor:
        assert labels is not None, "a supervised objective needs labels"
        smoothing = placed_like(self.smoothing(), outputs[0])[labels]
        log_p = torch.log_softmax(outputs[0], dim=1)
        of_label = log_p.gather(1, labels[:, None])[:, 0]
        return -((1 - smoothing) * of_label + smoothing * log_p.mean(dim=1)).mean()
