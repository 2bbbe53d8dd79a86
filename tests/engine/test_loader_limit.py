"""The time limit of a run is seen while it waits for loader processes, in every kind of training."""

import time

import pytest

from registry import LOSSES
from ssfnas_cli.artifacts.genotype import Cell, Edge, Genotype
from ssfnas_cli.data import loader
from ssfnas_cli.engine import head_phase, search_phase, train_phase
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.head_phase import HeadPhase
from ssfnas_cli.engine.train_phase import Schedule, TrainPhase
from ssfnas_cli.errors import Stopped
from ssfnas_cli.nets.heads import Classifier, Correction
from ssfnas_cli.settings import AdjustSettings, RetrainSettings, build_plugin, load_settings

CELL = Cell(edges=(Edge(op="skip_connect", source=0, target=2),), concat=(2,))
GENOTYPE = Genotype(normal=CELL, reduce=CELL)


class Hanging:
    """Batches of which none comes."""

    def __len__(self):
        return 2

    def __getitem__(self, number):
        time.sleep(1000)


@pytest.fixture
def retraining(tiny_digits):
    """`retraining(settings)`: a phase of a derived network on tiny digits."""

    def build(*sets):
        settings = load_settings(RetrainSettings, sets=sets)
        net = Classifier.of_genotype(GENOTYPE, 1, 2, 3, tiny_digits.num_classes, False)
        counts = tiny_digits.counts("train")
        objective = build_plugin(LOSSES, settings.loss, num_classes=10, class_counts=counts)
        schedule = Schedule(name="train", epochs=1, lr=0.1, aux_weight=0.0, regularised=False)
        return TrainPhase(schedule, settings, tiny_digits, Device("cpu", 0), net, objective)

    return build


@pytest.fixture
def correction(tiny_digits):
    """`correction(settings)`: a phase that trains a new head of a retrained network."""

    def build(*sets):
        settings = load_settings(RetrainSettings, sets=sets)
        net = Classifier.of_genotype(GENOTYPE, 1, 2, 3, tiny_digits.num_classes, False)
        net.correction = Correction(tiny_digits.num_classes)
        weights = [*net.head.parameters()]
        return HeadPhase(AdjustSettings(method="crt"), settings, tiny_digits, Device("cpu", 0), net, weights)

    return build


@pytest.mark.parametrize(
    ("kind", "place"),
    [("search", search_phase), ("retraining", train_phase), ("correction", head_phase)],
)
def test_the_time_limit_is_seen_while_no_batch_comes(request, monkeypatch, kind, place):
    phase = request.getfixturevalue(kind)("max_time=0", "workers=1")
    load = place.load_batches
    monkeypatch.setattr(place, "load_batches", lambda batches, *how: load(Hanging(), *how))
    monkeypatch.setattr(loader, "PATIENCE_SECONDS", 0.5)
    with pytest.raises(Stopped, match="stopped by --max-time 0 s while loader processes bring no batch"):
        next(phase.batches(0, 0))
