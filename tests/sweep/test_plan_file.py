"""What `--set` makes of the file of a sweep."""

import re

import pytest

from ssfnas_cli.errors import UsageError
from ssfnas_cli.sweep.grid import build_cells
from ssfnas_cli.sweep.plan_file import read_plan


@pytest.mark.parametrize(
    ("loss", "sets", "words"),
    [
        ('loss = "focal"', ["loss.gamma=1"], ["--loss focal", "loss.gamma=1"]),
        ('loss = "focal"\n"loss.gamma" = 3', ["loss.gamma=1"], ["--loss focal", "loss.gamma=1"]),
        ('loss = { name = "focal", gamma = 3 }', ["loss=focal"], ["--loss focal", "loss.gamma=3"]),
        ('loss = "focal"\n"loss.gamma" = 3', ["loss=focal"], ["--loss focal", "loss.gamma=3"]),
        ('loss = "focal"\n"loss.gamma" = 3', ["loss=ldam"], ["--loss ldam"]),
        ('loss = { name = "focal", gamma = 3 }', ["loss=ldam"], ["--loss ldam"]),
        ("", ["loss.gamma=1", "loss=focal"], ["--loss focal", "loss.gamma=1"]),
        ("", ["loss.label_smoothing=0.1"], ["loss.label_smoothing=0.1"]),
        ("arms.a = { lr = 0.1 }", ["arms.a.loss.gamma=1", "arms.a.loss=focal"], ["--loss focal", "loss.gamma=1"]),
    ],
)
def test_an_option_that_set_gives_stays_beside_the_name_of_its_plugin(tmp_path, loss, sets, words):
    file = tmp_path / "sweep.toml"
    file.write_text(f"[networks]\nresnet20 = {{}}\n[retrain]\n{loss}\n")
    run = build_cells(read_plan(file, [f"retrain.{text}" for text in sets]))[0]
    assert re.findall(r"--loss \w+|loss\.\S+", run.command) == words


def test_an_option_that_set_gives_is_of_every_name_of_an_axis(tmp_path):
    file = tmp_path / "sweep.toml"
    file.write_text('[networks]\nresnet20 = {}\n[retrain]\nloss = ["ce", "focal"]\n')
    with pytest.raises(UsageError, match="'ce' has no option 'gamma'"):
        build_cells(read_plan(file, ["retrain.loss.gamma=1"]))
