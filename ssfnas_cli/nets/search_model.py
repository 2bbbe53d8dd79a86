"""The supernet with its heads, under the names that artifacts use."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from registry.losses import Objective
from registry.norm import BatchNorm
from ssfnas_cli.nets.supernet import Supernet

BuildHead = Callable[[int], nn.Module]


class SearchModel(nn.Module):
    """Everything with weights: `encoder`, `head`, and if they are needed `alpha_head`, `ssl_head` and `probe`.

    `head` serves the weight step's loss, and the alpha step's loss too if that would build an equal one. Otherwise
    `alpha_head` is trained in the weight step on features whose gradient is stopped. `ssl_head` is that of a
    self-supervised loss beside the supervised one, whose gradient reaches the encoder. `probe` is the linear classifier
    that measures a self-supervised search. It gives no gradient to anything else, and standardises the features first:
    relaxations differ in the scale of their features, which an optimizer would notice.
    """

    def __init__(
        self,
        encoder: Supernet,
        num_classes: int,
        weight_loss: Objective,
        build_head: BuildHead | None = None,
        build_alpha_head: BuildHead | None = None,
        build_ssl_head: BuildHead | None = None,
    ):
        """Each builder makes a head from the number of features.

        Args:
            build_head: None means the weight loss's default head.
            build_alpha_head: None means that the alpha step's loss shares `head`.
            build_ssl_head: None means that there is no such loss.
        """
        super().__init__()
        features = encoder.num_features
        self.encoder = encoder
        self.head = (build_head or weight_loss.build_head)(features)
        self.alpha_head = None if build_alpha_head is None else build_alpha_head(features)
        self.ssl_head = None if build_ssl_head is None else build_ssl_head(features)
        self.probe: nn.Sequential | None = None
        if not weight_loss.supervised:
            self.probe = nn.Sequential(BatchNorm(features, affine=False), nn.Linear(features, num_classes))

    def weight_groups(self) -> list[list[nn.Parameter]]:
        """The lower level's parameters, projector included, in groups whose gradients are clipped apart.

        A head that is trained on detached features must not use up the encoder's share of the norm. Frozen parameters
        are left out.
        """
        parts = [[self.encoder, self.head, self.ssl_head], [self.alpha_head]]
        groups = [[value for part in group if part is not None for value in part.parameters()] for group in parts]
        groups = [[value for value in group if value.requires_grad] for group in groups]
        return [group for group in groups if group]

    def classifier(self) -> nn.Module:
        """The module that turns features into class scores: the head, or the probe of a self-supervised search."""
        return self.head if self.probe is None else self.probe
