"""Runs by the arms of their sweep: which run is which arm, what there is not yet, and differences between arms."""

import re
from pathlib import Path

import pytest
from results_support import make_run, split_of
from scipy import stats

from ssfnas_cli.errors import InputError, UsageError
from ssfnas_cli.results.comparison import compare
from ssfnas_cli.results.selection import select_runs
from ssfnas_cli.sweep.arms import data_names, name_runs

PLAN = """
output = "out"
seeds = [0, 1, 2]
[data.arms]
flat = { dist = "balance" }
tail = { dist = "exp", mu = 0.1 }
[search.arms]
darts = { relax = "softmax" }
ssf = { relax = "sigmoid", loss = "barlow" }
[derive.arms]
two = { rule = "darts" }
[networks]
random = { network = "random-{seed}" }
resnet20 = { lr = 0.1 }
[retrain.arms]
ce = {}
ldam = { loss = "ldam" }
[adjust.arms]
post-hoc = { method = "logit", of = "ce" }
"""
# Top-1 of seeds 0, 1 and 2
TOP1 = {"darts-two-tail-ce": [50, 52, 55], "darts-two-tail-ldam": [60, 60, 61]}
TOP1 |= {"ssf-two-tail-ce": [53, 52, 57], "ssf-two-tail-ldam": [61, 64, 66], "resnet20-tail-ce": [40, 41, 45]}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the file of a sweep and its runs, which lie elsewhere than it says; some are not there."""
    place = tmp_path_factory.mktemp("arms")
    (place / "plan.toml").write_text(PLAN)
    for name, values in TOP1.items():
        for seed, top1 in enumerate(values):
            splits = {"test": split_of(top1), "test_longtail": split_of(top1 + 10)}
            make_run(place / "moved" / f"{name}-seed{seed}", seed=seed, splits=splits)
    make_run(
        place / "moved" / "resnet20-tail-ce-seed7", seed=7, splits={"test": split_of(44)}
    )  # not of the file's seeds
    make_run(place / "moved" / "mine", seed=0, top1=99.0)
    make_run(place / "other" / "mine")
    return place


@pytest.fixture
def swept(place, monkeypatch):
    """The folder of the runs, and the file."""
    monkeypatch.chdir(place)
    return Path("moved"), Path("plan.toml")


def named(swept):
    return name_runs(select_runs([swept[0]], "evaluation"), swept[1])


def test_cells_know_their_arms(cells_of):
    arms = {cell.name: cell.arm for cell in cells_of(PLAN, "seeds=[0]")}
    assert arms["search-ssf-tail-seed0"] == ("ssf", "tail")
    assert arms["ssf-two-tail-ce-seed0"] == ("ssf", "two", "tail", "ce")
    assert arms["random-flat-ldam-seed0"] == ("random", "", "flat", "ldam")
    assert arms["resnet20-flat-ce+post-hoc-seed0"] == ("resnet20", "", "flat", "ce+post-hoc")
    own_seed = cells_of(
        "seeds = [3]\n[search]\nseed = [0, 1]\n[networks]\nr = { network = 'random-{seed}' }\n[retrain]\n"
    )
    assert {cell.arm for cell in own_seed if cell.stage == "retrain"} == {
        ("seed0", "", "", ""),
        ("seed1", "", "", ""),
        ("r", "", "", ""),
    }


def test_runs_are_named_in_the_files_order_and_what_is_missing_is_said_in_one_line(swept):
    selection = named(swept)
    assert list(dict.fromkeys(run.arm for run in selection.runs)) == [
        ("darts", "two", "tail", "ce"),
        ("darts", "two", "tail", "ldam"),
        ("ssf", "two", "tail", "ce"),
        ("ssf", "two", "tail", "ldam"),
        ("resnet20", "", "tail", "ce"),
    ]
    other, missing = map(str, selection.left_out)
    assert other == "plan.toml: 1 other runs are none of its cells (mine)"
    # 2 data sets, 3 seeds, 4 networks, 2 retrainings and 1 correction: 72, of which 15 are there
    assert missing.startswith("plan.toml: 57 of its 72 runs are not there yet (darts-two-flat-ce (seeds 0, 1, 2), ")
    assert missing.endswith(" and 15 more): the same 'ssfnas sweep' makes them") and missing.count("(seeds") == 4
    groups = compare(selection, ["test"]).groups
    assert [group.label for group in groups] == [
        "darts, two, ce", "darts, two, ldam", "ssf, two, ce", "ssf, two, ldam", "resnet20, ce",
    ]  # fmt: skip


def test_an_arm_as_the_baseline_compares_each_group_with_its_like(swept):
    comparison = compare(named(swept), ["test"], ["darts", "ce"])
    top1 = comparison.figures[0]
    found = {one.label: one.difference(top1) for one in comparison.baselines[0].contrasts}
    assert list(found) == ["ssf, two, ce", "ssf, two, ldam", "ssf, mean of 2"]
    assert found["ssf, two, ldam"].mean == pytest.approx((1 + 4 + 5) / 3)
    # The mean is taken within each seed: (3 + 1) / 2, (0 + 4) / 2, (2 + 5) / 2
    seeds = [2.0, 2.0, 3.5]
    mean = found["ssf, mean of 2"]
    assert mean.num == 3 and mean.mean == pytest.approx(2.5)
    interval = stats.ttest_1samp(seeds, 0).confidence_interval(0.95)
    assert (mean.low, mean.high) == pytest.approx((interval.low, interval.high)) and mean.p == pytest.approx(0.25)
    by_loss = comparison.baselines[1]
    assert [one.label for one in by_loss.contrasts] == ["darts, two, ldam", "ssf, two, ldam", "ldam, mean of 2"]
    assert by_loss.of(comparison.groups[0]) is None


def test_a_label_of_a_group_is_still_a_baseline(swept):
    (baseline,) = compare(named(swept), ["test"], ["darts, two, ce"]).baselines
    assert [one.label for one in baseline.contrasts][-1] == "resnet20, ce" and len(baseline.contrasts) == 4
    with pytest.raises(UsageError, match="--baseline adam: is not one run or group"):
        compare(named(swept), ["test"], ["adam"])


def test_columns_are_chosen_by_name(swept):
    names = lambda *asked: [one.name for one in compare(named(swept), ["test", "test_longtail"], [], asked).figures]
    assert names("steps", "top1") == ["steps", "test_top1", "test_longtail_top1"]
    assert names("test_top1") == ["test_top1"]
    with pytest.raises(UsageError, match=re.escape("--figure top2: no run has it. There are test_top1,")):
        names("top2")


def test_what_the_runs_took_is_added_up_in_core_hours(swept):
    """16 runs of 3 epochs of 2 seconds with one thread; the run of another sweep does not count."""
    assert compare(named(swept), ["test"]).core_hours == {"retrain": pytest.approx(16 * 6 / 3600, abs=5e-4)}


def test_a_folder_of_other_runs_is_refused(swept):
    with pytest.raises(InputError, match=r"--sweep plan.toml: no run is one of its cells, such as"):
        name_runs(select_runs([Path("other")], "evaluation"), swept[1])


def test_data_sets_are_named_whatever_their_settings(swept):
    assert data_names(swept[1]) == {"data-flat": "flat", "data-tail": "tail"}


@pytest.mark.parametrize("there", [(1, 2), ()])
def test_a_run_whose_search_is_deleted_is_of_its_arm_by_its_name(tmp_path, there):
    """One line an arm with all seeds, and a remark that nothing but the name says so."""
    (tmp_path / "plan.toml").write_text("seeds = [0, 1, 2]\n[search]\n[retrain.arms]\nce = {}\nldam = {loss = 'ldam'}")
    for seed in (0, 1, 2):
        search = tmp_path / "out" / f"search-seed{seed}"
        origin = {"run": str(search), "rule": "darts", "epoch": 3, "seed": seed}
        if seed in there:
            make_run(search, "search", seed=seed)
        for name, sets in (("ce", ()), ("ldam", ("loss=ldam",))):
            run = tmp_path / "out" / f"searched-{name}-seed{seed}"
            make_run(run, "retrain", *sets, seed=seed, top1=50.0 + seed + len(name), provenance=origin)
    selection = select_runs([tmp_path / "out"], "evaluation", "retrain")
    compared = compare(name_runs(selection, tmp_path / "plan.toml"), [], ["ce"])
    seeds = [(0, 0), (1, 1), (2, 2)]
    assert [(group.label, [run.seeds for run in group.runs]) for group in compared.groups] == [
        ("ce", seeds),
        ("ldam", seeds),
    ]
    told = [remark.sentence for remark in compared.remarks if remark.what == "search"]
    assert len(told) == 2 * (3 - len(there)) and all("only its name says of which arm it is" in one for one in told)
    alone = [remark.sentence for remark in compare(selection, []).remarks if remark.what == "search"]
    assert len(alone) == len(told) and all(one.endswith("so it is not grouped with others") for one in alone)
