"""Searches that judge candidates by a supernet of single paths: what is trained, judged, kept, resumed and derived."""

import numpy as np
import pytest
import torch
from search_support import TINY, dying_at, run, same, state

from registry.strategies.candidates import mixing_of
from ssfnas_cli.artifacts.checkpoint import load_newest
from ssfnas_cli.artifacts.genotype import read_genotype
from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.engine.candidate_rounds import CandidateRounds, candidate_accuracies
from ssfnas_cli.engine.derive_run import derive_run
from ssfnas_cli.engine.dry_run import predict_search
from ssfnas_cli.engine.search import run_search
from ssfnas_cli.engine.search_health import pruned_mixing
from ssfnas_cli.errors import InputError, UsageError
from ssfnas_cli.settings import SearchSettings, load_settings

SETS = {
    "random": ("strategy.candidates=12",),
    "evolution": ("strategy.candidates=12", "strategy.population=4", "strategy.sample=2", "strategy.crossover=0.5"),
}


@pytest.fixture
def rounds(search):
    """Make a phase and its rounds."""
    return lambda name, **settings: CandidateRounds(search(*SETS[name], strategy=name, epochs=1, **settings))


def judge(phase, count, start=0):
    """Judge candidates as the loop does, across rounds."""
    for number in range(start, start + count):
        phase.step(phase.training.epochs + number // 10, number % 10, None)


def whole_search(data, folder, name, *sets, **flags):
    given = {**TINY, "batch_size": 64, "data": str(data.path), "epochs": 1, "kernels": "torch", "strategy": name}
    return run_search(load_settings(SearchSettings, sets=(*SETS[name], *sets), flags={**given, **flags}), folder, False)


@pytest.mark.parametrize("name", SETS)
def test_training_steps_train_one_path_and_rounds_train_nothing(rounds, name):
    phase = rounds(name)
    run(phase.training, 1)
    trained = {
        (layer, edge)
        for layer, cell in enumerate(phase.training.model.encoder.cells)
        for edge, ops in enumerate(cell.of_edge)
        if any(weight.grad is not None for weight in ops.parameters())
    }
    assert 0 < len(trained) <= 3 * 8, "a path has 8 of a cell's 14 edges"
    before = state(phase.training)
    judge(phase, 3)
    assert same(before, state(phase.training)) and len(phase.strategy.fitness) == 3


def test_epochs_and_rounds_have_their_steps(rounds):
    phase = rounds("random")
    assert phase.epochs == 3
    assert [phase.num_steps(epoch) for epoch in range(3)] == [phase.training.num_steps(0), 10, 2]
    assert len(list(phase.batches(2, 0))) == 2 and len(list(phase.batches(1, 7))) == 3


def test_a_candidates_fitness_is_the_accuracy_of_its_path_on_the_alpha_half(rounds):
    phase = rounds("random")
    run(phase.training, 2)
    judge(phase, 2)
    training, strategy = phase.training, phase.strategy
    for genes, fitness in zip(strategy.genes, strategy.fitness, strict=True):
        mixing = {kind: torch.from_numpy(weights) for kind, weights in mixing_of(genes, len(TINY["ops"])).items()}
        with training.estimated_statistics(mixing):
            assert fitness == training.accuracy(training.split, training.halves[1], mixing)
            scores, labels = training.scores(training.split, training.halves[1], mixing)
        recalls = [np.mean(scores[labels == label].argmax(1) == label) for label in set(labels.tolist())]
        found = candidate_accuracies(training, mixing)
        assert found["balanced_accuracy"] == pytest.approx(100 * np.mean(recalls)) and found["accuracy"] == fitness


@pytest.mark.parametrize("name", SETS)
def test_a_search_that_dies_between_candidates_ends_bit_equal(tiny_digits, tmp_path, name):
    whole_search(tiny_digits, tmp_path / "whole", name)
    with dying_at(CandidateRounds, 1, 6):
        whole_search(tiny_digits, tmp_path / "run", name, "save_minutes=1e-9")
    checkpoint = load_newest(tmp_path / "run" / "checkpoints")
    assert len(checkpoint.tensors["candidates.fitness"]) == 6, "every candidate was saved"
    whole_search(tiny_digits, tmp_path / "run", name, "save_minutes=1e-9")
    ours, theirs = (load_newest(tmp_path / one / "checkpoints").tensors for one in ("run", "whole"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert len(ours["candidates.fitness"]) == 12


def test_the_result_is_the_best_candidate_and_its_run_is_read_like_any_other(tiny_digits, tmp_path):
    result = whole_search(tiny_digits, tmp_path / "run", "evolution", seed=3)
    folder = RunFolder.open(tmp_path / "run", "search")
    lines, tensors = folder.metrics(), load_newest(folder.checkpoints).tensors
    assert result["strategy"] == "evolution" and [line["epoch"] for line in lines] == [1, 2, 3]
    assert [line.get("candidates") for line in lines] == [None, 10, 2] and lines[1]["steps"] == 0
    fitness = tensors["candidates.fitness"]
    assert lines[1]["best_fitness"] == fitness[:10].max() and lines[2]["best_fitness"] == fitness.max()
    assert lines[1]["candidate_fitness"] == pytest.approx(fitness[:10].mean().item())
    assert result["accuracy_alpha_half"] == fitness.max(), "the best is evaluated again, and is as good"
    assert "weights_moved" not in lines[2] and "genotype_skips" in lines[2] and "genotype_skips" not in lines[0]
    genotype = read_genotype(folder.path / "genotype.json")
    best = tensors["candidates.genes"][int(fitness.argmax())].numpy()
    mixing = pruned_mixing(genotype, TINY["ops"], torch.device("cpu"))
    expected = mixing_of(best, len(TINY["ops"]))
    assert all(np.array_equal(mixing[kind].numpy(), expected[kind]) for kind in expected)
    assert derive_run(folder) == genotype and genotype.provenance.epoch == 3
    assert derive_run(folder, epoch=2).cells() is not None
    with pytest.raises(InputError, match="chooses in the rounds after the epochs, from --epoch 2 on"):
        derive_run(folder, epoch=1)
    with pytest.raises(UsageError, match=r"--rule argmax: .*'evolution' has chosen a whole architecture"):
        derive_run(folder, rule="argmax")


def test_a_dry_run_counts_the_candidates(tiny_digits, tmp_path):
    given = {**TINY, "batch_size": 64, "data": str(tiny_digits.path), "epochs": 1, "kernels": "torch"}
    settings = load_settings(SearchSettings, sets=["strategy.candidates=2000"], flags={**given, "strategy": "random"})
    facts = predict_search(settings, tmp_path / "run", False)
    training, judging = facts["phases"]
    assert training["phase"] == "search" and (judging["phase"], judging["epochs"]) == ("candidate rounds", 200)
    parts = facts["setup_seconds"] + training["epoch_seconds"] + 200 * judging["epoch_seconds"]
    assert facts["total_seconds"] == pytest.approx(parts, abs=0.5) and judging["epoch_seconds"] > 0
    assert not (tmp_path / "run").exists()


def test_settings_that_mean_nothing_without_alphas_are_named(tiny_digits, tmp_path, caplog):
    with caplog.at_level("WARNING", "ssfnas"):
        whole_search(tiny_digits, tmp_path / "run", "random", "strategy.candidates=1", relax="sigmoid", order=2)
    (told,) = [record.getMessage() for record in caplog.records if "has no alphas" in record.getMessage()]
    assert told == "the strategy 'random' has no alphas: the settings relax, order change nothing"


def test_settings_of_alphas_do_not_make_another_run_of_a_strategy_without_any():
    resolve = lambda **flags: load_settings(SearchSettings, flags=flags).resolve_plugins()
    idle = {"relax": "sigmoid", "order": 2, "alpha_lr": 0.1}
    assert resolve(strategy="random", **idle).identity() == resolve(strategy="random").identity()
    assert resolve(strategy="random", **idle).changed_identity() == {"strategy.name": "random"}
    assert resolve(**idle).identity() != resolve().identity()
