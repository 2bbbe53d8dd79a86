"""What evaluates a trained network fastest, without gradients.

Its BNs are folded into convolutions (folding.py). On a CPU its operations are then recorded and fused (program.py), as
soon as a shape of images has come so often that recording, which takes two batches, pays. In bf16, on processors that
multiply it, the encoder has weights and maps of bf16, and what follows the pooled features float32.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from registry.norm import BatchNorm
from ssfnas_cli.nets.folding import fold
from ssfnas_cli.nets.heads import Classifier
from ssfnas_cli.nets.program import Program, record

BATCHES_BEFORE = 2  # computed by the modules before a shape is recorded


class Evaluated:
    """A network for evaluation: it maps standardised images [N, C, H, W] to what the network gives, in float32.

    Attributes:
        network: what computes in float32.

    Args:
        model: the network, which is put into evaluation mode; a copy of it may be what computes. Networks that the
            compiled kernels compute, which apply BNs as they add up a node, stay as they are. So does all but a
            `Classifier`.
        images: some like those that it gets, to see how it computes.
        reduced: compute in bf16.
    """

    def __init__(self, model: nn.Module, images: Tensor, reduced: bool = False):
        self.network: Any = model.eval()
        self._reduced: nn.Module | None = None
        self._counts: dict[torch.Size, int] = {}
        self._programs: dict[torch.Size, Program | None] = {}
        self._records = images.is_cpu and isinstance(model, Classifier) and not model.encoder.count_compiled()[0]
        if isinstance(model, Classifier) and not model.encoder.count_compiled()[0]:
            self.network = fold(model, images)
            self._reduced = _Reduced(self.network) if reduced else None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        network = self.network if self._reduced is None else self._reduced
        if not self._records:
            return network(images).float()
        with torch.autocast("cpu", enabled=False):
            return (self._program(network, images) or network)(images).float()

    def _program(self, network: nn.Module, images: Tensor) -> Program | None:
        """The program for images of this shape, if there is one by now."""
        shape = images.shape
        self._counts[shape] = self._counts.get(shape, 0) + 1
        if self._counts[shape] > BATCHES_BEFORE and shape not in self._programs:
            exact = None if network is self.network else self.network(images)
            self._programs[shape] = record(network, images, exact)
        return self._programs.get(shape)


class _Reduced(nn.Module):
    """A classifier whose encoder computes in bf16. BNs that could not be folded keep their float32."""

    def __init__(self, network: Classifier):
        super().__init__()
        self.classifier = copy.deepcopy(network)
        self.classifier.encoder.compile_with(None)
        self.classifier.encoder.to(torch.bfloat16)
        for mine, theirs in zip(self.classifier.modules(), network.modules(), strict=True):
            if isinstance(mine, BatchNorm):
                mine.float().load_state_dict(theirs.state_dict())

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier.logits(self.classifier.encoder(images.bfloat16()).features.float())
