"""A comparison: its figures against hand arithmetic, what it refuses, and what its audit says."""

import json
import re

import pytest
from results_support import lines_of, make_run, split_of

from ssfnas_cli.artifacts.genotype import Cell, Edge, Genotype
from ssfnas_cli.errors import InputError, UsageError
from ssfnas_cli.results.comparison import compare, to_json
from ssfnas_cli.results.facts import read_facts
from ssfnas_cli.results.selection import select_runs

NEWER = {"torch": "3", "kernels": "torch", "device": "cpu"}


@pytest.fixture
def three_seeds(tmp_path):
    """Two losses of three seeds each."""
    accuracies = {"ce": [50.0, 52.0, 54.0], "ldam": [53.0, 53.0, 59.0]}
    for loss, values in accuracies.items():
        for seed, top1 in enumerate(values):
            make_run(tmp_path / f"{loss}-{seed}", "retrain", f"loss={loss}", seed=seed, top1=top1)
    return tmp_path


def comparison(*paths, baseline=None, splits=(), kind=None):
    return compare(select_runs(paths, "evaluation", kind), splits, [] if baseline is None else [baseline])


def remarks(*paths, **more):
    found = comparison(*paths, **more).remarks
    return {remark.what: remark.sentence for remark in found}


def test_figures_are_means_and_deviations_over_the_seeds(three_seeds):
    facts = to_json(comparison(three_seeds, baseline="ce"))
    ce, ldam = facts["groups"]
    assert (ce["label"], ldam["label"]) == ("ce", "ldam")
    assert ce["figures"]["top1"] == {"mean": 52.0, "std": 2.0, "num": 3, "values": [50.0, 52.0, 54.0]}
    assert ldam["figures"]["top1"]["std"] == pytest.approx(12**0.5)
    assert ce["figures"]["num_params"]["mean"] == 1000 and ce["figures"]["steps"]["mean"] == 30
    assert ce["figures"]["seconds"]["mean"] == 6.0
    difference = facts["differences"]["ce"]["ldam"]["top1"]
    assert (difference["mean"], difference["num"]) == (3.0, 3), "3, 1 and 5, pair by pair"
    assert difference["low"] == pytest.approx(3 - 4.3027 * 2 / 3**0.5, abs=1e-3) and difference["p"] == 0.25
    json.dumps(facts, allow_nan=False)


def test_pairs_are_those_of_the_same_seed_alone(tmp_path):
    for loss, seeds in {"ce": (0, 1), "ldam": (1, 2)}.items():
        for seed in seeds:
            make_run(tmp_path / f"{loss}{seed}", "retrain", f"loss={loss}", seed=seed, top1=10.0 * seed + len(loss))
    found = to_json(comparison(tmp_path, baseline=str(tmp_path / "ce0")))
    assert found["differences"]["ce"]["ldam"]["top1"] == {"mean": 2.0, "low": None, "high": None, "p": None, "num": 1}
    assert "other seeds" in remarks(tmp_path, baseline="ce")["seeds"]


def test_a_network_that_was_not_searched_is_paired_by_the_seed_of_the_retraining(tmp_path):
    for seed in (3, 4):
        search = make_run(tmp_path / "s" / f"search-{seed}", "search", seed=seed, epochs=4)
        origin = {"run": str(search.path), "seed": seed, "rule": "darts", "epoch": 4}
        make_run(tmp_path / "n" / f"net-{seed}", seed=seed, provenance=origin, top1=60.0 + seed)
        make_run(tmp_path / "n" / f"plain-{seed}", seed=seed, top1=50.0 + seed)
    found = to_json(comparison(tmp_path / "n", baseline="resnet20"))
    (difference,) = (one["top1"] for one in found["differences"]["resnet20"].values())
    assert (difference["mean"], difference["num"]) == (10.0, 2)
    assert found["groups"][0]["figures"]["search_seconds"]["mean"] == 8.0


def test_a_baseline_that_is_none_is_refused_with_the_groups(three_seeds):
    with pytest.raises(UsageError, match=r"--baseline cx: is not one run or group .*'ce', 'ldam'"):
        comparison(three_seeds, baseline="cx")


def test_searches_are_compared_by_their_last_epoch(tmp_path):
    for relax, value in (("sigmoid", 70.0), ("softmax", 60.0)):
        lines = lines_of("search", 4, accuracy_alpha_half=value, genotype_skips=0.5)
        make_run(tmp_path / relax, "search", f"relax={relax}", epochs=4, lines=lines)
    figures = [group["figures"] for group in to_json(comparison(tmp_path))["groups"]]
    assert [one["accuracy_alpha_half"]["mean"] for one in figures] == [70.0, 60.0]
    assert "top1" not in figures[0] and figures[0]["genotype_skips"]["mean"] == 0.5


def test_what_the_cells_of_a_search_are_made_of_is_counted(tmp_path):
    ops = {
        "normal": ["sep_conv_3x3", "dil_conv_5x5", "skip_connect"],
        "reduce": ["max_pool_3x3", "none", "none", "none"],
    }
    cells = {
        kind: Cell(edges=tuple(Edge(op=op, source=0, target=2) for op in listed), concat=(2,))
        for kind, listed in ops.items()
    }
    lines = lines_of("search", 2, accuracy_alpha_half=50.0)
    run = make_run(tmp_path / "s", "search", epochs=2, lines=lines)
    (run.path / "genotype.json").write_bytes(Genotype(**cells).to_json())
    make_run(tmp_path / "t", "search", epochs=2, seed=1, lines=lines)  # of an earlier ssfnas, without the file
    (group,) = to_json(comparison(tmp_path))["groups"]
    assert group["figures"]["normal_convs"]["values"] == [pytest.approx(2 / 3), None]
    assert group["figures"]["reduce_pools"]["values"] == [0.25, None]


def test_what_a_genotype_costs_is_compared_with_its_like(tmp_path):
    for cost, value in (("macs", 3e8), ("latency", 4.25)):
        lines = lines_of("search", 2, accuracy_alpha_half=50.0, genotype_cost=value, expected_cost=1.0)
        make_run(tmp_path / cost, "search", f"cost={cost}", epochs=2, lines=lines)
    groups = to_json(comparison(tmp_path, baseline="cost=macs"))["groups"]
    by_cost = {group["label"]: group["figures"] for group in groups}
    assert by_cost["cost=macs"]["genotype_macs"]["mean"] == 3e8 and by_cost["cost=macs"]["genotype_ms"]["num"] == 0
    assert (
        by_cost["cost=latency"]["genotype_ms"]["mean"] == 4.25 and by_cost["cost=latency"]["genotype_macs"]["num"] == 0
    )


# What cannot be compared


def test_a_search_and_a_retraining_are_refused_unless_they_lie_in_a_folder(tmp_path):
    search, net = make_run(tmp_path / "search", "search", epochs=4), make_run(tmp_path / "net")
    with pytest.raises(InputError, match=r"is a search, and .*net a retraining"):
        select_runs([search.path, net.path], "evaluation")
    assert [run.path for run in select_runs([tmp_path], "evaluation").runs] == [net.path]
    assert [run.path for run in select_runs([tmp_path], "evaluation", "search").runs] == [search.path]


def test_other_numbers_of_classes_are_refused(tmp_path):
    one = make_run(tmp_path / "one")
    two = make_run(tmp_path / "two", class_names=["cat", "dog"], seed=1)
    with pytest.raises(InputError, match=r"one has 3 classes, and .*two 2"):
        comparison(one.path, two.path)


def test_a_split_that_nobody_is_evaluated_on_is_named_with_the_command(tmp_path):
    run = make_run(tmp_path / "one")
    with pytest.raises(InputError, match=r"--split val: .*evaluated: test\): ssfnas evaluate .*one --split val"):
        comparison(run.path, splits=["val"])


def test_empty_folders_and_missing_paths_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: is a folder without a run"):
        select_runs([tmp_path / "empty"], "evaluation")
    with pytest.raises(InputError, match="nothing: no such run folder"):
        select_runs([tmp_path / "nothing"], "evaluation")


def test_unfinished_unevaluated_and_damaged_runs_are_left_out_with_the_command(tmp_path):
    make_run(tmp_path / "a-good")
    make_run(tmp_path / "b-stopped", state="stopped", lines=lines_of("retrain", 1))
    make_run(tmp_path / "c-bare", top1=None)
    make_run(tmp_path / "d-gone", state="running")
    damaged = make_run(tmp_path / "e-damaged")
    (damaged.path / "config.json").write_text("{")
    told = {one.path.name: str(one) for one in select_runs([tmp_path], "evaluation").left_out}
    assert "is stopped at epoch 1 of 3: ssfnas retrain -o" in told["b-stopped"]
    assert told["c-bare"].endswith(f"is not evaluated: ssfnas evaluate {tmp_path / 'c-bare'}")
    assert "is interrupted at epoch 3 of 3" in told["d-gone"]
    assert "is damaged" in told["e-damaged"]
    with pytest.raises(InputError, match=r"no run can be used: .*c-bare: is not evaluated"):
        select_runs([tmp_path / "c-bare"], "evaluation")


# The audit


def test_a_fair_comparison_has_no_remark(three_seeds):
    assert remarks(three_seeds) == {}


@pytest.mark.parametrize(
    ("what", "sets", "more", "told"),
    [
        ("data", [], {"sha256": "b" * 64}, "other data"),
        (
            "steps",
            ["batch_size=32"],
            {"lines": lines_of("retrain", 3, steps=20)},
            "ce: 30; batch_size=32: 60",
        ),
        ("steps", [], {"epochs": 6}, "epochs=3: 30; epochs=6: 60"),
        ("views", ["pretrain=barlow", "pretrain_epochs=5"], {}, "ce: 3; .*: 13"),
        ("size", ["loss=ldam"], {"result": {"num_params": 1500}}, "0.001 million.*0.0015 million"),
        ("training", ["loss=ldam"], {"recipe": 1}, "trains differently"),
        (
            "software",
            ["loss=ldam"],
            {"environment": NEWER},
            "another torch: 2: .*; 3: ",
        ),
    ],
)
def test_what_is_unfair_is_said(tmp_path, what, sets, more, told):
    for seed in (0, 1):
        make_run(tmp_path / f"a{seed}", seed=seed, top1=50.0)
        make_run(tmp_path / f"b{seed}", "retrain", *sets, seed=seed, top1=51.0, **more)
    found = remarks(tmp_path)
    assert set(found) >= {what} and re.search(told, found[what]), found


def test_another_stem_is_said(tmp_path):
    for stem in ("cifar", "imagenet"):
        make_run(tmp_path / stem, "retrain", f"stem={stem}", provenance={"seed": 0})
    assert "other stem: stem=cifar: cifar; stem=imagenet: imagenet" in remarks(tmp_path)["size"]


def test_one_seed_and_repeats_and_same_figures_are_said(tmp_path):
    make_run(tmp_path / "a", "retrain", "loss=logit_adjusted")
    make_run(tmp_path / "b", "retrain", "loss=balanced_softmax")
    make_run(tmp_path / "c", "retrain", "loss=balanced_softmax")
    found = remarks(tmp_path)
    assert found["seeds"].endswith("logit_adjusted; balanced_softmax")
    assert "same figures to the last digit" in found["same"] and "/c: has the settings and the seed" in found["repeat"]


@pytest.mark.parametrize(("epoch", "tracked", "said"), [(2, True, True), (4, True, False), (2, False, False)])
def test_an_epoch_that_may_be_chosen_on_the_test_split_is_said(tmp_path, epoch, tracked, said):
    search = make_run(tmp_path / "s" / "search", "search", f"track_test={str(tracked).lower()}", epochs=4)
    origin = {"run": str(search.path), "seed": 0, "rule": "darts", "epoch": epoch}
    net = make_run(tmp_path / "net", provenance=origin)
    found = remarks(net.path)
    assert ("choice" in found) is said and (not said or "of epoch 2, not the last one" in found["choice"])


def test_the_best_of_several_groups_on_the_test_split_is_a_choice(tmp_path):
    both = {"test": split_of(50.0), "val": split_of(40.0)}
    for loss in ("ce", "ldam", "focal"):
        make_run(tmp_path / loss, "retrain", f"loss={loss}", splits=both)
    assert "best of 3 groups by test is a choice on a test split" in remarks(tmp_path)["choice"]
    assert "choice" not in remarks(tmp_path, splits=["val"])


# Corrections


def corrected(path, base, sets=("loss=ldam",), **more):
    """A correction of a run; without `environment` it computed nothing, so it records no device."""
    return make_run(
        path,
        "retrain",
        *sets,
        **{
            "adjustment": {"method": "logit", "source": str(base)},
            "environment": {"torch": "2"},
            "lines": [],
            **more,
        },
    )


def test_a_correction_takes_the_steps_and_the_time_of_its_base(tmp_path):
    base = make_run(tmp_path / "base", lines=lines_of("retrain", 3))
    trained = corrected(tmp_path / "crt", base.path, lines=lines_of("retrain", 2, steps=7))
    cost = lambda run: [read_facts(run).cost[name] for name in ("steps", "seconds")]
    assert cost(base) == [30, 6.0]
    assert cost(corrected(tmp_path / "plain", base.path)) == [30, 6.0]
    assert cost(trained) == [44, 10.0]
    assert cost(corrected(tmp_path / "again", trained.path)) == [44, 10.0]
    assert cost(corrected(tmp_path / "moved", "/gone/base")) == [30, 6.0], "the base lies beside it"
    assert cost(corrected(tmp_path / "lost", "/gone/elsewhere")) == [None, None]
    assert cost(corrected(tmp_path / "itself", "/gone/itself")) == [None, None]


def test_a_correction_that_computed_nothing_is_no_other_device(tmp_path):
    for seed in (0, 1):
        base = make_run(tmp_path / f"base-{seed}", seed=seed)
        corrected(tmp_path / f"plain-{seed}", base.path, seed=seed)
        corrected(tmp_path / f"lost-{seed}", "/gone/elsewhere", ("loss=focal",), seed=seed)
    assert not {"software", "training"} & set(remarks(tmp_path))


def test_a_correction_of_a_network_from_another_device_is(tmp_path):
    other = {"torch": "2", "kernels": "torch", "device": "cuda"}
    for seed in (0, 1):
        base = make_run(tmp_path / f"base-{seed}", "retrain", "loss=focal", seed=seed, environment=other)
        make_run(tmp_path / f"plain-{seed}", seed=seed)
        corrected(tmp_path / f"fixed-{seed}", base.path, seed=seed)
        more = {"environment": {**other, "device": "cpu"}, "lines": lines_of("retrain", 1)}
        corrected(tmp_path / f"crt-{seed}", base.path, ("loss=ce", "lr=0.1"), seed=seed, **more)
    told = remarks(tmp_path)["software"]
    assert "another device" in told and "cuda, then cpu: " in told and "None" not in told
