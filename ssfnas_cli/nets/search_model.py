"""The supernet with its heads, under the names that artifacts use."""

from __future__ import annotations

from torch import nn

from registry.losses import Objective
from ssfnas_cli.nets.supernet import Supernet


class SearchModel(nn.Module):
    """Everything that has weights: `encoder`, `head` and, if they are needed, `alpha_head` and `probe`.

    `head` serves the weight step's loss. The alpha step's loss shares it if both want the same kind of head;
    otherwise `alpha_head` is trained in the weight step on features whose gradient is stopped. `probe` is the linear
    classifier that measures a self-supervised search; it gives no gradient to anything else.
    """

    def __init__(self, encoder: Supernet, num_classes: int, weight_loss: Objective, alpha_loss: Objective):
        super().__init__()
        features = encoder.num_features
        self.encoder = encoder
        self.head = weight_loss.build_head(features)
        shared = alpha_loss.head == weight_loss.head
        self.alpha_head = None if shared else alpha_loss.build_head(features)
        self.probe = None if weight_loss.head == "classifier" else nn.Linear(features, num_classes)

    def weight_parameters(self) -> list[nn.Parameter]:
        """The lower level's parameters: all but the probe's, so that a projector is included."""
        return [value for name, value in self.named_parameters() if not name.startswith("probe.")]

    def classifier(self) -> nn.Module:
        """The module that turns features into class scores: the head, or the probe of a self-supervised search."""
        return self.head if self.probe is None else self.probe
