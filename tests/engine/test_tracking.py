"""Held-out splits are evaluated as often as is asked, or as is cheap, and the training is the same either way."""

import json

import numpy as np
import pytest
import torch
from search_support import run

from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.network import make_card
from ssfnas_cli.engine.retrain import build_phases, run_retrain
from ssfnas_cli.engine.tracking import Tracking
from ssfnas_cli.errors import OutputExistsError
from ssfnas_cli.settings import RetrainSettings, load_settings

FLAGS = {"network": "resnet20", "batch_size": 64, "track_test": True}


class Images:
    """A data set of which only numbers are asked."""

    def __init__(self, **nums):
        self.nums = nums

    def split(self, name):
        size = self.nums[name]
        if name == "test_longtail":
            return Rows(np.arange(0, 2 * size, 2))
        return Rows(np.arange(size) + (10**6 if name == "val" else 0))


class Rows:
    def __init__(self, source_index):
        self.source_index, self.labels = source_index, source_index % 10

    def __len__(self):
        return len(self.labels)

    def rows(self, places):
        return self.source_index[places]


def settings(*sets, **flags):
    return load_settings(RetrainSettings, sets=sets, flags={**FLAGS, **flags})


def tracked_epochs(tracking):
    return [epoch + 1 for epoch in range(tracking.epochs) if tracking.rows(epoch)]


@pytest.mark.parametrize(
    ("trained", "every"),
    [
        (20_431, 1),  # CIFAR10-LT, mu 0.1: half of 10,000 images is 24.5 % of an epoch
        (19_999, 2),  # just above a quarter
        (12_406, 2),  # mu 0.01: 40 %
        (4_084, 5),  # 122 %
        (100, 40),  # 5,000 %, but the training has no more epochs
    ],
)
def test_it_takes_less_than_a_quarter_of_the_training(trained, every):
    data = Images(test=10_000, test_longtail=4_000)
    tracking = Tracking(settings(), data, ["test", "test_longtail"], 40, trained)
    assert tracking.every == every, "an image of test_longtail is one of test, and costs nothing"
    assert tracked_epochs(tracking) == sorted({*range(every, 41, every), 40})
    told = tracking.resolved()["track_every"]
    assert told == {"value": every, "why": f"10,000 held-out images; an epoch trains on {trained:,}"}
    images = [len(rows) for epoch in range(40) for _, rows in tracking.rows(epoch).values()]
    assert 0.5 * sum(images) / (40 * trained) <= 0.25 or every == 40


def test_every_split_that_is_no_part_of_another_counts():
    data = Images(test=10_000, test_longtail=4_000, val=5_000)
    assert Tracking(settings(), data, ["val", "test", "test_longtail"], 40, 12_000).every == 3, "62.5 %"


def test_what_is_asked_for_is_done(caplog):
    data = Images(test=10_000)
    with caplog.at_level("INFO", "ssfnas"):
        asked = Tracking(settings("track_every=3"), data, ["test"], 8, 100)
        asked.say()
        Tracking(settings("track_every=1"), data, ["test"], 8, 100).say()
        Tracking(settings(track_test=False), data, ["test"], 8, 100).say()
    assert tracked_epochs(asked) == [3, 6, 8] and asked.resolved() == {}
    assert caplog.messages == [
        "test: evaluated after every 3 epochs and after the last one",
        "test: evaluated after every epoch",
    ]
    off = Tracking(settings(track_test=False), data, ["test"], 8, 100)
    assert tracked_epochs(off) == [] and off.resolved() == {}


def phase_of(data, *sets, **flags):
    chosen = settings(*sets, **flags).resolve_plugins()
    return build_phases(make_card(None, chosen, data), chosen, data, Device("cpu", 0))[0][-1]


def test_views_of_a_loss_beside_the_supervised_one_are_trained_on(tiny_digits):
    alone, beside = (phase_of(tiny_digits, *sets).tracking for sets in ((), ("ssl.loss=barlow",)))
    total = sum(tiny_digits.counts("train"))
    assert (alone.trained, beside.trained) == (total, 3 * total) and alone.every > beside.every


def test_tracking_changes_no_weight(tiny_digits):
    ends = []
    for sets in ((), ("track_every=1",), ("track_every=2",)):
        phase = phase_of(tiny_digits, *sets, track_test=bool(sets), epochs=2)
        for epoch in range(2):
            run(phase, 2, epoch)
            phase.end_epoch(epoch)
        ends.append({name: value.clone() for name, value in phase.tensors().items()})
    for other in ends[1:]:
        assert all(torch.equal(value, other[name]) for name, value in ends[0].items())


def test_how_often_is_recorded_and_makes_no_other_run(tiny_digits, tmp_path, caplog):
    flags = {"data": str(tiny_digits.path), "epochs": 3, "threads": 1}
    with caplog.at_level("INFO", "ssfnas"):
        result = run_retrain(None, settings(**flags), tmp_path / "net", False)
    path = RunFolder.open(tmp_path / "net")
    every = path.config["resolved"]["track_every"]["value"]
    assert every == 3, "the test split is larger than the training split"
    assert (
        "test, test_longtail: evaluated after every 3 epochs and after the last one (track_every=auto: " in caplog.text
    )
    tracked = [{key for key in line if key.startswith("accuracy_")} for line in path.metrics()]
    assert tracked == [set(), set(), {"accuracy_test", "accuracy_test_longtail"}]
    assert result["accuracy_test"] == path.metrics()[-1]["accuracy_test"]
    assert run_retrain(None, settings("track_every=1", **flags), tmp_path / "net", False) == result
    with pytest.raises(OutputExistsError, match="track_test"):
        run_retrain(None, settings(track_test=False, **flags), tmp_path / "net", False)


def test_a_run_that_recorded_the_default_of_an_earlier_ssfnas_is_read(tiny_digits, tmp_path):
    recorded = json.loads(settings(track_test=False).model_dump_json())
    for track_test in (True, False):
        old = RetrainSettings.model_validate({**recorded, "track_test": track_test, "track_every": 1})
        assert old.track_every == 1
        assert old.identity() == settings(track_test=track_test).identity()
        assert "track_every" not in old.identity() and "track_every" not in old.changed_identity()
