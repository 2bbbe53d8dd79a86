"""Federated searches: what a round does to weights, alphas and momenta, what an epoch is, and that a search goes on."""

import json

import numpy as np
import pytest
import torch
from search_support import TINY, dying_at, run

from registry.state import under
from ssfnas_cli.artifacts.checkpoint import load_newest
from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.engine import dry_run
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.federated import FederatedSearch, Rounds, averaged
from ssfnas_cli.engine.search import run_search
from ssfnas_cli.errors import UsageError
from ssfnas_cli.settings import SearchSettings, load_settings

UNEQUAL = ("partition=dirichlet", "partition_alpha=2.0")


def settings_of(*sets, clients=3, **flags):
    given = {**TINY, "batch_size": 8, "sync": "round", "clients": clients, **flags}
    return load_settings(SearchSettings, sets=sets, flags=given).resolve_plugins()


@pytest.fixture
def federated(tiny_digits):
    """`federated("local_steps=2", clients=4)`: a federated search on tiny digits."""
    return lambda *sets, **flags: FederatedSearch(settings_of(*sets, **flags), tiny_digits, Device("cpu", 0))


def whole_search(data, folder, *sets, **flags):
    given = {"data": str(data.path), "epochs": 2, "kernels": "torch", "ops": ("none", "skip_connect", "max_pool_3x3")}
    return run_search(settings_of(*sets, **{**given, **flags}), folder, False)


def copied(tensors):
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def remember_alphas(client, alphas, number):
    """Let a client keep a copy of its alphas after each architecture step in `alphas[number]`."""
    take = client.architecture_step

    def architecture_step(*given):
        values = take(*given)
        alphas[number] = copied(client.strategy.averaged())
        return values

    client.architecture_step = architecture_step


def momenta(client):
    return [client.optimizer.state[weight]["momentum_buffer"] for weight in client.weights]


# A round


def test_a_round_ends_with_the_mean_by_images_of_those_that_were_drawn(federated):
    search = federated(*UNEQUAL, "local_steps=2", "clients_per_round=2", clients=4)
    drawn, alphas = search.rounds.drawn(0, 0), {}
    for number in drawn:
        remember_alphas(search.clients[number], alphas, number)
    run(search, 2)
    images = [len(search.parts[number][0]) + len(search.parts[number][1]) for number in drawn]
    assert len(drawn) == 2 and images[0] != images[1]
    (one, other), (n, m) = [averaged(search.clients[number]) | alphas[number] for number in drawn], images
    for name, value in averaged(search).items():
        expected = (n * one[name].double() + m * other[name].double()) / (n + m)
        torch.testing.assert_close(value.detach().double(), expected, rtol=1e-6, atol=1e-8)
    assert {"alphas.normal", "model.head.weight"} <= averaged(search).keys()
    assert any("running_var" in name for name in averaged(search))
    assert not one["alphas.normal"].equal(other["alphas.normal"]), "they went different ways"


def test_clients_begin_a_round_at_the_mean_and_take_the_steps_of_a_search_of_their_images(federated, tiny_digits):
    """The second round of one client, by a search that knows of no rounds and is loaded with its state."""
    search = federated(*UNEQUAL, "local_steps=2", clients=2)
    run(search, 2)
    start, client = copied(averaged(search)), search.clients[1]
    alone = type(client)(client.settings, tiny_digits, search.device, search.parts[1])
    alone.load({**copied(client.tensors()), **start})
    run(search, 2, start=2)
    for step in (2, 3):
        batch, progress = alone.moved(client.epoch_batches(0)[step]), step / search.num_steps(0) / search.epochs
        alone.architecture_step(batch, 0, progress)  # nothing here draws random numbers
        if step == 3:  # the end of the round: the weights are trained by the mean of the alphas
            alone.load({**alone.tensors(), **search.strategy.averaged()})
        alone.weight_step(batch, progress)
    for name, value in averaged(alone).items():
        assert value.equal(averaged(client)[name]), name
    assert all(map(torch.equal, momenta(alone), momenta(client)))


def test_momenta_and_the_state_of_the_alphas_optimizer_stay_with_the_client(federated):
    search = federated(*UNEQUAL, "clients_per_round=1", clients=2)
    first = search.rounds.drawn(0, 0)
    other = next(n for n in range(1, search.num_steps(0)) if search.rounds.drawn(0, n) != first)
    run(search, other)
    (mine,) = first
    client = search.clients[mine]
    kept, adam = [value.clone() for value in momenta(client)], copied(client.strategy.tensors())
    assert not search.clients[1 - mine].optimizer.state, "it has taken no step"
    run(search, 1, start=other)
    assert all(map(torch.equal, momenta(client), kept)), "another client's round does not touch them"
    assert not averaged(client)["model.head.weight"].equal(averaged(search)["model.head.weight"])
    for name, value in client.strategy.tensors().items():
        assert value.equal(adam[name])
    assert float(adam["optimizer.alphas.0.step"]) == other
    assert not search.optimizer.state and not search.strategy.optimizer.state, "nothing global takes steps"


def test_a_step_says_the_mean_of_its_clients_by_images(federated):
    search = federated(*UNEQUAL, clients=2)
    seen = []
    for client in search.clients.values():
        for half in ("architecture_step", "weight_step"):
            take = getattr(client, half)
            setattr(client, half, lambda *given, _take=take: seen.append(_take(*given)) or seen[-1])
    (values,) = run(search, 1)
    n, m = (sum(map(len, parts)) for parts in search.parts)
    assert n != m and values.keys() == {"weight_loss", "lr", "alpha_loss", "regulariser"}
    for name, (one, other) in {"alpha_loss": seen[:2], "weight_loss": seen[2:]}.items():
        assert values[name] == pytest.approx((n * one[name] + m * other[name]) / (n + m))


# Rounds and epochs


def test_an_epoch_has_the_steps_of_one_process_at_the_least():
    rounds = lambda *sets, steps, **flags: Rounds(settings_of(*sets, **flags), steps)
    assert rounds(clients=4, steps=[20, 21]).per_epoch == [5, 6]
    assert rounds("local_steps=3", "clients_per_round=2", clients=4, steps=[20, 1]).per_epoch == [4, 1]
    every = rounds("local_steps=3", clients=4, steps=[20, 20])
    assert every.total.tolist() == [12] * 4 and every.taken(1).tolist() == [6] * 4


def test_the_clients_of_a_round_are_drawn_by_the_seed_without_repeats_and_equally_often():
    rounds = Rounds(settings_of("clients_per_round=2", clients=5), [2000])
    drawn = [rounds.drawn(0, number) for number in range(1000)]
    assert all(len(set(one)) == 2 and one == sorted(one) for one in drawn)
    times = np.bincount(np.concatenate(drawn), minlength=5)
    assert times.tolist() == rounds.total.tolist() and np.abs(times - 400).max() < 5 * np.sqrt(1000 * 0.4 * 0.6)
    other = Rounds(settings_of("clients_per_round=2", clients=5, seed=1), [2000])
    assert drawn == [rounds.drawn(0, number) for number in range(1000)] != [other.drawn(0, n) for n in range(1000)]


def test_with_every_client_and_equal_parts_an_epoch_shows_every_image_once(federated):
    search, shown = federated(clients=4, batch_size=6), []
    for client in search.clients.values():
        batches = [client.epoch_batches(0)[number] for number in range(search.num_steps(0))]
        seen = np.concatenate([batch.weights.labels.numpy() for batch in batches])
        assert len(seen) == len(client.halves[0]) and client.epochs == search.epochs
        shown.append(seen)
    labels = search.split.labels[search.halves[0]]
    assert np.array_equal(np.sort(np.concatenate(shown)), np.sort(labels))


def test_a_client_goes_through_its_images_pass_by_pass_across_epochs(federated):
    search = federated(*UNEQUAL, "local_steps=3", "clients_per_round=1", clients=2, epochs=3)
    went: dict[int, list] = {0: [], 1: []}
    for epoch in range(3):
        for step, ((batches, place),) in enumerate(search._places(epoch)):
            (number,) = search.rounds.drawn(epoch, step // 3)
            assert np.array_equal(batches.weights.subset.indices, search.parts[number][0]), "its own images"
            went[number].append((batches.weights.epoch, place))
    for number, client in search.clients.items():
        passes = [(done, place) for done in range(client.epochs) for place in range(client.num_steps(done))]
        assert went[number] == passes[: search.rounds.total[number]] and went[number][-1][0] == client.epochs - 1


def test_clients_draw_random_numbers_of_their_own(federated):
    search = federated(clients=2)
    one, other = (client.epoch_batches(0).weights for client in search.clients.values())
    assert one.subset.seed != other.subset.seed
    assert not np.array_equal(np.concatenate(one.batches), np.concatenate(other.batches))


# A whole run


def test_a_search_that_dies_within_a_round_ends_bit_equal(tiny_digits, tmp_path):
    sets = (*UNEQUAL, "local_steps=3", "clients_per_round=2")
    whole_search(tiny_digits, tmp_path / "whole", *sets)
    with dying_at(FederatedSearch, 1, 2):
        whole_search(tiny_digits, tmp_path / "run", *sets, "save_minutes=1e-9")
    checkpoint = load_newest(tmp_path / "run" / "checkpoints")
    held = [number for number in range(3) if "alphas.normal" in under(f"clients.{number}", checkpoint.tensors)]
    assert len(held) == 2 and checkpoint.state["step"] == 2, "the round's clients, in the midst of it"
    whole_search(tiny_digits, tmp_path / "run", *sets)
    ours, theirs = (load_newest(tmp_path / one / "checkpoints").tensors for one in ("run", "whole"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not any(name.startswith("clients.0.model.head") for name in ours), "no round is under way"


def test_a_state_that_is_loaded_within_a_round_can_be_saved_at_once(federated):
    search = federated("local_steps=3", "clients_per_round=1")
    run(search, 2)
    tensors = copied(search.tensors())
    fresh = federated("local_steps=3", "clients_per_round=1")
    fresh.load(tensors)
    again = fresh.tensors()
    assert again.keys() == tensors.keys() and all(torch.equal(again[name], tensors[name]) for name in tensors)


def test_the_run_says_what_rounds_cost_and_what_clients_have(tiny_digits, tmp_path, caplog):
    with caplog.at_level("INFO", "ssfnas"):
        whole_search(tiny_digits, tmp_path / "run", "partition=by_class", "clients_per_round=2", loss="barlow")
    folder = RunFolder.open(tmp_path / "run", "search")
    lines, tensors = folder.metrics(), load_newest(folder.checkpoints).tensors
    floats = [tensor for name, tensor in tensors.items() if name.startswith("model.") and tensor.is_floating_point()]
    num = sum(tensor.numel() for tensor in floats) + 2 * 14 * 3
    assert [line["round_bytes"] for line in lines] == [2 * 2 * 4 * num] * 2, "two clients, there and back, float32"
    assert all(line["steps"] == line["rounds"] == lines[0]["rounds"] for line in lines)
    clients = folder.config["clients"]
    counts = np.array([client["class_counts"] for client in clients])
    assert counts.sum(0).tolist() == tiny_digits.counts("train") and ((counts > 0).sum(0) == 1).all()
    assert [client["weight_half"] + client["alpha_half"] for client in clients] == counts.sum(1).tolist()
    assert "(partition=by_class); a round: 2 clients, local_steps=1" in caplog.text
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "done"


def test_a_dry_run_predicts_the_checkpoint_of_all_clients_and_says_what_a_round_sends(
    tiny_digits, tmp_path, monkeypatch
):
    monkeypatch.setattr(dry_run, "ENOUGH_SECONDS", 0.0)
    monkeypatch.setattr(dry_run, "MIN_STEPS", 2)
    flags = {"data": str(tiny_digits.path), "kernels": "torch", "ops": ("none", "skip_connect", "max_pool_3x3")}
    settings = settings_of("clients_per_round=1", "local_steps=2", clients=4, epochs=8, **flags)
    facts = dry_run.predict_search(settings, tmp_path / "run", False)
    assert (facts["clients"], facts["clients_per_round"], facts["local_steps"]) == (4, 1, 2)
    phase = FederatedSearch(settings, tiny_digits, Device("cpu", 0))
    assert facts["round_bytes"] == phase.round_bytes and facts["steps_per_epoch"] == phase.num_steps(0)
    run_search(settings, tmp_path / "run", False)
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    on_disk = sum(file.stat().st_size for file in newest.iterdir())
    assert facts["checkpoint_bytes"] == pytest.approx(on_disk, rel=0.1)


def test_a_strategy_without_alphas_is_refused(federated):
    with pytest.raises(UsageError, match="setting 'sync': the strategy 'random' has no alphas to average"):
        federated(strategy="random")


@pytest.mark.parametrize("loss", ["ldam", "logit_adjusted", "label_aware_smoothing", "vicreg"])
def test_clients_without_some_classes_train_with_every_kind_of_loss(federated, loss):
    search = federated("partition=by_class", "sampler=class_balanced", loss=loss, relax="sigmoid", order=2)
    (values,) = run(search, 1)
    assert all(np.isfinite(value) for value in values.values())


# The alphas' optimizer


def test_sgd_on_alphas_steps_along_their_gradient(search):
    phase = search("alpha_optimizer=sgd", "alpha_weight_decay=0.1")
    before = copied(phase.strategy.averaged())
    run(phase, 1)
    for kind, alphas in phase.strategy.alphas.items():
        start = before[f"alphas.{kind}"]
        torch.testing.assert_close(alphas.detach(), start - 0.05 * (alphas.grad + 0.1 * start))
