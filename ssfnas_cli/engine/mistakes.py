"""The mistakes of a finished retraining, with their images, for people to look at."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.data.augment import Normalise
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.evaluate import open_network_and_data
from ssfnas_cli.engine.predict import predict
from ssfnas_cli.results.mistakes import Mistakes, find_mistakes


def mistakes_of_run(run: RunFolder, split: str, num: int, device: Device) -> tuple[Mistakes, dict[int, NDArray]]:
    """The most confident and the worst mistakes on a split of the run's own data set.

    Args:
        run: a finished retraining.
        split: of the data set.
        num: how many of either sort.
        device: where to compute.

    Returns:
        The mistakes, and their images uint8 [H, W, C] by their places in the split.

    Raises:
        InputError: the run is unfinished, the data set is not there or damaged, or it has no such split.
    """
    network, card, data = open_network_and_data(run, splits=[split])
    images = data.split(split)
    data.verify([split])
    scores, labels = predict(device.place(network), images, Normalise(tuple(card.mean), tuple(card.std)), device)
    found = find_mistakes(scores, labels, card.train_counts, num)
    rows = [one.row for one in (*found.confident, *found.worst)]
    return found, dict(zip(rows, images.rows(np.array(rows, dtype=np.int64)), strict=True))
