"""`ssfnas adjust` in a pipe, in the list of runs, and where it refuses."""

import json
from pathlib import Path

import pytest

TINY = ["--threads", "1", "--set", "kernels=torch"]


def test_a_retraining_is_corrected_and_evaluated_in_one_pipe(ssfnas, world, tmp_path):
    retrain = f"ssfnas retrain {world}/genotype.json --data {world}/data {' '.join(ssfnas.tiny)}"
    result = ssfnas.shell(f"{retrain} | ssfnas adjust - | ssfnas evaluate -", tmp_path)
    assert result.code == 0, result.err
    metrics = json.loads(result.out)
    assert metrics["run"].startswith("runs/adjust-data-ce-logit-s0-") and "test" in metrics["splits"]
    (entry,) = [one for one in ssfnas.ok("runs", cwd=tmp_path).json["runs"] if "source" in one]
    assert (entry["path"], entry["adjusted"], entry["state"]) == (metrics["run"], "logit", "done")
    assert Path(entry["source"]).name.startswith("retrain-") and entry["next"] == "", "it is evaluated"


@pytest.fixture
def run(world):
    return world / "retrain"


def test_what_cannot_be_corrected_is_one_line_and_leaves_nothing(ssfnas, world, run, tmp_path):
    for code, words, argv in (
        (3, ["no images to choose on", "--val-share", "holdout=0.1", "--tau"], [run, "--tau", "auto"]),
        (3, ["search run"], [world / "search"]),
        (2, ["--tau", "greater than or equal to 0"], [run, "--tau", "-1"]),
        (2, ["--method", "temperature"], [run, "--method", "cRT"]),
        (2, ["--epochs", "crt and lws"], [run, "--epochs", "3"]),
        (2, ["is the run that is corrected"], [run, "-o", run, "--force"]),
    ):
        ssfnas.refuses(code, words, "adjust", *argv, *TINY, cwd=tmp_path)
    assert not (tmp_path / "runs").exists()


def test_classes_without_an_image_to_choose_on_are_a_warning(ssfnas, world, tmp_path):
    rare = ["--dist", "exp", "--mu", "0.02", "--max-per-class", "50", "-o", "data"]  # the rarest class has one image
    ssfnas.ok("make-dataset", "--source", "digits", *rare, cwd=tmp_path)
    held_out = ["--data", "data", *ssfnas.tiny, "--set", "holdout=0.2", "--other-data", "-o", "run"]
    ssfnas.ok("retrain", world / "genotype.json", *held_out, cwd=tmp_path)
    chosen = ssfnas.ok("adjust", "run", "--tau", "auto", *TINY, "--quiet", "-o", "adjusted", cwd=tmp_path)
    assert " of 10 classes: what tau " in chosen.err


def test_a_classifier_is_trained_until_the_time_limit_and_goes_on(ssfnas, world, run, tmp_path):
    argv = ["adjust", run, "--method", "crt", "--epochs", "2", "--data", world / "data", *TINY, "-o", "crt"]
    stopped = ssfnas.run(*argv, "--max-time", "0", cwd=tmp_path)
    assert stopped.code == 75 and "the same command goes on" in stopped.err
    done = ssfnas.ok(*argv, cwd=tmp_path).json
    assert (done["state"], done["adjusted"], done["path"]) == ("done", "crt", "crt")


def test_settings_that_are_shown_are_read_back(ssfnas, run, tmp_path):
    shown = ssfnas.ok("adjust", run, "--tau", "2", "--show-settings", cwd=tmp_path).out.decode()
    assert "tau = 2.0" in shown and 'method = "logit"' in shown
    (tmp_path / "mine.toml").write_text(shown)
    again = ssfnas.ok("adjust", run, "--config", "mine.toml", "--show-settings", cwd=tmp_path)
    assert again.out.decode() == shown
    ssfnas.refuses(2, ["--tau", "not for crt"], "adjust", run, "--config", "mine.toml", "--method", "crt", cwd=tmp_path)
