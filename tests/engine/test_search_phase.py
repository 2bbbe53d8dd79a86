import math

import numpy as np
import pytest
import torch
from search_support import Relabelled, alpha_loss, alphas_of, run, same, state, weight_loss

from registry.strategies import bilevel
from registry.strategies.base import WeightStep
from ssfnas_cli.artifacts.tensors import load_tensors
from ssfnas_cli.data.augment import to_float
from ssfnas_cli.data.batches import Batch, SearchBatch, normaliser
from ssfnas_cli.engine.loop import cosine
from ssfnas_cli.errors import InputError

# Labels


@pytest.mark.parametrize("order", [1, 2])
def test_with_barlow_permuting_the_labels_within_the_split_leaves_the_alphas_bit_equal(search, tiny_digits, order):
    one = search(loss="barlow", order=order)
    labels = np.random.default_rng(0).permutation(one.split.labels)
    assert (labels != one.split.labels).mean() > 0.5
    other = search(loss="barlow", order=order, data=Relabelled(tiny_digits, labels), halves=one.halves)
    start = alphas_of(one).clone()
    run(one, 2), run(other, 2)
    assert torch.equal(alphas_of(one), alphas_of(other)) and not torch.equal(alphas_of(one), start)
    assert same(state(one, "encoder.", "head."), state(other, "encoder.", "head."))
    assert not same(state(one, "probe."), state(other, "probe.")), "the probe uses labels"


@pytest.mark.parametrize(("loss", "alpha_loss"), [("ce", "none"), ("barlow", "ce"), ("ce", "barlow")])
def test_with_a_supervised_loss_permuting_the_labels_changes_the_alphas(search, tiny_digits, loss, alpha_loss):
    one = search(loss=loss, alpha_loss=alpha_loss)
    labels = np.random.default_rng(0).permutation(one.split.labels)
    other = search(loss=loss, alpha_loss=alpha_loss, data=Relabelled(tiny_digits, labels), halves=one.halves)
    run(one, 2), run(other, 2)
    assert not torch.equal(alphas_of(one), alphas_of(other))


def test_the_probe_gives_no_gradient_to_anything_else(search):
    one, other = search("probe_lr=0.001", loss="barlow"), search("probe_lr=1.0", loss="barlow")
    run(one, 2), run(other, 2)
    assert torch.equal(alphas_of(one), alphas_of(other))
    assert same(state(one, "encoder.", "head."), state(other, "encoder.", "head."))
    assert not same(state(one, "probe."), state(other, "probe."))


def test_the_halves_share_no_image_and_hold_every_class(search, tiny_digits):
    phase = search()
    weight, alpha = phase.halves
    assert sorted([*weight, *alpha]) == list(range(len(tiny_digits.split("train"))))
    for half in (weight, alpha):
        assert np.bincount(phase.split.labels[half]).min() >= 5
    assert not np.array_equal(weight, search(seed=1).halves[0])
    for train, val, _ in phase.batches(0, 0):
        assert len(train.labels) <= 16 and len(val.labels) == 16


def test_a_class_too_small_for_both_halves_is_named(search, tiny_digits):
    labels = tiny_digits.split("train").labels.copy()
    labels[np.flatnonzero(labels == 7)[1:]] = 3
    with pytest.raises(InputError, match=r"too few images of '7' for both halves"):
        search(data=Relabelled(tiny_digits, labels))


# Orders


@pytest.mark.parametrize("loss", ["ce", "barlow"])
@pytest.mark.parametrize("order", [1, 2])
def test_the_alpha_step_leaves_weights_and_batch_statistics_bit_equal(search, monkeypatch, loss, order):
    phase = search(loss=loss, order=order)
    run(phase, 2)  # so that there are statistics and momenta
    before, alphas = state(phase), alphas_of(phase)
    buffers = [name for name, _ in phase.model.named_buffers() if "running" in name]
    assert any(name.startswith("head.") for name in buffers) == (loss == "barlow"), "the projector has BN too"
    monkeypatch.setattr(phase, "weight_step", lambda batch, progress: {})
    run(phase, 1, start=2)
    assert same(before, state(phase)) and not torch.equal(alphas, alphas_of(phase))


@pytest.mark.parametrize(("loss", "views"), [("ce", 1), ("barlow", 2)])
def test_the_weight_step_alone_counts_batches_once_a_view(search, loss, views):
    phase = search(loss=loss, order=2)
    run(phase, 2)
    counts = {name: int(value) for name, value in phase.model.named_buffers() if "num_batches" in name}
    assert {count for name, count in counts.items() if not name.startswith("probe.")} == {2 * views}
    assert {count for name, count in counts.items() if name.startswith("probe.")} <= {2}, "it sees the first view"


def test_the_orders_differ(search):
    one, two = search(order=1), search(order=2)
    run(one, 2), run(two, 2)
    assert not torch.equal(alphas_of(one), alphas_of(two))


@pytest.mark.parametrize("loss", ["ce", "barlow"])
def test_the_second_order_gets_the_weight_steps_own_rate_momentum_and_decay(search, monkeypatch, loss):
    phase, seen = search(loss=loss, order=2, epochs=2), []
    original = bilevel.second_order

    def spy(train_loss, val_loss, groups, alphas, step):
        seen.append((list(groups[0]), [v if v is None else v.clone() for v in step.momenta], step))
        return original(train_loss, val_loss, groups, alphas, step)

    monkeypatch.setattr(bilevel, "second_order", spy)
    run(phase, 1)
    momenta = [phase.optimizer.state[weight]["momentum_buffer"].clone() for weight in phase.weights]
    run(phase, 1, start=1)
    (weights, first, _), (_, second, step) = seen
    names = {id(value): name for name, value in phase.model.named_parameters()}
    assert [names[id(weight)] for weight in weights] == [n for n in names.values() if not n.startswith("probe.")]
    assert first == [None] * len(weights) and all(map(torch.equal, second, momenta))
    expected = cosine(0.025, 0.001, 1 / phase.num_steps(0) / 2)
    assert (step.lr, step.momentum, step.weight_decay, step.clip) == (pytest.approx(expected), 0.9, 3e-4, 5.0)


def test_the_second_order_of_a_supernet_agrees_with_autograd(search):
    """Wired as a whole, in float64: the trial weights, the velocity, both halves."""
    phase = search("relax.init_std=0.5", order=2, ops=("avg_pool_3x3", "skip_connect", "dil_conv_3x3"), lr=0.1)
    run(phase, 2)
    phase.model.double()
    for values in phase.strategy.alphas.values():
        values.data = values.data.double()
    buffers = {}
    for weight in phase.weights:
        entry = phase.optimizer.state[weight]
        entry["momentum_buffer"] = buffers[id(weight)] = entry["momentum_buffer"].double()
    train, val = (Batch(tuple(v.double() for v in part.views), part.labels) for part in next(phase.batches(0, 2))[:2])
    both = SearchBatch(train, val, None)
    names = [name for name, _ in phase.model.named_parameters()]

    def loss(batch, weights):
        mixing = {kind: values.softmax(-1) for kind, values in phase.strategy.alphas.items()}
        parameters = dict(zip(names, weights, strict=True))
        parts = {
            p: {n.removeprefix(p): w for n, w in parameters.items() if n.startswith(p)} for p in ("encoder.", "head.")
        }
        features = torch.func.functional_call(phase.model.encoder, parts["encoder."], (batch.views[0], mixing))
        scores = torch.func.functional_call(phase.model.head, parts["head."], (features,))
        return torch.nn.functional.cross_entropy(scores, batch.labels)

    lr, alphas = 0.1, list(phase.strategy.alphas.values())
    gradients = torch.autograd.grad(loss(train, phase.weights), phase.weights, create_graph=True)
    norm = torch.sqrt(sum(g.square().sum() for g in gradients))
    clipped = [g * torch.clamp(phase.settings.clip / (norm + 1e-6), max=1) for g in gradients]
    moved = [w - lr * (0.9 * buffers[id(w)] + g + 3e-4 * w) for w, g in zip(phase.weights, clipped, strict=True)]
    exact = torch.cat(torch.autograd.grad(loss(val, moved), alphas))
    first = torch.cat(torch.autograd.grad(loss(val, phase.weights), alphas))
    got = torch.cat(
        bilevel.second_order(
            lambda: weight_loss(phase, both),
            lambda: alpha_loss(phase, both),
            phase.weight_groups,
            alphas,
            WeightStep(lr, 0.9, 3e-4, phase.settings.clip, [buffers[id(weight)] for weight in phase.weights]),
            radius=1e-6,  # a supernet has kinks: stay on this side of them
        )[0]
    )
    assert (got - exact).norm() < 0.05 * exact.norm() < 0.5 * (first - exact).norm()


# The steps


def test_the_alpha_step_comes_before_the_weight_step(search, monkeypatch):
    phase, calls = search(), []
    monkeypatch.setattr(phase.strategy, "update", lambda search_step: calls.append("alpha") or {})
    monkeypatch.setattr(phase, "weight_step", lambda *args: calls.append("weight") or {})
    run(phase, 2)
    assert calls == ["alpha", "weight"] * 2


def test_alphas_stay_fixed_in_the_warmup_epochs_while_weights_move(search):
    phase = search(warmup_epochs=1)
    alphas, weights = alphas_of(phase), state(phase)
    (values,) = run(phase, 1, epoch=0)
    assert torch.equal(alphas, alphas_of(phase)) and not same(weights, state(phase)) and "alpha_loss" not in values
    (values,) = run(phase, 1, epoch=1)
    assert not torch.equal(alphas, alphas_of(phase)) and "alpha_loss" in values


def test_the_first_alpha_step_is_adams_on_loss_decay_and_zero_one_together(search):
    phase = search("relax.init_std=0.3", "relax.zero_one=l2", relax="sigmoid", alpha_lr=0.01, alpha_weight_decay=0.5)
    before = {kind: values.detach().clone().double() for kind, values in phase.strategy.alphas.items()}
    batch = next(phase.batches(0, 0))
    phase.model.train()
    loss = alpha_loss(phase, batch)
    gradients = dict(
        zip(phase.strategy.alphas, torch.autograd.grad(loss, list(phase.strategy.alphas.values())), strict=True)
    )
    total = sum(values.numel() for values in before.values())
    run(phase, 1)
    for kind, alphas in before.items():
        s = torch.sigmoid(alphas)
        zero_one = -10 / total * 2 * (s - 0.5) * s * (1 - s)
        gradient = gradients[kind].double() + zero_one + 0.5 * alphas
        expected = alphas - 0.01 * gradient / (gradient.abs() + 1e-8)  # Adam's first step
        torch.testing.assert_close(phase.strategy.alphas[kind].detach().double(), expected, rtol=1e-4, atol=1e-4)
        sure = gradient.abs() > 1e-5
        assert sure.double().mean() > 0.9
        assert torch.equal((phase.strategy.alphas[kind] - alphas)[sure].sign(), -gradient[sure].sign())


def test_weights_follow_sgd_with_momentum_decay_and_clipping(search):
    phase = search(warmup_epochs=1, clip=0.5)
    for step in range(2):
        batch = next(phase.batches(0, step))
        before = [weight.detach().clone() for weight in phase.weights]
        momenta = [phase.optimizer.state.get(weight, {}).get("momentum_buffer") for weight in phase.weights]
        velocity = [torch.zeros_like(w) if v is None else v.clone() for w, v in zip(before, momenta, strict=True)]
        buffers = state(phase)
        phase.model.train()
        gradients = torch.autograd.grad(weight_loss(phase, batch), phase.weights)
        phase.model.load_state_dict(buffers)
        norm = torch.sqrt(sum(gradient.square().sum() for gradient in gradients))
        assert norm > 0.5, "so that the clipping shows"
        run(phase, 1, start=step)
        lr = cosine(0.025, 0.001, step / phase.num_steps(0) / 4)
        for weight, old, v, g in zip(phase.weights, before, velocity, gradients, strict=True):
            expected = old - lr * (0.9 * v + g * 0.5 / norm + 3e-4 * old)
            torch.testing.assert_close(weight.detach(), expected, rtol=1e-4, atol=1e-6)


def test_the_learning_rate_falls_along_a_cosine_step_by_step(search):
    phase = search(lr=0.1, lr_min=0.02, epochs=3, warmup_epochs=2)
    rates = [value["lr"] for epoch in range(3) for value in run(phase, 100, epoch)]
    total = len(rates)
    expected = [0.02 + 0.08 * (1 + math.cos(math.pi * step / total)) / 2 for step in range(total)]
    assert rates == pytest.approx(expected) and total == 3 * phase.num_steps(0)


def test_alpha_optimizer_settings_default_to_the_relaxations(search):
    auto = {"alpha_lr": "auto"}
    facts = {
        relax: [
            search(relax=relax, **auto).strategy.optimizer.param_groups[0][key]
            for key in ("lr", "betas", "weight_decay")
        ]
        for relax in ("softmax", "sigmoid")
    }
    assert facts == {"softmax": [3e-4, (0.5, 0.999), 1e-3], "sigmoid": [3e-3, (0.9, 0.999), 1e-3]}
    group = search("alpha_betas=[0.1,0.2]", alpha_lr=0.5, alpha_weight_decay=0.25).strategy.optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.5, (0.1, 0.2), 0.25)


def test_a_head_that_only_the_alpha_loss_has_is_trained_without_touching_the_encoder(search):
    one = search(loss="ce", alpha_loss="barlow", warmup_epochs=1)
    before = state(one, "alpha_head.")
    run(one, 2)
    assert not same(before, state(one, "alpha_head."))
    batch = next(one.batches(0, 0))
    gradients = torch.autograd.grad(weight_loss(one, batch), one.weights, allow_unused=True)
    train = batch.weights
    outputs = one.model.head(one.model.encoder(train.views[0], one.strategy.mixing(0.0)))
    alone = torch.autograd.grad(
        torch.nn.functional.cross_entropy(outputs, train.labels), list(one.model.encoder.parameters())
    )
    for got, expected in zip(gradients, alone, strict=False):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("loss", "alpha_loss"), [("ce", "barlow"), ("barlow", "ce")])
def test_the_alpha_step_uses_its_own_loss_and_head(search, loss, alpha_loss):
    phase = search(loss=loss, alpha_loss=alpha_loss)
    _, val, _ = next(phase.batches(0, 0))
    phase.model.train()
    outputs = [phase.model.alpha_head(phase.model.encoder(view, phase.strategy.mixing(0.0))) for view in val.views]
    expected = phase.alpha_loss.loss(outputs, val.labels).item()
    assert len(outputs) == (2 if alpha_loss == "barlow" else 1)
    (values,) = run(phase, 1)
    assert values["alpha_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_self_supervised_loss_is_never_given_the_labels(search, monkeypatch):
    phase, seen = search(loss="barlow", order=2), []
    original = type(phase.weight_loss).loss

    def spy(self, outputs, labels, progress):
        seen.append(labels)
        return original(self, outputs, labels, progress)

    monkeypatch.setattr(type(phase.weight_loss), "loss", spy)
    run(phase, 1)
    assert len(seen) == 5 and not any(labels is not None for labels in seen)


def test_an_alpha_that_is_no_longer_finite_stops_the_search(search):
    phase = search()
    phase.strategy.alphas["reduce"].data[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"an alpha of the \w+ cell is no longer finite"):
        run(phase, 1)


# Epochs and state


def direct_accuracy(phase, split, rows):
    """With running averages: the phases below set statistics_batches to 0."""
    part = phase.data.split(split)
    phase.model.eval()
    mixing = {kind: values.detach().softmax(-1) for kind, values in phase.strategy.alphas.items()}
    with torch.no_grad():
        images = normaliser(phase.data)(to_float(part.rows(rows)))
        scores = phase.model.classifier()(phase.model.encoder(images, mixing)).numpy()
    return 100 * np.mean([row.argmax() == label for row, label in zip(scores, part.labels[rows], strict=True)])


@pytest.mark.parametrize(("loss", "name"), [("ce", "accuracy"), ("barlow", "probe_accuracy")])
def test_an_epoch_ends_with_the_accuracy_on_the_alpha_half_named_for_what_it_is(search, loss, name):
    phase = search("statistics_batches=0", loss=loss)
    run(phase, 100)
    facts = phase.end_epoch(0)
    assert {key for key in facts if "accuracy" in key} == {f"{name}_alpha_half"} and facts["alpha_lr"] == 0.05
    assert facts[f"{name}_alpha_half"] == pytest.approx(direct_accuracy(phase, "train", phase.halves[1]))


def test_both_test_splits_are_tracked_when_asked(search, tiny_digits):
    phase = search("statistics_batches=0", "track_every=1", track_test=True)
    run(phase, 2)
    facts = phase.end_epoch(0)
    for split in ("test", "test_longtail"):
        rows = np.arange(len(tiny_digits.split(split)))
        assert facts[f"accuracy_{split}"] == pytest.approx(direct_accuracy(phase, split, rows))


def test_the_alpha_half_is_evaluated_every_epoch_and_the_held_out_splits_every_so_many(search):
    phase = search("statistics_batches=0", "track_every=2", track_test=True, epochs=3)
    tracked = [{key for key in phase.end_epoch(epoch) if key.startswith("accuracy_")} for epoch in range(3)]
    both = {"accuracy_alpha_half", "accuracy_test", "accuracy_test_longtail"}
    assert tracked == [{"accuracy_alpha_half"}, both, both]
    assert set(phase.evaluation_rows(0)) == {"alpha_half"} and set(phase.evaluation_rows(1)) == {"alpha_half", "test"}


@pytest.mark.parametrize("batches", [0, 20])
def test_evaluating_the_supernet_changes_nothing(search, batches):
    phase = search(f"statistics_batches={batches}")
    run(phase, 2)
    before = state(phase)
    phase.end_epoch(0)
    assert same(before, state(phase))


def test_every_epochs_alphas_are_kept_the_initial_ones_first(search, tmp_path):
    phase = search()
    expected = [phase.strategy.alphas["normal"].detach().clone()]
    for epoch in (0, 1):
        run(phase, 2, epoch)
        phase.end_epoch(epoch)
        expected.append(phase.strategy.alphas["normal"].detach().clone())
    phase.publish(tmp_path)
    published = load_tensors(tmp_path / "alphas.safetensors")
    assert torch.equal(published["normal"], torch.stack(expected)) and published["reduce"].shape == (3, 14, 4)


@pytest.mark.parametrize(("loss", "order", "steps"), [("ce", 1, 2), ("barlow", 2, 1)])
def test_a_search_taken_up_in_the_middle_of_an_epoch_ends_bit_equal(search, loss, order, steps):
    whole, first = search(loss=loss, order=order), search(loss=loss, order=order)
    run(whole, 2 * steps)
    run(first, steps)
    saved = {name: tensor.detach().clone() for name, tensor in first.tensors().items()}
    second = search(loss=loss, order=order)
    second.load(saved)
    run(second, steps, start=steps)
    ours, theirs = whole.tensors(), second.tensors()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_same_seed_gives_the_same_search_and_another_seed_another(search):
    phases = [search(seed=0), search(seed=0), search(seed=1)]
    for phase in phases:
        run(phase, 2)
    assert same(state(phases[0]), state(phases[1])) and torch.equal(alphas_of(phases[0]), alphas_of(phases[1]))
    assert not torch.equal(alphas_of(phases[0]), alphas_of(phases[2]))
