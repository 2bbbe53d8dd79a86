"""The mathematics of corrections of a finished network, in float64.

A network whose softmax holds the class prior pi is corrected by z - tau log pi (Menon et al., 2021, Eq. 9), by class
vectors w / ||w||^tau (Kang et al., 2020, section 4), or by z / T (Guo et al., 2017, Eq. 9). Tau and T are each chosen
by one criterion on images that the network was not trained on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax

from registry.balance import class_priors

Floats = NDArray[np.float64]
TAUS = [step / 20 for step in range(61)]  # 0 to 3
HOTTEST, COLDEST = 100.0, 0.01  # bounds of the temperature
SHOWN_TEMPERATURES = [2 ** (step / 4) for step in range(-8, 9)]  # a quarter to four


@dataclass(frozen=True)
class Choice:
    """A value that was chosen by a criterion, and the criterion at every value in `curve`.

    Attributes:
        setting: `tau` or `temperature`.
        value: of the setting.
        criterion: `balanced_accuracy` (percent; the highest is best) or `negative_log_likelihood` (nats; the lowest).
        curve: pairs of a value and the criterion there.
    """

    setting: str
    value: float
    criterion: str
    curve: list[tuple[float, float]]

    @property
    def at_the_end(self) -> bool:
        """Whether a better value may lie beyond those that were tried."""
        return self.value in ((TAUS[-1],) if self.setting == "tau" else (HOTTEST, COLDEST))


def prior_shift(prior: ArrayLike, tau: float) -> Floats:
    """What logit adjustment adds to the logits [C]: -tau log pi."""
    return -tau * np.log(np.asarray(prior, dtype=np.float64))


def tau_normalised(weight: ArrayLike, tau: float) -> Floats:
    """Class vectors [C, F] over their norm to the power of tau. A vector of zeros stays as it is."""
    vectors = np.asarray(weight, dtype=np.float64)
    norms = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return vectors / norms**tau


def balanced_accuracy(predicted: NDArray[Any], labels: NDArray[Any]) -> float:
    """The mean, in percent, of the accuracies of the classes that occur in `labels` [N]."""
    totals = np.bincount(labels)
    right = np.bincount(labels[predicted == labels], minlength=len(totals))
    return 100 * float((right[totals > 0] / totals[totals > 0]).mean())


def choose_tau(logits: Callable[[float], Floats], labels: NDArray[Any]) -> Choice:
    """The tau of TAUS with the highest balanced accuracy, of several the one nearest to 1, which theory gives.

    Args:
        logits: from tau to logits [N, C].
        labels: [N].
    """
    curve = [(tau, balanced_accuracy(logits(tau).argmax(1), labels)) for tau in TAUS]
    best = max(accuracy for _, accuracy in curve)
    value = min((abs(tau - 1), tau) for tau, accuracy in curve if accuracy == best)[1]
    return Choice("tau", value, "balanced_accuracy", curve)


def change_of_prior(held: ArrayLike, wanted: ArrayLike) -> Floats:
    """What makes logits [C] that hold one prior hold another: log pi' - log pi.

    Their softmax is then p'(y|x), which is proportional to p(y|x) pi'_y / pi_y (Saerens et al., 2002, Eq. 2.4).
    """
    return np.log(np.asarray(wanted, dtype=np.float64)) - np.log(np.asarray(held, dtype=np.float64))


def likelihood_shift(held: ArrayLike | None, counts: Sequence[int]) -> Floats:
    """What makes logits [C] that hold a prior posteriors under the class counts of other images: log pi' - log pi.

    The likelihood of those images' labels is then that of a calibrated network. It is 0 if the held prior is not known.
    """
    if held is None:
        return np.zeros(len(counts))
    return change_of_prior(held, class_priors(counts))


def negative_log_likelihood(logits: Floats, labels: NDArray[Any]) -> float:
    """The mean over images of -log softmax(z)_y, in nats, from logits [N, C] and labels [N]."""
    return -float(log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean())


def choose_temperature(logits: Floats, labels: NDArray[Any], shift: Floats) -> Choice:
    """The temperature of the highest likelihood of softmax(z / T + shift), between COLDEST and HOTTEST.

    The negative log-likelihood is convex in 1/T, so halving the interval in which its slope changes sign finds the
    minimum to the last digits.

    Args:
        logits: [N, C].
        labels: [N].
        shift: [C], of `likelihood_shift`.
    """
    low, high = math.log(1 / HOTTEST), math.log(1 / COLDEST)
    if _slope(logits, labels, shift, math.exp(low)) >= 0:
        value = HOTTEST
    elif _slope(logits, labels, shift, math.exp(high)) <= 0:
        value = COLDEST
    else:
        for _ in range(60):
            middle = (low + high) / 2
            if _slope(logits, labels, shift, math.exp(middle)) > 0:
                high = middle
            else:
                low = middle
        value = math.exp(-(low + high) / 2)
    temperatures = sorted({*SHOWN_TEMPERATURES, value})
    curve = [(one, negative_log_likelihood(logits / one + shift, labels)) for one in temperatures]
    return Choice("temperature", value, "negative_log_likelihood", curve)


def _slope(logits: Floats, labels: NDArray[Any], shift: Floats, inverse: float) -> float:
    """The derivative of the negative log-likelihood in 1/T: the mean of E_p[z] - z_y."""
    probabilities = np.exp(log_softmax(logits * inverse + shift, axis=1))
    return float(((probabilities * logits).sum(1) - logits[np.arange(len(labels)), labels]).mean())
