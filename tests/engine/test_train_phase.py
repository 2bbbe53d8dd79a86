import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from search_support import run

from registry import LOSSES
from ssfnas_cli.artifacts.genotype import Cell, Edge, Genotype
from ssfnas_cli.data.augment import to_float
from ssfnas_cli.data.batches import normaliser
from ssfnas_cli.engine import train_phase
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.predict import predict
from ssfnas_cli.engine.train_phase import PretrainingModel, Schedule, TrainPhase
from ssfnas_cli.nets.heads import Classifier
from ssfnas_cli.settings import RetrainSettings, build_plugin, load_settings

CELL = Cell(
    edges=(
        Edge(op="sep_conv_3x3", source=0, target=2),
        Edge(op="skip_connect", source=1, target=2),
        Edge(op="max_pool_3x3", source=2, target=3),
    ),
    concat=(2, 3),
)
GENOTYPE = Genotype(normal=CELL, reduce=CELL)
CPU = Device("cpu", 0)


@pytest.fixture
def train(tiny_digits):
    """`train(schedule facts, sets..., settings...)`: a phase on tiny digits; Barlow where `loss="barlow"`."""

    def build(*sets, loss="ce", aux=True, schedule=None, **settings):
        flags = {"channels": 4, "layers": 3, "batch_size": 16, "lr": 0.1, **settings}
        resolved = load_settings(RetrainSettings, sets=sets, flags=flags)
        torch.manual_seed(0)
        net = Classifier.of_genotype(GENOTYPE, 1, 4, 3, tiny_digits.num_classes, aux)
        counts = tiny_digits.counts("train")
        objective = build_plugin(
            LOSSES, resolved.loss.model_copy(update={"name": loss}), num_classes=10, class_counts=counts
        )
        if loss == "barlow":
            net = PretrainingModel(net.encoder, objective.build_head(net.encoder.num_features))
        given = dict(schedule or {})
        net.encoder.max_drop_path = given.pop("drop_path", 0.0)
        facts = {
            "name": "train",
            "epochs": 4,
            "lr": 0.1,
            "aux_weight": 0.4 if aux else 0.0,
        } | given
        return TrainPhase(Schedule(regularised=True, **facts), resolved, tiny_digits, CPU, net, objective)

    return build


def scores_of(phase, split, **more):
    return predict(phase.model, phase.data.split(split), normaliser(phase.data), CPU, **more)


def weights(phase):
    return {name: value.detach().clone() for name, value in phase.model.state_dict().items()}


def test_an_epoch_shows_every_training_image_once(train, tiny_digits):
    phase = train()
    labels = torch.cat([batch.labels for batch in phase.batches(0, 0)])
    assert torch.bincount(labels).tolist() == tiny_digits.counts("train")
    assert len(list(phase.batches(0, 0))) == phase.num_steps(0)


def test_the_rate_falls_along_a_cosine_from_the_schedules_to_lr_min(train):
    phase = train("lr_min=0.02", schedule={"epochs": 2, "lr": 0.08})
    total = 2 * phase.num_steps(0)
    rates = [value["lr"] for epoch in (0, 1) for value in run(phase, 100, epoch)]
    expected = [0.02 + 0.06 * (1 + math.cos(math.pi * step / total)) / 2 for step in range(total)]
    assert rates == pytest.approx(expected)
    assert phase.optimizer.param_groups[0]["lr"] == rates[-1]


def test_drop_path_rises_in_a_straight_line_from_epoch_to_epoch(train):
    phase = train(schedule={"drop_path": 0.2})
    rates = []
    for epoch in range(4):
        run(phase, 1, epoch)
        rates.append(phase.model.encoder.drop_path)
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15])


@pytest.mark.parametrize("weight", [0.4, 1.5])
def test_the_loss_is_the_heads_plus_the_auxiliary_heads_share(train, weight):
    phase = train("loss.label_smoothing=0.1", schedule={"aux_weight": weight})
    batch = next(phase.batches(0, 0))
    phase.model.train()
    (value,) = run(train("loss.label_smoothing=0.1", schedule={"aux_weight": weight}), 1)
    with torch.no_grad():
        logits, aux = phase.model.with_aux(batch.views[0])
    expected = sum(
        share * F.cross_entropy(part, batch.labels, label_smoothing=0.1) for share, part in ((1, logits), (weight, aux))
    )
    assert value["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert value["train_accuracy"] == pytest.approx(100 * (logits.argmax(1) == batch.labels).double().mean().item())


def test_a_step_is_sgd_with_momentum_decay_and_clipping(train):
    phase = train("clip=0.25")
    batch = next(phase.batches(0, 0))
    twin = train("clip=0.25")
    twin.model.train()
    logits, aux = twin.model.with_aux(batch.views[0])
    loss = F.cross_entropy(logits, batch.labels) + 0.4 * F.cross_entropy(aux, batch.labels)
    gradients = dict(
        zip(dict(twin.model.named_parameters()), torch.autograd.grad(loss, list(twin.model.parameters())), strict=True)
    )
    norm = torch.sqrt(sum(gradient.square().sum() for gradient in gradients.values()))
    assert norm > 0.25
    run(phase, 1)
    for name, old in twin.model.named_parameters():
        expected = old.detach() - 0.1 * (gradients[name] * 0.25 / norm + 3e-4 * old.detach())
        torch.testing.assert_close(dict(phase.model.named_parameters())[name].detach(), expected, rtol=1e-4, atol=1e-6)


def test_cutout_erases_in_training_only(train, tiny_digits):
    plain, cut = next(train().batches(0, 0)), next(train(schedule={"cutout": 0.5}).batches(0, 0))
    assert torch.equal(plain.labels, cut.labels)
    changed = plain.views[0] != cut.views[0]
    assert changed.any() and not cut.views[0][changed].any(), "what changed is zero"
    phase = train(schedule={"cutout": 1.0})
    assert scores_of(phase, "test")[0].std() > 0


@pytest.mark.parametrize("batch_size", [8, 69, 139])  # of 140 images: 4 left, 2 left, a lone one
@pytest.mark.parametrize("loss", ["ce", "barlow"])
def test_a_last_short_batch_trains_the_2x2_maps_and_the_auxiliary_head(train, loss, batch_size):
    phase = train(loss=loss, batch_size=batch_size)
    last = phase.num_steps(0) - 1
    batch = next(phase.batches(0, last))
    assert len(batch.labels) >= 2 and len(batch.labels) != batch_size
    with torch.no_grad():
        assert phase.model.encoder(batch.views[0]).aux_map.shape[2:] == (2, 2)
    (value,) = run(phase, 1, start=last)
    assert math.isfinite(value["loss"])


def test_pretraining_sees_two_views_and_no_labels(train):
    one, other = train(loss="barlow"), train(loss="barlow")
    assert one.model.aux is None
    other.split.labels = np.random.default_rng(0).permutation(other.split.labels)
    before = weights(one)
    values = run(one, 2)
    run(other, 2)
    assert set(values[0]) == {"loss", "lr"}
    assert all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())
    moved = {name.partition(".")[0] for name, value in weights(one).items() if not torch.equal(value, before[name])}
    assert moved == {"encoder", "head"}
    views = next(one.batches(0, 0)).views
    assert len(views) == 2 and not torch.equal(*views)


def test_prediction_is_in_order_and_does_not_depend_on_the_batch(train, tiny_digits):
    phase = train()
    run(phase, 3)
    scores, labels = scores_of(phase, "test", batch_size=37)
    whole, _ = scores_of(phase, "test", batch_size=1000)
    np.testing.assert_allclose(scores, whole, atol=1e-5)
    split = tiny_digits.split("test")
    assert np.array_equal(labels, split.labels)
    images = normaliser(tiny_digits)(to_float(split.rows(np.arange(len(split)))))
    with torch.no_grad():
        np.testing.assert_allclose(scores, phase.model.eval()(images).numpy(), atol=1e-5)


def test_predicting_moves_no_statistics(train, tiny_digits):
    phase = train()
    run(phase, 2)
    before = weights(phase)
    scores_of(phase, "test")
    assert all(torch.equal(value, weights(phase)[name]) for name, value in before.items())


def test_held_out_accuracies_are_recorded_only_when_asked_and_never_in_pretraining(train):
    assert train().end_epoch(0) == {}
    assert train("track_test=true", loss="barlow").end_epoch(0) == {}
    phase = train("track_test=true", "track_every=1")
    facts = phase.end_epoch(0)
    assert set(facts) == {"accuracy_test", "accuracy_test_longtail"}  # digits has no val split
    scores, labels = scores_of(phase, "test")
    assert facts["accuracy_test"] == pytest.approx(100 * np.mean(scores.argmax(1) == labels))


def test_tracking_runs_the_network_once_on_each_image_and_only_every_so_many_epochs(train, monkeypatch):
    phase = train("track_test=true", "track_every=3", schedule={"epochs": 5})
    seen = []
    predict = train_phase.predict
    monkeypatch.setattr(
        train_phase, "predict", lambda model, split, *rest: seen.append(len(split)) or predict(model, split, *rest)
    )
    tracked = [phase.end_epoch(epoch) for epoch in range(5)]
    assert [bool(facts) for facts in tracked] == [False, False, True, False, True], "every third and the last"
    assert seen == [len(phase.data.split("test"))] * 2, "the long-tailed test split is a part of it"
    assert list(tracked[2]) == ["accuracy_test", "accuracy_test_longtail"]
    scores, labels = scores_of(phase, "test_longtail")
    assert tracked[2]["accuracy_test_longtail"] == pytest.approx(100 * np.mean(scores.argmax(1) == labels))


def test_training_learns(train):
    phase = train("track_test=true", "track_every=1", schedule={"epochs": 10, "lr": 0.05})
    losses = []
    for epoch in range(10):
        losses += [np.mean([value["loss"] for value in run(phase, 100, epoch)])]
    assert losses[-1] < 0.6 * losses[0]
    assert phase.accuracy(*phase.evaluation_rows(9)["test"]) > 40  # a tenth by chance


@pytest.mark.parametrize("loss", ["ce", "barlow"])
def test_training_taken_up_in_the_middle_of_an_epoch_ends_bit_equal(train, loss):
    options = {"loss": loss, "schedule": {"drop_path": 0.4, "cutout": 0.5}}
    whole, first, second = (train(**options) for _ in range(3))
    run(whole, 4, epoch=2)
    run(first, 2, epoch=2)
    second.load({name: tensor.detach().clone() for name, tensor in first.tensors().items()})
    run(second, 2, epoch=2, start=2)
    ours, theirs = whole.tensors(), second.tensors()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
