"""What steps report on a GPU is read from time to time, and the run's record is the same."""

import math

import pytest
import torch
from search_support import dying_at

from ssfnas_cli.artifacts.checkpoint import load_newest
from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.engine import loop, train_phase
from ssfnas_cli.engine.loop import Diverged
from ssfnas_cli.engine.retrain import run_retrain
from ssfnas_cli.settings import RetrainSettings, load_settings

CLOCKS = ("step_seconds", "elapsed_seconds", "peak_memory_bytes")


@pytest.fixture
def train(few_digits, tmp_path):
    """`train(name, *settings)`: train a small network for two epochs of five steps."""

    def run(name, *sets):
        flags = {"data": str(few_digits.path), "network": "resnet20", "epochs": 2, "batch_size": 8, "kernels": "torch"}
        run_retrain(None, load_settings(RetrainSettings, sets=sets, flags=flags), tmp_path / name, False)
        return RunFolder.open(tmp_path / name, "retrain")

    return run


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Steps report tensors, and time passes without a read that is due."""
    monkeypatch.setattr(train_phase, "reported", lambda x: x.detach())
    monkeypatch.setattr(loop, "READ_SECONDS", math.inf)


def record(run):
    return [{key: value for key, value in line.items() if key not in CLOCKS} for line in run.metrics()]


def test_the_record_of_a_run_does_not_depend_on_when_steps_are_read(train, monkeypatch):
    at_once = train("at once")
    monkeypatch.setattr(train_phase, "reported", lambda x: x.detach())
    monkeypatch.setattr(loop, "READ_SECONDS", math.inf)
    later = train("later")
    assert record(later) == record(at_once) and len(record(later)) == 2
    assert all(line["step_seconds"] > 0 for line in later.metrics())


def test_a_checkpoint_in_the_midst_of_steps_that_were_not_read_has_all_of_them(train, on_a_gpu, tmp_path):
    whole = train("whole")
    with dying_at(train_phase.TrainPhase, 1, 3):
        train("cut", "save_minutes=1e-9")
    state = load_newest(tmp_path / "cut" / "checkpoints").state
    assert (state["epoch"], state["step"], len(state["step_seconds"])) == (1, 3, 3)
    assert record(train("cut", "save_minutes=1e-9")) == record(whole)


def test_a_loss_that_is_not_finite_is_noticed_before_anything_is_saved(train, on_a_gpu, tmp_path, monkeypatch):
    step = train_phase.TrainPhase.step

    def poisoned(self, epoch, number, batch):
        values = step(self, epoch, number, batch)
        return values | {"loss": torch.tensor(math.nan)} if (epoch, number) == (1, 2) else values

    monkeypatch.setattr(train_phase.TrainPhase, "step", poisoned)
    with pytest.raises(Diverged, match=r"loss is nan at epoch 2, step 2: training has diverged"):
        train("run")
    assert load_newest(tmp_path / "run" / "checkpoints").state["epoch"] == 1
