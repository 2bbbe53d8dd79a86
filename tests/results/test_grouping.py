"""Which runs are one line, and what the line is called."""

import pytest
from results_support import make_run

from ssfnas_cli.results.facts import read_facts
from ssfnas_cli.results.grouping import group_runs


@pytest.fixture
def world(tmp_path):
    """`world("name", *sets, ...)` makes a retraining."""
    return lambda name, *sets, **more: make_run(tmp_path / name, "retrain", *sets, **more)


def grouped(*runs):
    return {group.label: [run.path.name for run in group.runs] for group in group_runs([read_facts(r) for r in runs])}


def test_runs_that_differ_in_the_seed_are_one_group(world):
    runs = [world(f"{loss}-{seed}", f"loss={loss}", seed=seed) for loss in ("ce", "ldam") for seed in (1, 0)]
    assert grouped(*runs) == {"ce": ["ce-0", "ce-1"], "ldam": ["ldam-0", "ldam-1"]}


def test_tracking_the_test_split_makes_no_other_group(world):
    assert len(grouped(world("a", seed=0), world("b", "track_test=true", seed=1))) == 1


def test_labels_have_what_differs_and_no_default_options(world):
    runs = [
        world("a"),
        world("b", "loss=ldam", "loss.defer=0.8"),
        world("c", "sampler=class_balanced"),
        world("d", "pretrain=barlow", "pretrain_epochs=7"),
    ]
    labels = list(grouped(*runs))
    assert labels[0].startswith("ce") and "sampler" not in labels[0] and "barlow" not in labels[0]
    assert labels[1].startswith("ldam") and "loss.defer=0.8" in labels[1] and "max_margin" not in labels[1]
    assert "sampler=class_balanced" in labels[2]
    assert labels[3] == "ce, pretrain=barlow"
    longer = world("e", "pretrain=barlow", "pretrain_epochs=9")
    assert "pretrain_epochs=7" in list(grouped(*runs, longer))[3]


def test_options_of_the_same_plugin_are_told_apart(world):
    scales = [world(f"scale-{scale}", "loss=ldam", f"loss.scale={scale}") for scale in (30, 20, 12)]
    assert list(grouped(*scales)) == ["resnet20, ldam", "loss.scale=20", "loss.scale=12"], "30 is the default"


def test_a_group_alone_is_called_by_what_it_is(world):
    assert list(grouped(world("a"))) == ["resnet20, ce"]


def test_beside_a_plain_network_a_searched_one_is_called_by_its_search(tmp_path):
    search = make_run(tmp_path / "search", "search", "relax=softmax", epochs=4)
    origin = {"run": str(search.path), "seed": 0, "rule": "darts", "epoch": 4}
    runs = [make_run(tmp_path / f"net-{epochs}", epochs=epochs, provenance=origin) for epochs in (2, 3)]
    plain = make_run(tmp_path / "plain", "retrain", epochs=2)
    (own,) = [label for label in grouped(plain, runs[0]) if "resnet20" not in label]
    assert own == "softmax, ce"
    both = [label for label in grouped(plain, *runs) if "resnet20" not in label]
    assert len(both) == 2 and all("softmax" in label for label in both)


def test_other_data_is_another_group(world):
    first, second = grouped(world("a"), world("b", sha256="b" * 64))
    assert first.startswith("data-a (aaaaaaaa)") and second.startswith("data-b (bbbbbbbb)")


def test_retrained_genotypes_of_searches_of_other_seeds_are_one_group(tmp_path):
    runs = []
    for relax in ("sigmoid", "softmax"):
        rule = {"sigmoid": "fairdarts", "softmax": "darts"}[relax]
        for seed in (0, 1):
            search = make_run(
                tmp_path / "searches" / f"{relax}-{seed}", "search", f"relax={relax}", seed=seed, epochs=4
            )
            origin = {"run": str(search.path), "seed": seed, "rule": rule, "epoch": 4, "threshold": 0.8 - seed / 10}
            runs.append(make_run(tmp_path / f"net-{relax}-{seed}", seed=seed, provenance=origin))
    assert grouped(*runs) == {
        "sigmoid": ["net-sigmoid-0", "net-sigmoid-1"],
        "softmax": ["net-softmax-0", "net-softmax-1"],
    }
    assert read_facts(runs[1]).seeds == (1, 1)


def test_searches_without_alphas_are_called_by_their_strategy_and_have_no_relaxation(tmp_path):
    sets = {"softmax": (), "gumbel": ("relax=gumbel",), "random": ("strategy=random", "strategy.candidates=20")}
    sets["evolution"] = ("strategy=evolution", "relax=sigmoid", "alpha_lr=0.1")  # which mean nothing there
    searches = {name: make_run(tmp_path / name, "search", *given, epochs=4) for name, given in sets.items()}
    labels = {runs[0]: label for label, runs in grouped(*searches.values()).items()}
    assert labels["softmax"] == "gradient, softmax" and labels["gumbel"] == "gradient, gumbel"
    assert labels["random"].startswith("random") and labels["evolution"].startswith("evolution")
    assert not any(
        word in labels[name] for name in ("random", "evolution") for word in ("softmax", "sigmoid", "alpha_lr")
    )
    assert list(grouped(searches["random"])) == ["random, ce"] and list(grouped(searches["softmax"])) == ["softmax, ce"]
    nets = [
        make_run(tmp_path / f"net-{name}", provenance={"run": str(run.path), "seed": 0, "rule": "darts", "epoch": 4})
        for name, run in searches.items()
    ]
    found = {runs[0]: label for label, runs in grouped(*nets).items()}
    assert found["net-softmax"] == "gradient, softmax" and found["net-random"].startswith("random")
    assert not any("rule" in label for label in found.values())


def test_a_searched_network_is_called_by_its_search_and_says_by_what_else_it_was_retrained(tmp_path):
    search = make_run(tmp_path / "search", "search", "relax=sigmoid", "loss=barlow", epochs=4)
    balanced = make_run(tmp_path / "other", "search", "relax=sigmoid", "loss=barlow", "loss.scale=0.05", epochs=4)
    same = make_run(tmp_path / "same", "search", "relax=sigmoid", epochs=4)
    origins = {run: {"run": str(run.path), "seed": 0, "rule": "fairdarts", "epoch": 4} for run in (search, balanced)}
    plain, scaled = (make_run(tmp_path / f"net-{run.path.name}", provenance=one) for run, one in origins.items())
    assert list(grouped(plain)) == ["sigmoid, barlow, retrained by ce"], "sigmoid, ce is FairDARTS"
    assert list(grouped(plain, scaled)) == ["sigmoid, barlow, retrained by ce", "search.loss.scale=0.05"]
    by_ce = make_run(tmp_path / "net", provenance=next(iter(origins.values())) | {"run": str(same.path)})
    assert list(grouped(by_ce)) == ["sigmoid, ce"]
    assert list(grouped(plain, by_ce)) == ["barlow", "ce"]
    resnet = make_run(tmp_path / "resnet")
    assert list(grouped(resnet, plain, by_ce)) == ["resnet20", "barlow, sigmoid", "ce, sigmoid"]


def test_a_setting_of_the_search_that_the_retraining_has_too_is_said_to_be_of_the_search(tmp_path):
    searches = [make_run(tmp_path / f"search-{epochs}", "search", epochs=epochs) for epochs in (4, 5)]
    nets = [
        make_run(tmp_path / f"net-{n}", provenance={"run": str(run.path), "seed": 0, "rule": "darts", "epoch": "last"})
        for n, run in enumerate(searches)
    ]
    assert list(grouped(*nets)) == ["search.epochs=4", "search.epochs=5"]


def test_a_rule_that_does_not_go_with_the_relaxation_is_named(tmp_path):
    search = make_run(tmp_path / "search", "search", "relax=sigmoid", epochs=4)
    runs = [
        make_run(tmp_path / rule, provenance={"run": str(search.path), "seed": 0, "rule": rule, "epoch": 4})
        for rule in ("fairdarts", "argmax")
    ]
    assert set(grouped(*runs)) == {"rule=fairdarts", "rule=argmax"}


def test_two_thresholds_of_one_search_are_two_groups(tmp_path):
    search = make_run(tmp_path / "search", "search", "relax=sigmoid", epochs=4)
    origin = {"run": str(search.path), "seed": 0, "rule": "fairdarts", "epoch": 4}
    runs = [make_run(tmp_path / f"t{t}", provenance=origin | {"threshold": t}) for t in (0.5, 0.85)]
    assert set(grouped(*runs)) == {"threshold=0.5", "threshold=0.85"}


def test_a_search_by_one_process_and_by_two_ranks_is_two_groups_and_seeds_on_any_ranks_are_one(tmp_path):
    made = lambda name, **more: make_run(tmp_path / name, "search", **more)
    on = lambda ranks: {"torch": "2", "kernels": "torch", "device": "cpu", "ranks": ranks}
    one, two, federated = (
        made("one"),
        made("two", environment=on(2)),
        make_run(tmp_path / "federated", "search", "sync=round", "clients=4"),
    )
    assert set(grouped(one, two)) == {"ranks=1", "ranks=2"}
    labels = list(grouped(one, two, federated))
    assert labels == ["ranks=1", "ranks=2", "clients=4, sync=round, ranks=1"]
    assert len(grouped(one, made("other-seed", seed=1, environment=on(2)))) == 1


def test_genotypes_whose_search_is_gone_are_not_grouped(tmp_path):
    runs = [
        make_run(tmp_path / f"net-{seed}", seed=seed, provenance={"run": "/gone", "seed": seed}, genotype=genotype)
        for seed, genotype in ((0, {"name": "first"}), (1, {"name": "second"}))
    ]
    assert set(grouped(*runs)) == {"first", "second"}


def test_random_genotypes_of_several_seeds_are_one_group(tmp_path):
    runs = [
        make_run(tmp_path / f"net-{seed}", seed=seed, provenance={"rule": "random", "seed": seed}) for seed in (0, 1)
    ]
    beside = make_run(tmp_path / "resnet20")
    assert grouped(*runs, beside) == {"random": ["net-0", "net-1"], "resnet20": ["resnet20"]}
    assert [read_facts(run).seeds for run in runs] == [(0, 0), (1, 1)]


def test_a_run_with_the_seed_of_another_does_not_count_twice(world):
    first, second = world("a"), world("b")
    (group,) = group_runs([read_facts(first), read_facts(second)])
    assert [run.path.name for run in group.runs] == ["a"] and [run.path.name for run in group.repeats] == ["b"]


def test_a_corrected_network_is_a_group_of_its_own_over_its_seeds(world):
    fixed = [world(f"fixed-{n}", seed=n, adjustment={"method": "logit", "source": "gone"}) for n in (0, 1)]
    for run in fixed:
        run.config["identity"] |= {"adjustment.method": "logit", "adjustment.source": run.path.name}
    labels = grouped(world("plain"), *fixed)
    assert labels == {"resnet20, ce": ["plain"], "adjust=logit": ["fixed-0", "fixed-1"]}


def test_a_run_of_an_earlier_ssfnas_that_lacks_an_option_is_of_the_group_that_has_its_default(world):
    run, old = world("new", "loss=ldam"), world("old", "loss=ldam", seed=1)
    del old.config["settings"]["loss"]["defer"], old.config["identity"]["loss.defer"]
    assert grouped(run, old) == {"resnet20, ldam": ["new", "old"]}
    other = world("other", "loss=ldam", "loss.defer=0.8", seed=1)
    assert grouped(other, old) == {"loss.defer=0.8": ["other"], "resnet20, ldam": ["old"]}
