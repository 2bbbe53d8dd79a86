"""Heads of derived networks, and the model that holds encoder and heads under the names that artifacts use."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from registry.networks import Encoder
from registry.norm import BatchNorm
from ssfnas_cli.artifacts.genotype import Genotype
from ssfnas_cli.nets.derived import DerivedEncoder
from ssfnas_cli.nets.stems import StemName


class AuxiliaryHead(nn.Module):
    """DARTS's auxiliary classifier: maps [N, C, H, W] -> what `build_last` makes of 768 features; logits if linear.

    Average pooling with windows of 5x5 makes maps of 2x2, which the second convolution needs: from 8x8 with stride 3
    after the stem `cifar`, from 7x7 with stride 2 after `imagenet`, exactly as in DARTS. Maps of any other size are
    pooled adaptively. After the stem `imagenet` there is no BN behind the second convolution, as in DARTS's code.
    """

    def __init__(self, channels: int, build_last: Callable[[int], nn.Module], stem: StemName = "cifar"):
        """`build_last` makes its last layer from a number of features: a head of the kind that the network has."""
        super().__init__()
        side, stride = (8, 3) if stem == "cifar" else (7, 2)
        self.pooled_sides = (side, side)
        self.pool = nn.AvgPool2d(5, stride, count_include_pad=False)
        self.adaptive_pool = nn.AdaptiveAvgPool2d(2)
        self.features = nn.Sequential(
            nn.Conv2d(channels, 128, 1, bias=False),
            BatchNorm(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            *([BatchNorm(768)] if stem == "cifar" else []),
            nn.ReLU(),
        )
        self.classifier = build_last(768)

    def forward(self, aux_map: Tensor) -> Tensor:
        pooled = (self.pool if aux_map.shape[2:] == self.pooled_sides else self.adaptive_pool)(aux_map.relu())
        return self.classifier(self.features(pooled).flatten(1))


class Correction(nn.Module):
    """Scales and shifts the logits [N, C] of a finished network, class by class. It changes nothing at first.

    One module serves heads with and without a bias. `scale` and `shift` [C] are buffers, so they are no weights that
    are counted, but they are saved and moved with the network.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, num_classes: int):
        super().__init__()
        self.register_buffer("scale", torch.ones(num_classes))
        self.register_buffer("shift", torch.zeros(num_classes))

    def forward(self, logits: Tensor) -> Tensor:
        return logits * self.scale + self.shift


class Classifier(nn.Module):
    """A network that classifies: `encoder` and `head`.

    It has `aux` if it is trained with an auxiliary head, and `correction` if it was corrected after its training.
    """

    def __init__(
        self, encoder: Encoder, head: nn.Module, aux: nn.Module | None = None, correction: Correction | None = None
    ):
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.aux = aux
        self.correction = correction

    @classmethod
    def of_genotype(
        cls,
        genotype: Genotype,
        in_channels: int,
        channels: int,
        layers: int,
        num_classes: int,
        aux: bool,
        stem: StemName = "cifar",
    ) -> Classifier:
        """The network of a genotype with a linear head."""
        encoder = DerivedEncoder(genotype, in_channels, channels, layers, stem=stem)
        linear = lambda num_features: nn.Linear(num_features, num_classes)
        head = linear(encoder.num_features)
        return cls(encoder, head, AuxiliaryHead(encoder.aux_channels, linear, stem) if aux else None)

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, H, W] -> logits [N, num_classes]."""
        return self.logits(self.encoder(images).features)

    def logits(self, features: Tensor) -> Tensor:
        """[N, F] -> logits [N, num_classes], corrected if the network was."""
        logits = self.head(features)
        return logits if self.correction is None else self.correction(logits)

    def with_aux(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """The logits, and those of the auxiliary head, or None if there is none."""
        encoded = self.encoder(images)
        return self.logits(encoded.features), self.aux(encoded.aux_map) if self.aux is not None else None
