"""Networks as `predict` and `export` see them, without a training."""

from __future__ import annotations

import torch

from ssfnas_cli.artifacts.model import DerivedNetwork, ModelCard, Part
from ssfnas_cli.deploy.model import Model
from ssfnas_cli.engine.network import build_model


def untrained(network: DerivedNetwork | Part, side: int, reduced: bool = False) -> Model:
    """A network for ten classes of RGB images of that side, with the weights that it starts from; `reduced` is bf16.

    Raises:
        PluginError: the network does not take images of that side.
    """
    card = ModelCard(
        network=network,
        loss=Part(name="ce"),
        head=Part(name="linear"),
        aux=False,
        in_channels=3,
        class_names=[str(label) for label in range(10)],
        train_counts=[1] * 10,
        image_size=side,
        mean=[0.5] * 3,
        std=[0.25] * 3,
        data="nowhere",
        data_sha256="0" * 64,
        seed=0,
    )
    return Model(build_model(card), card, None, torch.device("cpu"), reduced)
