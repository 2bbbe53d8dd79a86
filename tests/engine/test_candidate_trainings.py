"""Searches that train each candidate by itself: what is trained and judged, resume, cost, and what is refused."""

import numpy as np
import pytest
import torch
from search_support import TINY, dying_at, same, state

from ssfnas_cli.artifacts.checkpoint import load_newest
from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.commands.training import _show_prediction
from ssfnas_cli.engine import dry_run
from ssfnas_cli.engine.candidate_rounds import candidate_accuracies
from ssfnas_cli.engine.candidate_trainings import CandidateTrainings
from ssfnas_cli.engine.derive_run import derive_run
from ssfnas_cli.engine.loop import seed_for_step
from ssfnas_cli.engine.rank_run import supernet_accuracies
from ssfnas_cli.engine.search import run_search
from ssfnas_cli.errors import InputError, UsageError
from ssfnas_cli.settings import SearchSettings, load_settings

SETS = ("strategy.judge=train", "strategy.candidates=3")
OWN = {"random": (), "evolution": ("strategy.population=2", "strategy.sample=1"), "reinforce": ()}


def settings_of(data, name, *sets, **flags):
    given = {**TINY, "batch_size": 64, "data": str(data.path), "epochs": 2, "kernels": "torch", "strategy": name}
    return load_settings(SearchSettings, sets=(*SETS, *OWN[name], *sets), flags={**given, **flags})


@pytest.fixture
def trainings(search):
    """Make a phase and the trainings of its candidates: two epochs of two steps each."""
    return lambda **more: CandidateTrainings(search(*SETS, strategy="random", epochs=2, batch_size=64, **more))


def train(phase, number):
    """Train and judge a candidate as the loop does."""
    for step, batch in enumerate(phase.batches(number, 0)):
        seed_for_step(phase.seed, number, step)
        phase.step(number, step, batch)
    seed_for_step(phase.seed, number, phase.num_steps(number))
    return phase.end_epoch(number)


def test_a_candidate_is_what_it_would_be_alone(trainings):
    """Trained behind another one it is the same, bit for bit, as where it is the only one."""
    both, alone = trainings(), trainings()
    train(both, 0)
    told = train(both, 1)
    alone.strategy._proposed = both.strategy.genes[1]
    train(alone, 1)
    assert same(state(both.training), state(alone.training))
    assert both.strategy.fitness[1] == alone.strategy.fitness[0] == told["candidate_fitness"]
    assert told["best_fitness"] == told["accuracy_alpha_half"] == both.strategy.fitness.max()
    assert told["candidates"] == 1 and len(both.strategy.fitness) == 2


def test_only_the_candidates_ops_are_trained_and_all_weights_begin_anew(trainings):
    phase = trainings()
    begun = []
    for number in range(2):
        seed_for_step(phase.seed, number, 0)
        phase.training.begin_anew(number)
        begun.append(state(phase.training))
        candidate = phase.strategy.candidate()
        train(phase, number)
        after = state(phase.training)
        for name, tensor in after.items():
            if ".of_edge." in name and name.endswith("weight"):
                _, _, layer, _, edge, column, *_ = name.split(".")
                kind = "reduce" if phase.training.model.encoder.cells[int(layer)].reduction else "normal"
                chosen = bool(candidate[kind][int(edge), int(column)])
                assert torch.equal(tensor, begun[-1][name]) is not chosen, name
    weights = [name for name in begun[0] if ".of_edge." in name and name.endswith("weight")]
    assert weights and not any(torch.equal(begun[0][name], begun[1][name]) for name in weights)


def test_a_candidates_learning_rate_falls_over_its_epochs_and_it_sees_the_images_of_each(trainings):
    phase = trainings()
    assert phase.epochs == 3 and phase.num_steps(0) == 2 * phase.training.num_steps(0)
    rates, images = {}, {}
    for number in range(2):
        batches = list(phase.batches(number, 0))
        images[number] = [batch.weights.labels.tolist() for batch in batches]
        rates[number] = [phase.step(number, step, batch)["lr"] for step, batch in enumerate(batches)]
        train(phase, number)
    assert rates[0] == rates[1] == sorted(rates[0], reverse=True) and rates[0][0] == phase.settings.lr
    assert images[0] == images[1] and len(images[0]) == phase.num_steps(0)
    half = len(images[0]) // 2
    assert images[0][:half] != images[0][half:], "another order in the second epoch"
    later = [batch.weights.labels.tolist() for batch in phase.batches(0, half + 1)]
    assert later == images[0][half + 1 :] and not list(phase.batches(0, 2 * half))


@pytest.mark.parametrize("name", ["evolution", "reinforce"])
def test_a_search_that_dies_in_a_training_and_between_two_ends_bit_equal(tiny_digits, tmp_path, name):
    run_search(settings_of(tiny_digits, name), tmp_path / "whole", False)
    often = settings_of(tiny_digits, name, "save_minutes=1e-9")
    for place in ((1, 3), (2, 0)):
        with dying_at(CandidateTrainings, *place):
            run_search(often, tmp_path / "run", False)
        state = load_newest(tmp_path / "run" / "checkpoints").state
        assert (state["epoch"], state["step"]) == place, "every step was saved"
    run_search(often, tmp_path / "run", False)
    ours, theirs = (load_newest(tmp_path / one / "checkpoints").tensors for one in ("run", "whole"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    lines = [RunFolder.open(tmp_path / one, "search").metrics() for one in ("run", "whole")]
    clock = ("step_seconds", "elapsed_seconds", "peak_memory_bytes")
    ours, theirs = ([{k: v for k, v in line.items() if k not in clock} for line in one] for one in lines)
    assert ours == theirs and len(ours) == 3


def test_its_run_is_read_like_any_other(tiny_digits, tmp_path, caplog):
    with caplog.at_level("INFO", "ssfnas"):
        settings = settings_of(tiny_digits, "random", "strategy.fitness=balanced_accuracy", "log_seconds=1e-9")
        result = run_search(settings, tmp_path / "run", False)
    folder = RunFolder.open(tmp_path / "run", "search")
    lines, tensors = folder.metrics(), load_newest(folder.checkpoints).tensors
    assert [line["epoch"] for line in lines] == [1, 2, 3] and folder.status()["epochs"] == 3
    assert all(line["steps"] == 2 * 2 and line["weight_loss"] > 0 for line in lines)
    fitness = tensors["candidates.fitness"].numpy()
    np.testing.assert_array_equal([line["candidate_fitness"] for line in lines], fitness)
    np.testing.assert_array_equal([line["best_fitness"] for line in lines], np.maximum.accumulate(fitness))
    assert result["accuracy_alpha_half"] == lines[-1]["accuracy_alpha_half"] == tensors["best_accuracy"].item()
    said = [record.getMessage() for record in caplog.records]
    assert "each of the 3 candidates is trained from scratch, for 2 epochs; there is no supernet" in said
    assert any(line.startswith("search candidate 2/3 step 3/4: ") for line in said)
    assert any(line.startswith("search candidate 3/3: ") for line in said)
    assert derive_run(folder).provenance.epoch == 3 and derive_run(folder, epoch=1).provenance.epoch == 1
    with pytest.raises(InputError, match=r"chooses in the rounds after the epochs, from --epoch 1 on"):
        derive_run(folder, epoch=0)
    genotype = derive_run(folder)
    with pytest.raises(InputError, match=r"trained each candidate by itself .* so there is no supernet"):
        supernet_accuracies(folder, {"mine": genotype})
    with pytest.raises(InputError, match=r"trained each candidate by itself .* so there is no supernet"):
        run_search(
            settings_of(tiny_digits, "random", "strategy.judge=supernet", init_from=str(folder.path)), None, False
        )


def test_a_self_supervised_candidate_is_judged_by_its_probe(trainings):
    phase = trainings(loss="barlow")
    told = train(phase, 0)
    mixing = phase.strategy.mixing(1.0)
    assert told["probe_accuracy_alpha_half"] == candidate_accuracies(phase.training, mixing)["accuracy"]
    assert "accuracy_alpha_half" not in told


def test_a_dry_run_counts_the_trainings_and_times_several_candidates(tiny_digits, tmp_path, monkeypatch):
    monkeypatch.setattr(dry_run, "ENOUGH_SECONDS", 0.0)
    trained = []
    original = CandidateTrainings.step
    take = lambda self, e, s, b: (
        trained.append(self.strategy.candidate()["normal"].numpy().tobytes()) or original(self, e, s, b)
    )
    monkeypatch.setattr(CandidateTrainings, "step", take)
    settings = settings_of(tiny_digits, "random", "strategy.candidates=200")
    facts = dry_run.predict_search(settings, tmp_path / "run", False)
    (part,) = facts["phases"]
    assert (part["phase"], part["unit"], part["epochs"]) == ("search", "candidate", 200)
    assert facts["steps_per_epoch"] == 2 * 2 and len(set(trained)) == len(trained) > 5
    assert facts["total_seconds"] == pytest.approx(facts["setup_seconds"] + 200 * facts["epoch_seconds"], rel=0.3)
    assert not (tmp_path / "run").exists()
    from rich.console import Console

    with (console := Console(width=200)).capture() as captured:
        _show_prediction(console, facts)
    assert "(200 candidates of search)" in captured.get() and "a candidate" in captured.get()


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"init_from": "runs/any"}, r"--init-from: candidates that are trained by themselves .* begin from scratch"),
        ({"track_test": True}, r"--set track_test=true: with strategy.judge=train every candidate is a network"),
    ],
)
def test_what_needs_a_supernet_is_refused(tiny_digits, tmp_path, flags, message):
    with pytest.raises(UsageError, match=message):
        run_search(settings_of(tiny_digits, "random", **flags), tmp_path / "run", False)
    assert not (tmp_path / "run").exists()
