"""NaN and Inf: the run stops with a clear message, keeps the last good checkpoint, and nothing derives from it."""

import json
import shutil

import pytest
import torch
from faults_support import RETRAIN, SEARCH, assert_same_end

from ssfnas_cli.artifacts.checkpoint import load_newest
from ssfnas_cli.artifacts.tensors import load_tensors, save_tensors


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("loss", "weight_loss is nan"),
        ("alpha", "alpha"),
        ("weight", "is no longer finite"),  # the step's own alphas show it
        ("buffer", "running_mean' is not finite"),  # no loss of training mode depends on it: found at the save
    ],
)
def test_what_is_not_finite_stops_a_search(zygote, place, what, words):
    result = zygote.run([*SEARCH, "-o", "run"], place, {"poison": [what, 1, 2]})
    assert result.code == 3 and result.out == ""
    last = result.err.splitlines()[-1]
    assert words in last and "training has diverged" in last and "epoch 2, step" in last
    assert "Traceback" not in result.err
    run = place / "run"
    newest = load_newest(run / "checkpoints")
    assert (newest.state["epoch"], newest.state["step"]) == (1, 2)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in newest.tensors.values())
    assert json.loads((run / "status.json").read_text())["state"] == "diverged"
    assert not (run / "genotype.json").exists()
    derived = zygote.run(["derive", "run"], place)
    assert derived.code == 3 and "diverged" in derived.err and derived.out == ""
    assert "try a lower '--set lr=' or '--set alpha_lr=', with --force" in derived.err


@pytest.mark.parametrize("what", ["weight"])
def test_what_is_not_finite_stops_a_retraining(zygote, place, what):
    result = zygote.run([*RETRAIN, "-o", "run"], place, {"poison": [what, 0, 3]})
    assert result.code == 3 and "training has diverged" in result.err.splitlines()[-1]
    evaluated = zygote.run(["evaluate", "run"], place)
    assert evaluated.code == 3 and "diverged" in evaluated.err
    (entry,) = zygote.run(["runs", "run"], place).json["runs"]
    remedy = "try a lower '--set lr=', with --force or another -o"
    assert entry["next"] == remedy and remedy in evaluated.err and "go on" not in evaluated.err


def test_a_diverged_run_goes_on_from_the_last_good_checkpoint_if_asked(zygote, world, place):
    assert zygote.run([*SEARCH, "-o", "run"], place, {"poison": ["loss", 1, 2]}).code == 3
    assert zygote.run([*SEARCH, "-o", "run"], place).code == 0  # the poison was no part of the run
    assert_same_end(place / "run", world / "search")


def test_alphas_that_are_not_finite_derive_to_nothing(zygote, world, place):
    run = shutil.copytree(world / "search", place / "run")
    alphas = load_tensors(run / "alphas.safetensors")
    alphas["normal"][-1, 0, 0] = float("nan")
    save_tensors(run / "alphas.safetensors", alphas)
    result = zygote.run(["derive", "run"], place)
    assert result.code == 3 and "not finite" in result.err and result.out == ""
