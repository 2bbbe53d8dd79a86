"""Settings are read back as they were shown, and their identity holds what changes results."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from settings_support import load

from ssfnas_cli.settings import (
    MakeDatasetSettings,
    RetrainSettings,
    SearchSettings,
    flatten,
    identity_hash,
    to_toml,
)


@pytest.mark.parametrize("model", [SearchSettings, RetrainSettings, MakeDatasetSettings])
def test_shown_settings_are_read_back_the_same(model, toml):
    settings = load(model=model).resolve_plugins()
    assert load(model=model, config=toml(to_toml(settings))).resolve_plugins() == settings


def test_shown_settings_with_everything_changed_are_read_back_the_same(toml):
    settings = load(
        *("relax.zero_one=l2", "alpha_loss=ce", "alpha_loss.label_smoothing=0.1", "loss.centred=false"),
        *("alpha_betas=[0.1, 0.2]", "alpha_lr=0.5", "flip=false", "max_time=1:00:00", "views.blur=true"),
        *("ops=skip_connect,sep_conv_3x3", "data=a 'b' \"c\""),
        preset="quick",
        relax="sigmoid",
        loss="barlow",
        order=2,
    ).resolve_plugins()
    text = to_toml(settings)
    assert tomllib.loads(text)["relax"]["zero_one"] == "l2"
    assert load(config=toml(text), preset="paper").resolve_plugins() == settings


def test_shown_settings_cover_every_setting():
    shown = tomllib.loads(to_toml(load().resolve_plugins()))
    assert set(shown) == set(SearchSettings.model_fields)


def test_the_identity_holds_what_changes_results_and_nothing_else():
    base = load(loss="barlow").resolve_plugins().identity()
    same = load("device=cpu", "threads=3", "workers=2", "max_time=5", "data=x", "log_seconds=1", loss="barlow")
    assert same.resolve_plugins().identity() == base
    for change in (
        "seed=1",
        "lr=0.1",
        "loss.lambda=0.1",
        "views.hue=0.2",
        "precision=bf16",
        "ops=skip_connect",
        "order=2",
    ):
        assert load(change, loss="barlow").resolve_plugins().identity() != base, change
    assert base["loss.lambda"] == 0.0051 and base["views.min_scale"] == 0.2
    assert json.loads(json.dumps(base)) == base


def test_the_hash_of_an_identity_does_not_depend_on_the_order_of_keys():
    assert identity_hash({"a": 1, "b": 2}) == identity_hash({"b": 2, "a": 1}) != identity_hash({"a": 1, "b": 3})
    assert len(identity_hash({})) == 8
    assert flatten({"a": {"b": {"c": 1}}, "d": [2]}) == {"a.b.c": 1, "d": [2]}


def test_settings_do_not_change_once_made():
    with pytest.raises(ValueError, match="frozen"):
        load().epochs = 3


def test_checking_settings_imports_no_torch():
    code = (
        "import sys\n"
        "from ssfnas_cli.settings import *\n"
        "load_settings(SearchSettings, preset='quick', sets=['loss.lambda=1'], flags={'loss': 'barlow'})\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
