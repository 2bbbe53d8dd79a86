"""A dry run predicts what a search then takes, refuses what it would refuse, and leaves nothing behind."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest

from ssfnas_cli import stop
from ssfnas_cli.artifacts.checkpoint import list_checkpoints
from ssfnas_cli.engine import dry_run as module
from ssfnas_cli.engine.dry_run import EpochGroup, StepTimes, _time_evaluation, predict_search
from ssfnas_cli.engine.loop import Diverged
from ssfnas_cli.engine.search import run_search
from ssfnas_cli.engine.search_phase import SearchPhase
from ssfnas_cli.errors import InputError, OutputExistsError, Stopped
from ssfnas_cli.settings import SearchSettings, load_settings

TORCH = ("--set", "kernels=torch")
TINY = {"channels": 2, "layers": 3, "batch_size": 16, "epochs": 2, "kernels": "torch"}
TINY["ops"] = ("none", "max_pool_3x3", "dil_conv_3x3")


@pytest.fixture
def settings(tiny_digits, monkeypatch, tmp_path):
    """`settings(epochs=3, ...)` of a search on tiny digits, in a folder of its own; few steps are timed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "ENOUGH_SECONDS", 0.0)
    return lambda **more: load_settings(SearchSettings, flags={**TINY, "data": str(tiny_digits.path), **more})


def test_a_prediction_is_whole_and_nothing_is_written(settings, tmp_path):
    facts = predict_search(settings(), None, False)
    assert not list(tmp_path.iterdir())
    real = run_search(settings(), None, False)
    assert real["path"] == facts["path"]
    lines = [json.loads(line) for line in Path(real["path"], "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == facts["epochs"] == 2
    assert facts["kind"] == "dry-run" and facts["timed_steps"] >= 5
    low, high = facts["step_seconds_range"]
    assert 0 < low <= facts["step_seconds"] <= high
    assert facts["epoch_seconds"] < facts["total_seconds"] and facts["setup_seconds"] >= 0
    assert facts["peak_memory_bytes"] > 0
    assert facts["computed_by"] in ("torch", "compiled kernels") or "torch for the others" in facts["computed_by"]
    assert {"device", "threads", "kernels", "processor", "torch", "workers", "precision", "num_params"} <= set(facts)
    newest = list_checkpoints(Path(real["path"], "checkpoints"))[-1]
    on_disk = sum(file.stat().st_size for file in newest.iterdir())
    assert facts["checkpoint_bytes"] == pytest.approx(on_disk, rel=0.1)
    assert facts["disk_bytes"] == 3 * facts["checkpoint_bytes"]  # two are kept, beside the one that is being written


def test_it_counts_the_steps_that_a_search_takes(settings, monkeypatch, tiny_digits):
    taken = []
    original = SearchPhase.step
    monkeypatch.setattr(SearchPhase, "step", lambda self, e, s, batch: taken.append(s) or original(self, e, s, batch))
    facts = predict_search(settings(), None, False)
    per_epoch = facts["steps_per_epoch"]
    assert taken[:3] == [per_epoch - 1, 0, 0], "both shapes of batch are met before anything is timed"
    taken.clear()
    run_search(settings(), None, False)
    assert len(taken) == per_epoch * 2


def test_it_takes_the_evaluated_splits_and_epochs_without_alpha_steps_into_account(settings, monkeypatch):
    rows, epochs = [], []
    accuracy, step = SearchPhase.accuracy, SearchPhase.step
    monkeypatch.setattr(SearchPhase, "accuracy", lambda self, s, r, p: rows.append(len(r)) or accuracy(self, s, r, p))
    monkeypatch.setattr(SearchPhase, "step", lambda self, e, s, batch: epochs.append(e) or step(self, e, s, batch))
    predict_search(settings(track_test=True, epochs=3, warmup_epochs=2), None, False)
    assert max(rows) > 200, "the test split is the largest here"
    assert set(epochs) == {0, 2}, "an epoch of each kind"


def test_an_evaluation_takes_the_mean_of_those_of_the_epochs(monkeypatch):
    """Ten images every epoch and thirty more in the last of four: 70 in four epochs."""

    class Tracking:
        def evaluation_rows(self, epoch):
            rows = {"alpha_half": (None, np.arange(10)), "test": (None, np.arange(30))}
            return rows if epoch == 3 else {"alpha_half": rows["alpha_half"]}

    timed = []
    monkeypatch.setattr(module, "_seconds_of", lambda act: act() or 6.0)
    seconds = _time_evaluation(EpochGroup(Tracking(), 0, 4), lambda split, rows: timed.append(len(rows)))
    assert timed == [30, 30] and seconds == 6.0 / 30 * 70 / 4, "30 images take six seconds"


def test_an_epoch_is_the_sum_of_its_steps():
    assert StepTimes({0: [1.0, 3.0], 1: [2.0, 2.0]}, 2, 0.5, 0.0).epoch_seconds == 4, "timed: its own time"
    assert StepTimes({0: [2.0], 1: [2.0]}, 4, 0.75, 0.0).epoch_seconds == 2 + 2 + 2 + 1.5, (
        "the last one has fewer images"
    )
    assert StepTimes({0: [2.0]}, 1, 1.0, 0.0).epoch_seconds == 2


def test_loader_processes_second_order_and_barlow(settings):
    facts = predict_search(settings(workers=1, order=2, loss="barlow", epochs=1), None, False)
    assert facts["workers"] == 1 and facts["order"] == 2 and facts["step_seconds"] > 0


def test_it_refuses_what_the_search_would_refuse(settings, tmp_path):
    run_search(settings(epochs=1), tmp_path / "run", False)
    with pytest.raises(OutputExistsError, match="epochs"):
        predict_search(settings(epochs=2), tmp_path / "run", False)
    assert predict_search(settings(epochs=2), tmp_path / "run", True)["epochs"] == 2
    assert predict_search(settings(epochs=1), tmp_path / "run", False)["epochs"] == 1, "one that is done is no mistake"
    with pytest.raises(InputError, match="no such data set"):
        predict_search(settings(data="nowhere"), None, False)
    assert [path.name for path in tmp_path.iterdir()] == ["run"], "--force moves nothing aside in a dry run"


def test_a_search_that_diverges_at_once_is_told(settings, monkeypatch):
    monkeypatch.setattr(SearchPhase, "weight_step", lambda self, train, progress: {"weight_loss": float("nan")})
    with pytest.raises(Diverged, match="weight_loss is nan at step"):
        predict_search(settings(), None, False)


def test_a_request_to_stop_that_came_before_ends_it(settings, monkeypatch):
    monkeypatch.setattr(stop, "_received", [signal.SIGTERM])
    with pytest.raises(Stopped, match="SIGTERM in a dry run; it leaves nothing behind"):
        predict_search(settings(), None, False)


def test_an_interrupt_ends_it_at_once(zygote, tmp_path, tmp_path_factory, tiny_digits):
    shape = ["--channels", "2", "--layers", "3", "--threads", "1", "--set", f"ops={','.join(TINY['ops'])}"]
    argv = ["search", "--data", tiny_digits.path, "--dry-run", *shape, *TORCH]
    faults = {"signal_at_step": [signal.SIGINT, "search", 0, 1, 0]}  # see tests/faults/injected.py
    done = zygote.run(argv, tmp_path, faults, streams=tmp_path_factory.mktemp("streams"))
    assert (done.code, done.out) == (130, "")
    assert done.err == "ssfnas: stopped by SIGINT in a dry run; it leaves nothing behind\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_search_takes_what_was_predicted(zygote, tmp_path, tiny_digits):
    """Memory within 20 %, and steps and bytes exactly. Seconds are the machine's own business and are not compared."""
    shape = ["--channels", "6", "--layers", "3", "--batch-size", "32", "--epochs", "1", "--threads", "1", *TORCH]
    shape += ["--set", f"ops={','.join(TINY['ops'])}"]
    argv = ["search", "--data", tiny_digits.path, *shape, "--loss", "barlow", "--workers", "1"]

    def ssfnas(*flags):
        done = zygote.run([*argv, *flags], tmp_path)
        assert done.code == 0, done.err
        return done.json

    predicted, _ = ssfnas("--dry-run"), ssfnas("-o", "run")
    (line,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert predicted["peak_memory_bytes"] == pytest.approx(line["peak_memory_bytes"], rel=0.2)
    newest = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    on_disk = sum(file.stat().st_size for file in newest.iterdir())
    assert predicted["checkpoint_bytes"] == pytest.approx(on_disk, rel=0.05)
