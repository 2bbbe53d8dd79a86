"""What a sweep will read must be there when it is planned, and what the author may not have meant is said."""

from pathlib import Path

import pytest
from PIL import Image

from ssfnas_cli.errors import InputError, UsageError
from ssfnas_cli.sweep.grid import build_cells
from ssfnas_cli.sweep.inputs import check_inputs, twins
from ssfnas_cli.sweep.plan_file import read_plan
from ssfnas_cli.sweep.state import missing

TRAINED = "[networks]\nresnet20 = {}\n[retrain]\nepochs = 1\n"
VAL = '[evaluate]\nsplit = ["val", "test"]\n'
NO_VAL = ["[evaluate] split: ", "no split 'val'", "name of train, test, test_longtail"]


@pytest.fixture
def check(tmp_path, monkeypatch):
    """`check(text)`: the inputs of a file `sweep.toml`, in an empty current folder."""
    monkeypatch.chdir(tmp_path)

    def run(text):
        Path("sweep.toml").write_text(text)
        plan = read_plan(Path("sweep.toml"))
        cells = build_cells(plan)
        check_inputs(plan, cells, missing(cells))
        return cells

    return run


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        (
            '[data]\nsource = "folder"\nroot = "nope"\n[search]',
            InputError,
            ["[data] root: nope does not exist", "--set data.root=PATH"],
        ),
        ('[data]\nsource = "folder"\n[search]', UsageError, ["[data]: root: source 'folder' needs "]),
        ('[data]\nroot = "photos"\n[search]', UsageError, ["[data]: root: the source digits reads none"]),
        (TRAINED + VAL, UsageError, ["the embedded data set has", *NO_VAL]),
        ("[data]\n" + TRAINED + VAL, UsageError, ["will have", "val_share = 0.2", *NO_VAL]),
    ],
)
def test_what_is_not_there_is_refused_when_the_sweep_is_planned(check, text, error, words):
    with pytest.raises(error) as caught:
        check(text)
    said = str(caught.value)
    assert said.startswith("sweep.toml: ") and "--root" not in said and all(word in said for word in words), said


def test_a_val_split_is_cut_or_is_the_folders_own(check, tmp_path):
    check("[data]\nval_share = 0.2\n" + TRAINED + VAL)
    for place in ("train", "val"):
        for name in "ab":
            (tmp_path / "photos" / place / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / "photos" / place / name / "1.png")
    data = '[data]\nsource = "folder"\nroot = "photos"\n'
    check(data + TRAINED + VAL)
    (tmp_path / "photos" / "val").rename(tmp_path / "photos" / "train" / ".val")
    with pytest.raises(UsageError, match="no split 'val'"):
        check(data + TRAINED + VAL)


def test_a_data_set_that_is_made_needs_its_source_no_more(check, tmp_path, tiny_digits):
    """Its root may be gone, and which splits it has its manifest tells."""
    with pytest.raises(InputError):
        check('[data]\nsource = "folder"\nroot = "gone"\n[search]')
    cells = build_cells(read_plan(tmp_path / "sweep.toml", output=Path("runs/sweep")))
    cells[0].output.parent.mkdir(parents=True)
    cells[0].output.symlink_to(tiny_digits.path)
    check('[data]\nsource = "folder"\nroot = "gone"\n[search]')
    with pytest.raises(UsageError, match=r"has no split 'val': name of train, test, test_longtail$"):
        check('[data]\nsource = "folder"\nroot = "gone"\n' + TRAINED + VAL)


def test_an_epoch_behind_the_last_one_is_refused(cells_of):
    words = r"\[derive\] epoch: 5 is behind the last epoch of search-seed0, which is 1: lower it, or raise"
    with pytest.raises(UsageError, match=words):
        cells_of("[search]\nepochs = 1\n[derive]\nepoch = 5")
    cells_of("[search]\nepochs = 5\n[derive]\nepoch = [1, 5]")
    random = '[search]\nepochs = 1\n[search.strategy]\nname = "random"\ncandidates = 96\n[derive]\nepoch = '
    assert cells_of(random + "2"), "rounds of candidates count"
    with pytest.raises(UsageError, match="epoch: 99 is behind"):
        cells_of(random + "99")


def test_cells_with_the_same_settings_are_told(cells_of):
    same = "seeds = [0, 1]\n[search.arms]\na = { epochs = 3 }\nb = {}\nc = { epochs = 3 }"
    assert twins(cells_of(same)) == [("search-a-seed0", "search-c-seed0"), ("search-a-seed1", "search-c-seed1")]
    assert not twins(cells_of("seeds = [0, 1]\n[search.arms]\na = {}\nb = { epochs = 3 }\n[retrain]\n[adjust]"))


def test_one_number_of_seeds_is_noted_as_one_seed(tmp_path):
    (tmp_path / "sweep.toml").write_text("seeds = 3\n[search]")
    plan = read_plan(tmp_path / "sweep.toml")
    assert plan.seeds == (3,) and "seeds = 3 is the one seed 3; for three write seeds = [0, 1, 2]" in plan.notes[0]
    assert not read_plan(tmp_path / "sweep.toml", ["seeds=[3]"]).notes
