"""Searches with partial channels and weights of edges: their steps, their resume, their record, and what reads it."""

import itertools

import numpy as np
import pytest
import torch
from search_support import TINY, alphas_of, run, same, state

from registry.space import CELL_TYPES, EDGE_WEIGHTS, edges_into_nodes
from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.data.batches import Batch, SearchBatch
from ssfnas_cli.engine.candidate_rounds import CandidateRounds
from ssfnas_cli.engine.derive_perturbation import derive_by_perturbation
from ssfnas_cli.engine.derive_run import derive_run, weights_of_run
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.federated import FederatedSearch
from ssfnas_cli.engine.perturbation import Measured
from ssfnas_cli.engine.perturbation_phase import PerturbationPhase
from ssfnas_cli.engine.rules import RULES, derive
from ssfnas_cli.engine.search import plan_search, run_search
from ssfnas_cli.errors import InputError, UsageError
from ssfnas_cli.settings import PerturbationSettings, SearchSettings, load_settings
from tests.oracle import direct, partial, steps

EDGES = tuple(EDGE_WEIGHTS.values())
OPS = ("none", "max_pool_3x3", "skip_connect")  # of whole runs, which are the quicker for it


def copied(tensors):
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


# Steps


class DirectPartialSearch(steps.DirectSearch):
    """As DARTS; the inputs of a node compete in a softmax of their own."""

    def mixing(self):
        ops = {kind: torch.softmax(self.alphas[kind], dim=-1) for kind in CELL_TYPES}
        softmax = lambda numbers: torch.cat([torch.softmax(numbers[rows], 0) for rows in edges_into_nodes()])
        return ops | {name: softmax(self.alphas[name]) for name in EDGES}


def direct_search(phase):
    """The direct search with the weights, alphas and numbers of edges of a phase, all of it in float64."""
    phase.model.double()
    for values in phase.strategy.learned.values():
        values.data = values.data.double()
    settings = phase.settings
    shape = phase.data.channels, settings.channels, settings.layers, settings.ops, settings.partial_channels
    net = partial.Supernet(*shape)
    model = direct.SearchModel(net, torch.nn.Linear(net.num_features, phase.data.num_classes)).double()
    direct.load_product(model, phase.model.state_dict())
    learned = {name: values.detach().clone().requires_grad_() for name, values in phase.strategy.learned.items()}
    return DirectPartialSearch(model, learned, "softmax", settings.order, alpha_lr=settings.alpha_lr)


@pytest.mark.parametrize(("order", "num_steps"), [(1, 2), (2, 1)])
def test_a_step_is_that_of_a_direct_search(search, order, num_steps):
    phase = search("partial_channels=2", order=order, kernels="torch", batch_size=8)
    plain = direct_search(phase)
    for number, batch in zip(range(num_steps), phase.batches(0, 0), strict=False):
        train, val = (Batch(tuple(v.double() for v in part.views), part.labels) for part in batch[:2])
        lr = phase.learning_rate(number / phase.num_steps(0) / phase.epochs)
        values = phase.step(0, number, SearchBatch(train, val, None))
        expected = plain.step(train, val, lr)
        assert {name: values[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    for name, numbers in phase.strategy.learned.items():
        torch.testing.assert_close(numbers, plain.alphas[name], rtol=1e-4, atol=1e-6)
    gradients = {name: value.detach() for name, value in plain.model.named_parameters()}
    for name, value in phase.model.named_parameters():
        torch.testing.assert_close(value, gradients[direct.oracle_names(name)[0]], rtol=1e-5, atol=1e-8)


def test_one_in_one_channel_without_weights_of_edges_is_the_search_without_the_settings(search):
    one, other = search(), search("partial_channels=1", "edge_weights=false")
    for phase in (one, other):
        run(phase, 2)
    assert same(state(one), state(other)) and torch.equal(alphas_of(one), alphas_of(other))
    assert one.strategy.tensors().keys() == other.strategy.tensors().keys()


@pytest.mark.parametrize(
    ("sets", "flags"),
    [
        (["strategy.skip_dropout=0.5", "strategy.beta_decay=5"], {"relax": "softmax"}),
        ([], {"relax": "sigmoid"}),
        (["strategy.skip_dropout=0.5"], {"relax": "gumbel"}),
        (["relax.kl_weight=0.01"], {"relax": "dirichlet"}),
    ],
)
def test_every_relaxation_learns_edges_and_a_resumed_search_ends_bit_equal(search, sets, flags):
    build = lambda **more: search("partial_channels=2", *sets, **{**flags, **more})
    whole, first, second = build(), build(), build()
    start = copied(whole.strategy.edges)
    run(whole, 2)
    run(first, 1)
    second.load(copied(first.tensors()))
    run(second, 1, start=1)
    ours, theirs = whole.tensors(), second.tensors()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert {f"alphas.{name}" for name in EDGES} <= ours.keys()
    for name, numbers in whole.strategy.edges.items():
        assert (numbers != start[name]).all()


def test_edges_stay_in_the_warmup_and_are_not_learned_where_that_is_turned_off(search):
    phase = search("partial_channels=2", warmup_epochs=1)
    start = copied(phase.strategy.learned)
    run(phase, 1)
    assert all(torch.equal(values, start[name]) for name, values in phase.strategy.learned.items())
    phase = search("partial_channels=2", "edge_weights=false")
    assert not phase.strategy.edges and all(phase.strategy.mixing(0.0)[name].eq(1).all() for name in EDGES)
    run(phase, 1)
    assert set(phase.strategy.record()) == set(CELL_TYPES)


@pytest.mark.parametrize("strategy", ["random", "evolution"])
def test_candidates_are_judged_with_partial_channels(search, strategy):
    phase = search("partial_channels=2", "strategy.candidates=2", strategy=strategy)
    assert set(phase.strategy.mixing(0.0)) == set(CELL_TYPES)
    run(phase, 1)
    rounds = CandidateRounds(phase)
    assert 0 <= rounds.step(phase.epochs, 0, None)["candidate_fitness"] <= 100


# Runs


def settings_of(data, *sets, **flags):
    given = {**TINY, "batch_size": 64, "epochs": 1, "kernels": "torch", "data": str(data.path), **flags}
    return load_settings(SearchSettings, sets=("partial_channels=2", "statistics_batches=1", *sets), flags=given)


@pytest.fixture(scope="module")
def searched(tmp_path_factory, few_digits):
    path = tmp_path_factory.mktemp("partial") / "run"
    run_search(settings_of(few_digits, batch_size=10, ops=OPS), path, False)
    return path


def test_the_record_holds_the_edges_and_every_rule_derives_by_both(searched):
    run = RunFolder.open(searched, "search")
    record, weights = run.alphas(), weights_of_run(run)
    assert {name: tuple(values.shape) for name, values in record.items()} == {
        **dict.fromkeys(CELL_TYPES, (2, 14, len(OPS))),
        **dict.fromkeys(EDGES, (2, 14)),
    }
    for rows in edges_into_nodes():
        np.testing.assert_allclose(weights["normal_edges"][:, rows].sum(1), 1)
    for rule in RULES:
        for epoch in (0, 1):
            expected = derive({name: values[epoch] for name, values in weights.items()}, OPS, rule)
            assert derive_run(run, rule, epoch=epoch).cells() == expected.genotype.cells()
    line = run.metrics()[-1]
    assert 0 < line["edges_entropy"] < 1 and 0 < line["weights_entropy"] < 1


def test_a_record_without_its_edges_is_refused(searched, monkeypatch):
    run = RunFolder.open(searched, "search")
    record = run.alphas()
    for changed in (
        {kind: record[kind] for kind in CELL_TYPES},
        {**record, "reduce_edges": record["reduce_edges"][:, :13]},
    ):
        monkeypatch.setattr(RunFolder, "alphas", lambda self, changed=changed: changed)
        with pytest.raises(InputError, match=r"'normal_edges' and 'reduce_edges', each \[epochs \+ 1, 14 edges\]"):
            derive_run(run)


def test_a_supernet_of_partial_channels_is_no_start_for_another(searched, few_digits):
    flags = {"ops": OPS, "init_from": str(searched)}
    with pytest.raises(UsageError, match="has partial_channels 2, and this search 1: give --set partial_channels=2"):
        plan_search(settings_of(few_digits, "partial_channels=1", **flags), None)
    assert plan_search(settings_of(few_digits, **flags), None).settings.partial_channels == 2


def test_a_derivation_by_perturbation_cuts_whole_edges(searched, tmp_path, monkeypatch):
    counted = itertools.count()
    measure = lambda self, mixing: Measured(100.0, 100.0, (7 * next(counted)) % 11)  # in place of an evaluation
    monkeypatch.setattr(PerturbationPhase, "measure", measure)
    settings = load_settings(PerturbationSettings, flags={"epochs_between": 0, "kernels": "torch"})
    path, genotype = derive_by_perturbation(RunFolder.open(searched), settings, tmp_path / "run", False)
    weights = weights_of_run(RunFolder.open(path, "search"))
    for kind, cell in genotype.cells().items():
        kept = (weights[kind][-1] != 0).any(1)
        assert kept.sum() == len(cell.edges) == 8 and np.array_equal(weights[EDGE_WEIGHTS[kind]][-1] != 0, kept)


def test_clients_average_the_edges(tiny_digits, tmp_path):
    settings = settings_of(tiny_digits, sync="round", clients=2, batch_size=8).resolve_plugins()
    phase = FederatedSearch(settings, tiny_digits, Device("cpu", 0))
    start = copied(phase.strategy.edges)
    run(phase, 1)
    for name in EDGES:
        values = phase.strategy.edges[name]
        assert not torch.equal(values, start[name])
        assert all(torch.equal(client.strategy.edges[name], values) for client in phase.clients.values())


def test_a_plan_without_the_settings_has_the_name_that_it_had(tiny_digits):
    """The name of a run folder is a hash of what differs from the defaults, which these settings leave as it was."""
    plain = load_settings(SearchSettings, flags={**TINY, "data": str(tiny_digits.path)})
    assert not {"partial_channels", "edge_weights"} & plain.changed_identity().keys()
    assert settings_of(tiny_digits).changed_identity()["partial_channels"] == 2
