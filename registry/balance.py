"""How much each class counts: class weights, class priors, and from when on they are used (deferral).

Everything here is a function of the class counts and of the progress of the training. It is the one place that the
re-weighting losses and the re-sampling samplers share, so that deferral means the same for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from registry.core import Options

Weighting = Literal["none", "inverse_frequency", "class_balanced"]


class Deferred(Options):
    """Options of whatever may wait before it treats the classes differently (deferred re-weighting: LDAM-DRW)."""

    defer: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the training that treats all images alike first; LDAM-DRW: 0.8. 0: none of it",
    )


def is_deferred(options: Deferred, progress: float) -> bool:
    """Whether classes are still to be treated alike at this progress, which runs from 0 to 1."""
    return progress < options.defer


def positive_counts(counts: Sequence[int]) -> NDArray[np.float64]:
    """Class counts [C] of which none is 0: a class without images counts as one that has a single image."""
    return np.maximum(np.asarray(counts, dtype=np.float64), 1)


def class_priors(counts: Sequence[int]) -> NDArray[np.float64]:
    """The share of every class [C] in the training images."""
    positive = positive_counts(counts)
    return positive / positive.sum()


def power_of_prior(prior: ArrayLike, exponent: float) -> NDArray[np.float64]:
    """A class prior [C] to a power, normalised: exponent 1 leaves it as it is, and 0 gives the uniform one."""
    logs = exponent * np.log(np.asarray(prior, dtype=np.float64))
    raw = np.maximum(np.exp(logs - logs.max()), np.finfo(np.float64).tiny)
    return raw / raw.sum()


def class_weights(weighting: Weighting, counts: Sequence[int], beta: float = 0.0) -> NDArray[np.float64]:
    """Class weights [C] that add up to C.

    Args:
        weighting: `inverse_frequency` is 1/n. `class_balanced` is the inverse of the effective number of images,
            (1 - beta) / (1 - beta^n) (Cui et al., 2019, Eq. 2). `none` weighs all classes alike.
        beta: of `class_balanced`.
    """
    positive = positive_counts(counts)
    if weighting == "inverse_frequency":
        raw = 1 / positive
    elif weighting == "class_balanced":
        raw = (1 - beta) / (1 - beta**positive)
    else:
        raw = np.ones_like(positive)
    return raw * len(positive) / raw.sum()
