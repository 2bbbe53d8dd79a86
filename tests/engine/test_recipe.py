"""The recipe of a retraining: each part against a direct computation, each part alone across an interruption."""

import math

import numpy as np
import pytest
import torch
from search_support import run
from torch import nn

from registry.losses import CrossEntropy
from registry.norm import BatchNorm
from registry.optimizers import SGD
from ssfnas_cli import stop
from ssfnas_cli.artifacts.checkpoint import load_newest
from ssfnas_cli.artifacts.genotype import Cell, Edge, Genotype
from ssfnas_cli.artifacts.model import load_model
from ssfnas_cli.data.batches import normaliser, stream_seed
from ssfnas_cli.data.mixing import Mixing
from ssfnas_cli.data.policies import Policy
from ssfnas_cli.engine import dry_run
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.loop import seed_for_step
from ssfnas_cli.engine.network import make_card
from ssfnas_cli.engine.predict import accuracy, predict
from ssfnas_cli.engine.retrain import build_phases, run_retrain
from ssfnas_cli.engine.sgd import learning_rate
from ssfnas_cli.errors import Stopped, UsageError
from ssfnas_cli.settings import RetrainSettings, load_settings

CPU = Device("cpu", 0)
CELL = Cell(
    edges=(Edge(op="sep_conv_3x3", source=0, target=2), Edge(op="skip_connect", source=1, target=2)), concat=(2,)
)
GENOTYPE = Genotype(normal=CELL, reduce=CELL)
SMALL = {"channels": 2, "layers": 3, "batch_size": 16, "epochs": 4, "kernels": "torch"}
SWITCHES = {
    "mixup": ("mixup=0.4",),
    "cutmix": ("cutmix=1",),
    "both": ("mixup=0.4", "cutmix=1"),
    "trivial": ("augment=trivial",),
    "rand": ("augment=rand", "rand_ops=1", "rand_magnitude=15"),
    "ema": ("ema=0.9",),
    "smoothing": ("loss.label_smoothing=0.1",),
    "warm-up": ("lr_warmup_epochs=2",),
    "nesterov": ("nesterov=true",),
    "decay_bn": ("decay_bn=false",),
}


@pytest.fixture
def phases(tiny_digits):
    """`phases("mixup=0.4", ...)`: the phases of a retraining of tiny digits."""

    def build(*sets, **flags):
        settings = load_settings(RetrainSettings, sets=sets, flags={**SMALL, **flags}).resolve_plugins()
        return build_phases(make_card(GENOTYPE, settings, tiny_digits), settings, tiny_digits, CPU)[0]

    return build


@pytest.fixture
def train(phases):
    return lambda *sets, **flags: phases(*sets, **flags)[-1]


def state(phase):
    return {name: tensor.detach().clone() for name, tensor in phase.tensors().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Each part alone: it changes the training, and goes on from the middle of an epoch


@pytest.mark.parametrize("sets", SWITCHES.values(), ids=SWITCHES)
def test_a_training_taken_up_in_mid_epoch_with_loader_processes_ends_bit_equal(train, sets):
    whole, cut, again = train(*sets), train(*sets), train(*sets, workers=2)
    run(whole, 4, epoch=1)
    run(cut, 2, epoch=1)
    again.load(state(cut))
    run(again, 2, epoch=1, start=2)
    assert same(whole.tensors(), again.tensors())
    plain = train()
    run(plain, 4, epoch=1)
    ours = {name: tensor for name, tensor in whole.tensors().items() if not name.startswith("ema")}
    assert same(ours, plain.tensors()) == (sets == SWITCHES["ema"]), "an average changes nothing but itself"


def test_a_whole_recipe_is_stopped_goes_on_with_loader_processes_and_ends_bit_equal(tiny_digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = {**SMALL, "epochs": 3, "batch_size": 48, "data": str(tiny_digits.path), "pretrain": "barlow"}
    sets = ["cutmix=1", "mixup=0.2", "ema=0.999", "augment=trivial", "lr_warmup_epochs=1", "pretrain_epochs=1"]
    load = lambda **more: load_settings(RetrainSettings, preset="strong", sets=sets, flags={**flags, **more})
    run_retrain(GENOTYPE, load(), tmp_path / "whole", False)
    calls = iter(range(1000))
    monkeypatch.setattr(stop, "requested_by", lambda limit: "a test" if next(calls) == 10 else None)
    with pytest.raises(Stopped):
        run_retrain(GENOTYPE, load(), tmp_path / "cut", False)
    saved = load_newest(tmp_path / "cut" / "checkpoints")
    assert saved.state["phase"] == 1 and saved.state["step"] > 0, "in the middle of an epoch of the training"
    run_retrain(GENOTYPE, load(workers=2), tmp_path / "cut", False)
    (one, _), (other, _) = (load_model(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert same(one, other)


# Mixed images


def log_p(row):
    return row - row.max() - np.log(np.exp(row - row.max()).sum())


def ce(row, y, counts, shift=0.0):
    return -log_p(row + shift)[y]


def weighted(beta):
    def loss(row, y, counts):
        raw = (1 - beta) / (1 - beta**counts)
        return len(raw) * raw[y] / raw.sum() * ce(row, y, counts)

    return loss


def inverse(row, y, counts):
    return len(counts) * (1 / counts[y]) / (1 / counts).sum() * ce(row, y, counts)


def focal(row, y, counts):
    return (1 - np.exp(log_p(row)[y])) ** 2 * ce(row, y, counts)


def ldam(row, y, counts):
    margin = 0.5 * (counts[y] / counts.min()) ** -0.25
    return ce(row - 30 * margin * np.eye(len(row))[y], y, counts)


def adjusted(row, y, counts):
    return ce(row, y, counts, np.log(counts))


def aware(row, y, counts):
    place = (counts[y] - counts.min()) / (counts.max() - counts.min())
    eps = 0.1 * math.sin(math.pi / 2 * place)
    return (1 - eps) * ce(row, y, counts) - eps * log_p(row).mean()


DIRECT = {
    "ce": ce,
    "inverse_frequency": inverse,
    "class_balanced": weighted(0.9999),
    "focal": focal,
    "ldam": ldam,
    "logit_adjusted": adjusted,
    "balanced_softmax": adjusted,
    "label_aware_smoothing": aware,
}


def ghm(scores, labels):
    """Of a whole batch: each term of the sigmoid losses over the number of terms in its bin, times the bins' width."""
    p, target = 1 / (1 + np.exp(-scores)), np.eye(scores.shape[1])[labels]
    place = np.minimum((abs(p - target) * 30).astype(int), 29)
    shares = np.bincount(place.ravel(), minlength=30)[place] * 30
    return -(np.log(np.where(target == 1, p, 1 - p)) / shares).sum()


def direct(name, scores, labels, counts):
    if name == "ghm":
        return ghm(scores, labels)
    return np.mean([DIRECT[name](row, y, counts) for row, y in zip(scores, labels, strict=True)])


@pytest.mark.parametrize("mixing", ["mixup=0.7", "cutmix=0.7"])
@pytest.mark.parametrize("name", [*DIRECT, "ghm"])
def test_the_loss_of_mixed_images_is_the_losses_of_both_labels_by_their_shares(train, tiny_digits, name, mixing):
    sets = (f"loss={name}", mixing, "drop_path=0", "seed=2")
    phase, twin = train(*sets, aux_weight=0), train(*sets, aux_weight=0)
    batch = next(phase.batches(0, 0))
    (value,) = run(phase, 1)
    twin.model.train()
    with torch.no_grad():
        scores = twin.model(batch.views[0]).double().numpy()
    counts, share = np.array(tiny_digits.counts("train"), float), batch.mixed.share
    assert 0.05 < share < 0.95 and not torch.equal(batch.labels, batch.mixed.labels)
    one, other = (direct(name, scores, labels.numpy(), counts) for labels in (batch.labels, batch.mixed.labels))
    assert value["loss"] == pytest.approx(share * one + (1 - share) * other, rel=1e-4)
    right = [scores.argmax(1) == labels.numpy() for labels in (batch.labels, batch.mixed.labels)]
    assert value["train_accuracy"] == pytest.approx(100 * (share * right[0].mean() + (1 - share) * right[1].mean()))


def test_the_auxiliary_head_has_the_mixed_loss_too_and_a_loss_beside_its_own_unmixed_views(train, tiny_digits):
    beside = ("ssl.loss=barlow", "ssl.loss.projector_dim=8")
    mixed, plain = train("mixup=0.7", *beside, "drop_path=0"), train(*beside, "drop_path=0")
    batch, without = next(mixed.batches(0, 0)), next(plain.batches(0, 0))
    assert all(torch.equal(*views) for views in zip(batch.beside, without.beside, strict=True))
    assert torch.equal(batch.labels, without.labels) and not torch.equal(batch.views[0], without.views[0])
    twin = train("mixup=0.7", "drop_path=0")
    twin.model.train()
    with torch.no_grad():
        outputs = [scores.double().numpy() for scores in twin.model.with_aux(batch.views[0])]
    counts, share, labels = np.array(tiny_digits.counts("train"), float), batch.mixed.share, batch.labels.numpy()
    main, aux = (
        share * direct("ce", one, labels, counts) + (1 - share) * direct("ce", one, batch.mixed.labels.numpy(), counts)
        for one in outputs
    )
    (value,) = run(train("mixup=0.7", "drop_path=0"), 1)
    assert value["loss"] == pytest.approx(main + 0.4 * aux, rel=1e-4)


def test_a_loss_that_cannot_be_mixed_is_refused_with_its_reason(train, monkeypatch):
    monkeypatch.setattr(CrossEntropy, "refuses_mixing", lambda self: "compares the images of a batch")
    with pytest.raises(UsageError, match=r"--set mixup=0.4: loss 'ce' compares the images of a batch"):
        train("mixup=0.4")
    with pytest.raises(UsageError, match=r"--set cutmix=1.0: loss 'ce' compares"):
        train("cutmix=1")
    assert train().schedule.mixing is None


# The optimizer


def test_the_rate_rises_in_a_straight_line_and_then_falls_along_a_cosine(train):
    phase = train("lr_warmup_epochs=2", "lr=0.08", "lr_min=0.02")
    rates, steps = [], phase.num_steps(0)
    for epoch in range(4):
        rates += [value["lr"] for value in run(phase, 100, epoch)]
    rise = [0.08 * (k + 1) / (2 * steps) for k in range(2 * steps)]
    fall = [0.02 + 0.06 * (1 + math.cos(math.pi * k / (2 * steps))) / 2 for k in range(2 * steps)]
    assert rates == pytest.approx(rise + fall)
    assert rates[2 * steps - 1] == rates[2 * steps] == 0.08, "exactly"
    assert phase.optimizer.param_groups[0]["lr"] == rates[-1]


def test_without_warm_up_the_rate_is_the_cosine_over_all_epochs():
    for epoch, step in ((0, 0), (1, 3), (6, 8)):
        progress = (epoch + step / 9) / 7
        assert (
            learning_rate(0.1, 0.01, epoch, step, 9, 7) == 0.01 + (0.1 - 0.01) * (1 + math.cos(math.pi * progress)) / 2
        )


def test_scales_and_biases_are_those_weights_that_need_not_decay(train):
    phase = train("decay_bn=false")
    modules = phase.model.modules()
    vectors = {id(m.weight) for m in modules if isinstance(m, BatchNorm)}
    vectors |= {id(m.bias) for m in phase.model.modules() if isinstance(m, BatchNorm | nn.Linear | nn.Conv2d)}
    decayed, free = phase.optimizer.param_groups
    assert {id(weight) for weight in free["params"]} == vectors - {id(None)}
    assert (decayed["weight_decay"], free["weight_decay"]) == (3e-4, 0)
    every = [id(weight) for group in (decayed, free) for weight in group["params"]]
    assert sorted(every) == sorted(id(weight) for weight in phase.model.parameters())
    (only,) = train().optimizer.param_groups
    assert [id(a) for a in only["params"]] != [] and only["weight_decay"] == 3e-4


def test_a_step_without_decay_of_bn_differs_by_that_decay_alone(train):
    sets = ("weight_decay=0.1", "clip=1000")
    start, plain, free = train(*sets), train(*sets), train(*sets, "decay_bn=false")
    lr = run(plain, 1)[0]["lr"]
    run(free, 1)
    names = 0
    for (name, old), ours, other in zip(
        start.model.named_parameters(), free.model.parameters(), plain.model.parameters(), strict=True
    ):
        moved = lr * 0.1 * old.detach() if old.ndim == 1 else torch.zeros_like(old)
        torch.testing.assert_close(ours.detach() - other.detach(), moved, rtol=0, atol=1e-7, msg=name)
        names += old.ndim == 1
    assert names > 5


def test_nesterovs_step_is_that_of_its_formula(train):
    sets = ("nesterov=true", "clip=1000", "momentum=0.8")
    phase = train(*sets)
    weight = phase.model.head.weight
    buffer, expected = None, weight.detach().double()
    for step, batch in enumerate(phase.batches(0, 0)):
        if step == 3:
            break
        before = weight.detach().double().clone()
        seed_for_step(phase.seed, 0, step)
        lr = phase.step(0, step, batch)["lr"]
        gradient = weight.grad.double() + 3e-4 * before
        buffer = gradient if buffer is None else 0.8 * buffer + gradient
        expected = before - lr * (gradient + 0.8 * buffer)
        torch.testing.assert_close(weight.detach().double(), expected, rtol=1e-5, atol=1e-7)


# The moving average


def test_what_is_evaluated_is_the_average_and_what_trains_is_not(train, tiny_digits):
    phase, twin = train("ema=0.99", "track_test=true", "track_every=1", lr=0.2), train(lr=0.2)
    run(phase, 9), run(twin, 9)
    own = {name: value.clone() for name, value in phase.model.state_dict().items()}
    facts = phase.end_epoch(0)
    assert same(own, phase.model.state_dict()) and same(own, twin.model.state_dict())
    twin.model.load_state_dict(phase.average.values)
    split = tiny_digits.split("test")
    scores, labels = predict(twin.model, split, normaliser(tiny_digits), CPU)
    assert facts["accuracy_test"] == accuracy(scores, labels)
    phase.model.eval()
    assert not np.array_equal(predict(phase.model, split, normaliser(tiny_digits), CPU)[0], scores)
    assert not same(own, phase.trained()) and same(phase.trained(), phase.average.values)


def test_the_model_file_holds_the_average_and_its_card_says_so(tiny_digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = {**SMALL, "epochs": 1, "data": str(tiny_digits.path)}
    for name, sets in (("ema", ["ema=0.97"]), ("plain", [])):
        run_retrain(GENOTYPE, load_settings(RetrainSettings, sets=sets, flags=flags), tmp_path / name, False)
    tensors, card = load_model(tmp_path / "ema" / "model.safetensors")
    last = load_newest(tmp_path / "ema" / "checkpoints").tensors
    assert card.ema == 0.97 and all(torch.equal(value, last[f"ema.{name}"]) for name, value in tensors.items())
    assert not torch.equal(tensors["head.weight"], last["model.head.weight"])
    own, plain = load_model(tmp_path / "plain" / "model.safetensors")
    assert plain.ema is None and torch.equal(own["head.weight"], last["model.head.weight"])


# Where it does not apply


def test_a_pretraining_shares_the_optimizers_settings_and_nothing_else(phases, tiny_digits):
    every = [text for name, sets in SWITCHES.items() if name != "rand" for text in sets]
    pretraining, training = phases("pretrain=barlow", "pretrain_epochs=1", *every)
    schedule = training.schedule
    assert (schedule.warmup_epochs, schedule.policy, schedule.ema) == (2, Policy("trivial"), 0.9)
    assert schedule.mixing == Mixing(0.4, 1.0, stream_seed(0, "train mixing"))
    assert pretraining.average is None and pretraining.schedule.warmup_epochs == 0
    assert all(group["nesterov"] for phase in (pretraining, training) for group in phase.optimizer.param_groups)
    assert len(pretraining.optimizer.param_groups) == 2
    (plain, _) = phases("pretrain=barlow", "pretrain_epochs=1")
    batch, without = next(pretraining.batches(0, 0)), next(plain.batches(0, 0))
    assert batch.mixed is None
    assert all(torch.equal(*views) for views in zip(batch.views, without.views, strict=True))


def test_a_dry_run_counts_the_average_that_is_saved(tiny_digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dry_run, "ENOUGH_SECONDS", 0.0)
    sizes = {}
    for sets in ((), ("ema=0.999",)):
        settings = load_settings(RetrainSettings, sets=sets, flags={**SMALL, "data": str(tiny_digits.path)})
        facts = dry_run.predict_retrain(GENOTYPE, settings, None, False, False)
        sizes[sets] = facts["checkpoint_bytes"]
    assert not list(tmp_path.iterdir()) and sizes["ema=0.999",] > 1.3 * sizes[()], (
        "the average is saved beside the weights"
    )


# The optimizer of a pretraining


ADAMW = ("pretrain=barlow", "pretrain_optimizer=adamw", "pretrain_lr=0.002", "weight_decay=0.1", "clip=1e9")


def test_the_first_step_of_adamw_is_a_rate_in_the_direction_of_each_sign_and_the_decay(phases):
    """Its moments are the gradient itself at first, so w becomes w - lr * decay * w - lr * g / (|g| + eps)."""
    pretraining, training = phases(*ADAMW)
    assert type(training.optimizer) is SGD
    before = [weight.detach().clone() for weight in pretraining.weights]
    (batch,) = [one for place, one in enumerate(pretraining.batches(0, 0)) if place == 0]
    pretraining.step(0, 0, batch)
    for old, weight in zip(before, pretraining.weights, strict=True):
        gradient = weight.grad
        expected = old - 0.002 * 0.1 * old - 0.002 * gradient / (gradient.abs() + 1e-8)
        assert torch.allclose(weight, expected, atol=1e-6)


def test_a_pretraining_by_adamw_taken_up_in_mid_epoch_ends_bit_equal(phases):
    whole, cut, again = (phases(*ADAMW)[0] for _ in range(3))
    run(whole, 4, epoch=1)
    run(cut, 2, epoch=1)
    again.load(state(cut))
    run(again, 2, epoch=1, start=2)
    assert same(whole.tensors(), again.tensors())
