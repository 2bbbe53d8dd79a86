"""The self-supervised loss beside a supervised one: on two views of its own, with a head of its own.

Its gradient reaches the encoder, so its head belongs to the weights: the same optimizer, one clipped norm, and the
second order's trial steps. Its views leave the encoder's running statistics alone, because those of the supervised
views are what the classifier is evaluated with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from registry import LOSSES
from registry.losses import Objective
from registry.norm import held_statistics
from ssfnas_cli.errors import UsageError
from ssfnas_cli.settings import Training, build_plugin


@dataclass(frozen=True)
class Mix:
    """A self-supervised objective and what it is multiplied by."""

    objective: Objective
    weight: float

    def loss(
        self,
        encoder: nn.Module,
        features: Callable[[Tensor], Tensor],
        head: nn.Module,
        views: Sequence[Tensor],
        progress: float,
    ) -> Tensor:
        """The weighted loss.

        Args:
            features: runs `encoder` on images [N, C, H, W] and pools: [N, F].
            views: the two views, which go through the encoder one after the other.
        """
        with held_statistics(encoder):
            seen = [features(view) for view in views]
        return self.weight * self.objective([head(one) for one in seen], None, progress)


def build_mix(settings: Training, supervised: Objective, flag: str, class_counts: Sequence[int]) -> Mix | None:
    """The mix that settings ask for, or None.

    Args:
        settings: resolved.
        supervised: the loss that it is added to; `flag` is what names that one.

    Raises:
        UsageError: either of the two is not of its kind.
    """
    section = settings.ssl.loss
    if section.name == "none":
        return None
    objective: Objective = build_plugin(
        LOSSES, section, num_classes=supervised.num_classes, class_counts=list(class_counts)
    )
    if objective.supervised:
        raise UsageError(
            f"--set ssl.loss={section.name}: is supervised; give it as {flag}, and a self-supervised one here"
        )
    if not supervised.supervised:
        raise UsageError(f"--set ssl.loss={section.name}: stands beside a supervised {flag}, and that one is not")
    return Mix(objective, settings.ssl.weight)
