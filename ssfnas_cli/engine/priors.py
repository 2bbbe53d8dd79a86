"""Class priors: the one that a network's outputs hold, and those that flags name."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from registry import LOSSES
from registry.balance import class_priors
from ssfnas_cli.artifacts.files import parse_json, read_bytes
from ssfnas_cli.artifacts.model import ModelCard
from ssfnas_cli.engine.corrections import Floats
from ssfnas_cli.engine.network import held_prior
from ssfnas_cli.errors import InputError
from ssfnas_cli.settings import RetrainSettings, build_plugin


def find_prior(card: ModelCard, training: RetrainSettings | None, given: str = "") -> Floats | None:
    """The class prior [C] that the outputs hold: as given, as recorded, or by loss and sampler if the card is old.

    Args:
        card: of the network.
        training: the resolved settings of its training; None if they are not known.
        given: the value of `--from-prior`, or empty.

    Returns:
        The prior, or None if it is not known.
    """
    if given:
        return read_prior(given, card, "--from-prior")
    prior = card.prior
    if prior is None and training is not None:
        classes = {"num_classes": len(card.class_names), "class_counts": card.train_counts}
        prior = held_prior(training, build_plugin(LOSSES, training.loss, **classes))
    return None if prior is None or isinstance(prior, str) else np.asarray(prior)


def read_prior(given: str, card: ModelCard, flag: str) -> Floats:
    """What a flag says: train, uniform, or a JSON file of counts in class order or by class name.

    Raises:
        InputError: the file cannot be read, or does not hold a positive number for every class.
    """
    names = card.class_names
    if given == "train":
        return class_priors(card.train_counts)
    if given == "uniform":
        return np.full(len(names), 1 / len(names))
    if not os.path.lexists(given):
        raise InputError(f"{flag} {given}: there is no such file: say train, uniform, or name a JSON file of counts")
    value = parse_json(read_bytes(Path(given)), f"{flag} {given}")
    if isinstance(value, dict) and set(value) == set(names):
        value = [value[name] for name in names]
    sound = isinstance(value, list) and all(type(one) in (int, float) and one > 0 for one in value)
    if not sound or len(value) != len(names):
        raise InputError(
            f"{flag} {given}: should be train, uniform, or a file with {len(names)} positive counts: a JSON list "
            "in class order, or an object by class name"
        )
    counts = np.asarray(value, dtype=np.float64)
    return counts / counts.sum()
