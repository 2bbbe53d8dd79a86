"""Searches that mind a cost: by gradient, of candidates, by measured latencies, and what is derived of them."""

import numpy as np
import pytest
import torch
from search_support import WITH_CONVOLUTION as TINY
from search_support import alphas_of, dying_at, run

from registry.space import CELL_TYPES
from registry.strategies.random_search import RandomSearch
from ssfnas_cli.artifacts import latency as files
from ssfnas_cli.artifacts.checkpoint import load_newest
from ssfnas_cli.artifacts.genotype import read_genotype
from ssfnas_cli.artifacts.run import CANDIDATES, RunFolder
from ssfnas_cli.artifacts.tensors import load_tensors
from ssfnas_cli.engine import latency
from ssfnas_cli.engine.cost import find_cost
from ssfnas_cli.engine.derive_run import derive_run
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.fit import Limits
from ssfnas_cli.engine.network import describe_network
from ssfnas_cli.engine.search import build_search, plan_search, run_search
from ssfnas_cli.engine.search_health import newest_genotype
from ssfnas_cli.engine.search_phase import SearchPhase
from ssfnas_cli.errors import InputError, OutputExistsError, UsageError
from ssfnas_cli.nets.count import count_macs, count_params
from ssfnas_cli.settings import PAPER_OPS, SearchSettings, load_settings

SMALL = {"cost_channels": 4, "cost_layers": 5}
CPU = Device("cpu", 0)


def settings_of(*sets, **flags):
    return load_settings(SearchSettings, sets=sets, flags={**TINY, **flags}).resolve_plugins()


@pytest.fixture
def minding(tiny_digits):
    """Make the phase of a search that minds a cost."""

    def build(*sets, **flags):
        settings = settings_of(*sets, **{"cost": "macs", **SMALL, **flags})
        cost, _ = find_cost(settings, tiny_digits, CPU.torch, None)
        return SearchPhase(settings, tiny_digits, CPU, cost=cost)

    return build


def whole_search(data, folder, *sets, **flags):
    given = {**TINY, "batch_size": 64, "data": str(data.path), "epochs": 1, "kernels": "torch"}
    given |= SMALL if "cost" in flags else {}
    sets = ["statistics_batches=1", *sets]
    return run_search(load_settings(SearchSettings, sets=sets, flags={**given, **flags}), folder, False)


def size_of(genotype, data):
    """Weights and multiply-adds of the network itself."""
    with torch.device("meta"):
        model = describe_network(genotype, 4, 5, data.num_classes, data.image_size, data.channels, aux=False)
    return count_params(model), count_macs(model, data.channels, data.image_size)


# By gradient


@pytest.mark.parametrize(
    "how", [{}, {"order": 2}, {"relax": "sigmoid"}, {"relax": "gumbel"}, {"relax": "dirichlet"}], ids=str
)
def test_the_penalty_is_a_term_of_the_alphas_loss_and_of_nothing_else(minding, search, how, tiny_digits):
    """One step of SGD on the alphas, with and without the cost, which differ by the gradient of the penalty."""
    sgd = ["alpha_optimizer=sgd", "alpha_weight_decay=0", "cost_weight=3", "cost_target=80k"]
    sgd += ["cost_at=expected"] if how else []
    with_cost, without = minding(*sgd, **how), search(*sgd[:2], **how)
    strategy, start = with_cost.strategy, alphas_of(without)
    assert torch.equal(alphas_of(with_cost), start)
    leaves = {kind: alphas.detach().double().requires_grad_() for kind, alphas in strategy.alphas.items()}
    relaxation, by_hand = strategy.relaxation, 0.0
    for kind, alphas in leaves.items():
        shares = relaxation.weights(alphas, 0.0)[:, 1:]
        shares = shares / shares.sum(1, keepdim=True)
        kept = torch.tensor([2 / n for n in (2, 3, 4, 5) for _ in range(n)])[:, None]
        by_hand = by_hand + (kept * shares * torch.from_numpy(with_cost.cost.ops[kind][:, 1:])).sum()
    expected = by_hand + with_cost.cost.fixed
    if not how:  # what would be derived now decides the direction, and the size in relation to it
        genotype = newest_genotype(strategy, with_cost.settings.ops)
        expected = expected + (size_of(genotype, tiny_digits)[1] - expected).detach()
    penalty = 3 * torch.log(expected / 80_000).abs()
    slopes = torch.cat([slope.flatten() for slope in torch.autograd.grad(penalty, list(leaves.values()))])
    (ours,), (theirs,) = run(with_cost, 1), run(without, 1)
    moved = (alphas_of(with_cost) - alphas_of(without)) / TINY["alpha_lr"]
    torch.testing.assert_close(moved.double(), -slopes, rtol=1e-3, atol=1e-5)
    assert ours["regulariser"] - theirs["regulariser"] == pytest.approx(penalty.item(), rel=1e-4)
    assert ours["alpha_loss"] == theirs["alpha_loss"]


def test_the_expected_cost_of_a_search_is_pulled_to_its_target(minding, tiny_digits):
    sets = ["cost_weight=20", "statistics_batches=1", "cost_at=expected"]
    phase = minding(*sets, cost_target="115k", alpha_lr=0.2)
    off = []
    for epoch in range(2):
        run(phase, 3, epoch)
        line = phase.end_epoch(epoch)
        off.append(abs(np.log(line["expected_cost"] / phase.cost.target)))
    start = abs(np.log(phase.cost.mean / phase.cost.target))
    assert start > 0.1 and off[-1] < 0.5 * start
    genotype = newest_genotype(phase.strategy, phase.settings.ops)
    assert line["genotype_cost"] == size_of(genotype, tiny_digits)[1]


@pytest.mark.parametrize("relax, target", [("softmax", "110k"), ("softmax", "250k"), ("sigmoid", "110k")])
def test_the_derived_network_comes_to_the_target_though_no_edge_is_decided(minding, relax, target):
    """The penalty alone moves the alphas. The mean stays elsewhere: that of a search by `expected` would be there."""
    sets = ["relax.init_std=0.3", *(["relax.zero_one=none"] if relax == "sigmoid" else [])]
    phase = minding(*sets, cost_target=target, relax=relax, alpha_lr=0.02, ops=PAPER_OPS)
    strategy, sizes = phase.strategy, []
    for _ in range(60):
        penalty = strategy._regulariser(0.0)
        strategy.optimizer.zero_grad()
        penalty.backward()
        strategy.optimizer.step()
        weights = {kind: strategy.relaxation.weights(a.detach().double(), 0.0) for kind, a in strategy.alphas.items()}
        sizes.append(phase.cost.derived({kind: values.numpy() for kind, values in weights.items()}))
    off = np.abs(np.log(np.array(sizes) / phase.cost.target))
    assert off[-20:].mean() < 0.12 and abs(np.log(phase.cost.mean / phase.cost.target)) > 0.3


@pytest.mark.parametrize(
    "sets, flags",
    [
        (["partial_channels=2"], {"channels": 4}),
        (["strategy.ops=4,2", "strategy.add_layers=0,1", "strategy.skip_dropout=0,0"], {"strategy": "progressive"}),
    ],
    ids=["weights of edges", "stages"],
)
def test_what_would_be_derived_is_what_the_search_derives(minding, tiny_digits, sets, flags):
    phase = minding(*sets, cost_target="80k", **flags)
    for number, values in enumerate(phase.strategy.edges.values()):
        values.data.copy_(torch.linspace(-1, 1, 14).roll(number))
    assert phase.strategy.end_epoch()["expected_cost"] == pytest.approx(phase.cost.mean, rel=1e-3)
    wanted = size_of(newest_genotype(phase.strategy, phase.settings.ops), tiny_digits)[1]
    (values,) = run(phase, 1)
    assert values["regulariser"] == pytest.approx(10 * abs(np.log(wanted / 80_000)), rel=1e-5)


def test_a_run_records_the_cost_and_its_genotype_costs_what_the_last_line_says(tiny_digits, tmp_path, caplog):
    with caplog.at_level("INFO", "ssfnas"):
        result = whole_search(tiny_digits, tmp_path / "run", cost="params", cost_target="7k")
    folder = RunFolder.open(tmp_path / "run")
    (line,) = folder.metrics()
    assert result["expected_cost"] == line["expected_cost"] and result["genotype_cost"] == line["genotype_cost"]
    genotype = read_genotype(folder.path / "genotype.json")
    assert size_of(genotype, tiny_digits)[0] == line["genotype_cost"]
    assert folder.config["cost"]["of"] == "params" and folder.config["cost"]["image_size"] == 8
    assert "target 7k weights" in caplog.text and "cost: the genotype's network costs" in caplog.text
    planned = plan_search(settings_of(data=str(tiny_digits.path), cost="params", **SMALL), tmp_path / "other")
    assert "cost" not in planned.config, "what is not begun has worked nothing out"
    most = 0.95 * line["genotype_cost"]
    fitted = derive_run(folder, limits=Limits({"params": most}, 4, 5))
    assert size_of(fitted, tiny_digits)[0] <= most
    assert fitted.provenance.limits == {
        **{"max_params": most, "channels": 4, "layers": 5, "stem": "cifar"},
        **{"num_classes": 10, "image_size": 8, "in_channels": 1},
    }
    with pytest.raises(UsageError, match=r"--candidate: the strategy 'gradient' judges none"):
        derive_run(folder, candidate=0)


def test_what_cannot_be_reached_or_is_not_minded_is_refused(tiny_digits):
    find = lambda *sets, **flags: find_cost(settings_of(*sets, **SMALL, **flags), tiny_digits, CPU.torch, None)
    for target in ("1", "300M"):
        with pytest.raises(
            UsageError, match=r"--cost-target .* cost 56.7k to 143.7k multiply-adds with 4 channels and 5"
        ):
            find(cost="macs", cost_target=target)
    with pytest.raises(UsageError, match=r"strategy.parents=front: .* name one, such as --cost macs"):
        find_cost(settings_of("strategy.parents=front", strategy="evolution"), tiny_digits, CPU.torch, None)


def test_a_strategy_that_minds_no_cost_says_so(tiny_digits, monkeypatch):
    monkeypatch.setattr(RandomSearch, "minds_cost", False)
    with pytest.raises(UsageError, match=r"--cost macs: the strategy 'random' does nothing about a cost"):
        find_cost(settings_of(strategy="random", cost="macs"), tiny_digits, CPU.torch, None)


# By latencies


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """A cache of its own, and latencies by a rule that can be changed."""
    rule = {"factor": 1.0}
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(files, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(latency, "part_latency", lambda part, *how: rule["factor"] * (1 + len(part.name)) / part.stride)
    return rule


def test_a_search_by_latency_goes_on_with_the_table_that_it_began_with(tiny_digits, tmp_path, made_up):
    flags = {"cost": "latency", "epochs": 2, "ops": ("none", "max_pool_3x3", "skip_connect")}
    whole_search(tiny_digits, tmp_path / "whole", "cost_weight=5", **flags)
    with dying_at(SearchPhase, 1, 1):
        whole_search(tiny_digits, tmp_path / "run", "cost_weight=5", "save_minutes=1e-9", **flags)
    for path in (tmp_path / "cache" / "latency").iterdir():
        path.unlink()
    made_up["factor"] = 3.0
    whole_search(tiny_digits, tmp_path / "run", "cost_weight=5", "save_minutes=1e-9", **flags)
    ours, theirs = (load_newest(tmp_path / one / "checkpoints").tensors for one in ("run", "whole"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    lines = [RunFolder.open(tmp_path / one).metrics() for one in ("run", "whole")]
    assert [line["expected_cost"] for line in lines[0]] == [line["expected_cost"] for line in lines[1]]


def test_a_named_table_is_part_of_what_the_run_is_by_its_content(tiny_digits, tmp_path, made_up):
    settings = settings_of(data=str(tiny_digits.path), cost="latency", **SMALL)
    _, facts = find_cost(settings, tiny_digits, CPU.torch, None)
    (cached,) = (tmp_path / "cache" / "latency").iterdir()
    table = tmp_path / "table.json"
    table.write_bytes(cached.read_bytes())
    named = {"cost": "latency", "cost_table": str(table)}
    whole_search(tiny_digits, tmp_path / "run", **named)
    assert RunFolder.open(tmp_path / "run").config["cost"]["ops"] == facts["ops"]
    moved = tmp_path / "moved.json"
    moved.write_bytes(table.read_bytes())
    assert whole_search(tiny_digits, tmp_path / "run", **named | {"cost_table": str(moved)})["state"] == "done"
    table.write_text(table.read_text().replace('"threads": ', '"threads": 1'))
    with pytest.raises(OutputExistsError, match=r"differs in cost_table.sha256"):
        whole_search(tiny_digits, tmp_path / "run", **named)
    with pytest.raises(InputError, match=r"table.json: lacks .*: measure them there with 'ssfnas latency "):
        find_cost(settings_of(cost="latency", cost_table=str(table)), tiny_digits, CPU.torch, None)


# Candidates


@pytest.mark.parametrize("name", ["random", "evolution", "reinforce"])
def test_no_candidate_costs_more_than_the_target(minding, name):
    sets = ["strategy.candidates=30", *(["strategy.population=6"] if name == "evolution" else [])]
    phase = minding(*sets, strategy=name, cost_target="85k")
    strategy = phase.strategy
    while len(strategy.fitness) < 30:
        strategy.judge({"accuracy": float(strategy.costs_of(strategy._next()))})  # the dearer the fitter
    costs = strategy.costs_of(strategy.genes)
    assert costs.max() <= 85_000 < phase.cost.mean
    assert len(np.unique(strategy.genes, axis=0)) > 15


def test_without_a_target_random_draws_what_it_drew(minding, search):
    given = {"strategy": "random", "epochs": 1}
    ours, theirs = minding(**given).strategy, search(**given).strategy
    assert np.array_equal(ours._next(), theirs._next())


def test_evolution_by_two_objectives_finds_cheaper_ones_than_by_fitness_alone(minding):
    """Where the fitness is the cost itself, any candidate of a sample is on its front; alone the dearest is."""
    means = {}
    for parents in ("front", "fittest"):
        sets = ["strategy.candidates=60", "strategy.population=10", f"strategy.parents={parents}"]
        strategy = minding(*sets, strategy="evolution").strategy
        while len(strategy.fitness) < 60:
            strategy.judge({"accuracy": float(strategy.costs_of(strategy._next()))})
        means[parents] = strategy.costs_of(strategy.genes)[20:].mean()
        judged = strategy.judged()
        assert judged["front"].sum() == len(set(judged["cost"].tolist())), "of equal ones the first"
    assert means["front"] < 0.9 * means["fittest"]


def test_the_front_is_in_the_result_and_any_of_its_points_can_be_derived(tiny_digits, tmp_path):
    sets = ["strategy.candidates=12", "strategy.population=4", "strategy.sample=3"]
    result = whole_search(tiny_digits, tmp_path / "run", *sets, strategy="evolution", cost="macs")
    folder = RunFolder.open(tmp_path / "run")
    judged = load_tensors(folder.path / CANDIDATES)
    fitness, costs = judged["fitness"].numpy(), judged["cost"].numpy()
    assert judged["genes"].shape == (12, len(CELL_TYPES), 14)
    assert [point["candidate"] for point in result["front"]] == sorted(
        np.flatnonzero(judged["front"].numpy()), key=lambda k: costs[k]
    )
    assert derive_run(folder) == read_genotype(folder.path / "genotype.json"), "the fittest by default"
    for point in result["front"]:
        genotype = derive_run(folder, candidate=point["candidate"])
        assert size_of(genotype, tiny_digits)[1] == point["cost"] and point["fitness"] == fitness[point["candidate"]]
        assert genotype.provenance.candidate == point["candidate"]
    limit = float(np.median(costs))
    fitted = derive_run(folder, limits=Limits({"macs": limit}, 4, 5))
    best = fitted.provenance.candidate
    assert costs[best] <= limit and fitness[best] == fitness[costs <= limit].max()
    assert fitted.provenance.limits["max_macs"] == limit and fitted.provenance.limits["channels"] == 4
    early = derive_run(folder, epoch=2, limits=Limits({"macs": limit}, 4, 5)).provenance.candidate
    assert early < 10, "of the rounds up to that epoch"
    with pytest.raises(InputError, match=r"--max-macs 1: none of the candidates .* the least is "):
        derive_run(folder, limits=Limits({"macs": 1.0}, 4, 5))
    with pytest.raises(InputError, match=r"--max-macs 1: candidate 3 has "):
        derive_run(folder, candidate=3, limits=Limits({"macs": 1.0}, 4, 5))
    with pytest.raises(UsageError, match=r"--candidate 12: the candidates are 0 to 11"):
        derive_run(folder, candidate=12)
    (folder.path / CANDIDATES).unlink()
    with pytest.raises(InputError, match=r"has no candidates.safetensors: .* leave --candidate"):
        derive_run(folder, candidate=0)


def test_a_federated_search_minds_the_cost_of_its_clients(tiny_digits):
    settings = settings_of(
        *("sync=round", "clients=2", "cost_weight=3", "kernels=torch"),
        **{"data": str(tiny_digits.path), "cost": "params", **SMALL},
    )
    _, phase = build_search(plan_search(settings, None))
    (values,) = run(phase, 1)
    assert values["regulariser"] != 0 and all(client.cost is phase.cost for client in phase.clients.values())
    assert phase.strategy.end_epoch()["expected_cost"] < phase.cost.mean
