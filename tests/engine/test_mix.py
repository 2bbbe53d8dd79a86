"""A self-supervised loss beside the supervised one, in searches and retrainings; and samplers there."""

import numpy as np
import pytest
import torch
from search_support import run

from registry import PluginError
from registry.losses import cross_correlation
from ssfnas_cli.artifacts.genotype import Cell, Edge, Genotype
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.network import make_card
from ssfnas_cli.engine.retrain import build_phases
from ssfnas_cli.engine.search_phase import SearchPhase
from ssfnas_cli.errors import UsageError
from ssfnas_cli.settings import RetrainSettings, SearchSettings, load_settings

CPU = Device("cpu", 0)
CELL = Cell(
    edges=(Edge(op="sep_conv_3x3", source=0, target=2), Edge(op="skip_connect", source=1, target=2)), concat=(2,)
)
GENOTYPE = Genotype(normal=CELL, reduce=CELL)
MIX = ("ssl.loss=barlow", "ssl.weight=0.5", "ssl.loss.projector_dim=8")
SMALL = {"channels": 2, "layers": 3, "batch_size": 16, "epochs": 4}
OPS = ("none", "skip_connect", "dil_conv_3x3")


@pytest.fixture
def retrain(tiny_digits):
    def build(*sets, **flags):
        settings = load_settings(RetrainSettings, sets=sets, flags={**SMALL, **flags}).resolve_plugins()
        return build_phases(make_card(GENOTYPE, settings, tiny_digits), settings, tiny_digits, CPU)[0][-1]

    return build


@pytest.fixture
def search(tiny_digits):
    def build(*sets, **flags):
        flags = {**SMALL, "ops": OPS, "alpha_lr": 0.05, **flags}
        settings = load_settings(SearchSettings, sets=sets, flags=flags).resolve_plugins()
        return SearchPhase(settings, tiny_digits, CPU)

    return build


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def part(phase, *prefixes):
    return {name: t.detach().clone() for name, t in phase.model.state_dict().items() if name.startswith(prefixes)}


def statistics(phase):
    return {name: t for name, t in part(phase, "encoder.").items() if "running" in name}


def barlow(head, features):
    correlation = cross_correlation(*(head(one) for one in features), centred=True)
    off = correlation - torch.diag(torch.diagonal(correlation))
    return (torch.diagonal(correlation) - 1).square().sum() + 0.0051 * off.square().sum()


def test_a_retrainings_loss_is_the_supervised_one_plus_the_weighted_other_on_its_own_views(retrain):
    mixed, alone = retrain(*MIX, "drop_path=0"), retrain("drop_path=0")
    batch = next(mixed.batches(0, 0))
    plain = next(alone.batches(0, 0))
    assert torch.equal(batch.views[0], plain.views[0]) and len(batch.beside) == 2 and plain.beside == ()
    assert not torch.equal(*batch.beside)
    (value,), (without,) = run(mixed, 1), run(alone, 1)
    fresh = retrain(*MIX, "drop_path=0")
    fresh.model.train()
    features = [fresh.model.encoder(view).features for view in batch.beside]
    assert value["loss"] == pytest.approx(without["loss"] + 0.5 * barlow(fresh.ssl_head, features).item(), rel=1e-5)


def test_the_other_losss_gradient_reaches_the_encoder_and_its_head_and_no_running_statistics(retrain):
    mixed, alone = retrain(*MIX), retrain()
    assert same(part(mixed, "encoder.", "head."), part(alone, "encoder.", "head.")), "the same weights are drawn"
    before = {name: t.clone() for name, t in mixed.ssl_head.state_dict().items()}
    run(mixed, 1), run(alone, 1)
    assert same(statistics(mixed), statistics(alone)), "those of the views that the classifier sees"
    assert not same(part(mixed, "encoder."), part(alone, "encoder."))
    assert not torch.equal(before["0.weight"], mixed.ssl_head.state_dict()["0.weight"])


def test_the_extra_head_is_saved_and_taken_back_but_is_no_part_of_the_model(retrain):
    whole, cut = retrain(*MIX), retrain(*MIX)
    run(whole, 4)
    run(cut, 2)
    again = retrain(*MIX, "seed=1")
    again.seed = whole.seed
    again.settings = whole.settings
    again.load({name: t.clone() for name, t in cut.tensors().items()})
    run(again, 2, start=2)
    assert any(name.startswith("ssl_head.") for name in whole.tensors())
    assert same(whole.tensors(), again.tensors())
    assert not any("ssl_head" in name for name in whole.model.state_dict())


def test_the_gradients_of_both_losses_are_clipped_together(retrain):
    phase = retrain(*MIX, "clip=0.01", "momentum=0", "weight_decay=0")
    before = [weight.detach().clone() for weight in phase.weights]
    (value,) = run(phase, 1)
    moved = torch.stack([(new - old).norm() for new, old in zip(phase.weights, before, strict=True)]).norm()
    assert moved.item() == pytest.approx(0.01 * value["lr"], rel=1e-3)


@pytest.mark.parametrize("loss", ["vicreg", "simsiam"])
def test_every_self_supervised_loss_can_stand_beside(retrain, search, loss):
    for phase in (retrain(f"ssl.loss={loss}"), search(f"ssl.loss={loss}")):
        assert all(np.isfinite(value) for values in run(phase, 2) for value in values.values())


@pytest.mark.parametrize("order", [1, 2])
def test_in_a_search_both_steps_have_the_mix_and_weights_their_head(search, order):
    phase, alone = search(*MIX, order=order), search(order=order)
    assert all(any(p is weight for weight in phase.weight_groups[0]) for p in phase.model.ssl_head.parameters())
    assert phase.model.probe is None and phase.model.alpha_head is None
    batch, plain = next(phase.batches(0, 0)), next(alone.batches(0, 0))
    assert len(batch.weights.beside) == len(batch.alphas.beside) == 2
    assert torch.equal(batch.alphas.views[0], plain.alphas.views[0])
    phase.model.train(), alone.model.train()
    mixing = phase.strategy.mixing(0.0)
    for one, other, beside in (
        (phase.alpha_objective(batch, mixing, 0.0), alone.alpha_objective(plain, mixing, 0.0), batch.alphas.beside),
        (
            phase.weight_objective(batch, mixing, 0.0)[0],
            alone.weight_objective(plain, mixing, 0.0)[0],
            batch.weights.beside,
        ),
    ):
        features = [phase.model.encoder(view, mixing) for view in beside]
        expected = other + 0.5 * barlow(phase.model.ssl_head, features)
        assert one.item() == pytest.approx(expected.item(), rel=1e-4)
    head = part(phase, "ssl_head.")
    run(phase, 2), run(alone, 2)
    assert not same(head, part(phase, "ssl_head."))
    assert not torch.equal(phase.strategy.alphas["normal"], alone.strategy.alphas["normal"])
    assert any(name.startswith("model.ssl_head.") for name in phase.tensors())


def test_with_an_alpha_loss_of_its_own_the_alpha_step_has_no_mix(search):
    phase = search(*MIX, alpha_loss="ce")
    batch = next(phase.batches(0, 0))
    assert len(batch.weights.beside) == 2 and batch.alphas.beside == ()
    run(phase, 1)


def test_in_a_search_the_other_losses_views_leave_running_statistics_alone(search):
    mixed, alone = search(*MIX, warmup_epochs=1), search(warmup_epochs=1)
    run(mixed, 1), run(alone, 1)
    assert same(statistics(mixed), statistics(alone))


@pytest.mark.parametrize(
    ("sets", "flags", "words"),
    [
        (("ssl.loss=ce",), {}, "ssl.loss=ce: is supervised"),
        (("ssl.loss=vicreg",), {"loss": "barlow"}, "stands beside a supervised --loss"),
    ],
)
def test_a_mix_of_two_of_a_kind_is_refused(search, sets, flags, words):
    with pytest.raises(UsageError, match=words):
        search(*sets, **flags)


# Samplers and heads


def test_each_half_of_a_search_has_its_own_sampler_and_both_are_off_by_default(search):
    plain, weights, alphas = (
        search(),
        search("sampler=class_balanced"),
        search("alpha_sampler=class_balanced"),
    )

    def labels(phase, half, epochs=3):
        return torch.cat([getattr(b, half).labels for e in range(epochs) for b in phase.batches(e, 0)])

    for phase in (weights, alphas):
        assert phase.num_steps(0) == plain.num_steps(0) == len(list(phase.batches(0, 0)))
    assert torch.equal(labels(plain, "alphas"), labels(weights, "alphas"))
    assert torch.equal(labels(plain, "weights"), labels(alphas, "weights"))
    once = plain._counts(plain.halves[0])
    assert torch.bincount(labels(plain, "weights", 1)).tolist() == once
    assert torch.bincount(labels(weights, "weights", 1), minlength=10).tolist() != once
    for phase, half in ((weights, "weights"), (alphas, "alphas")):
        counts = torch.bincount(labels(phase, half, 12), minlength=10).double()
        assert (counts / counts.sum() - 0.1).abs().max() < 0.03


def test_an_alpha_half_that_is_undersampled_is_gone_through_again_and_again(search):
    phase = search("alpha_sampler=under")
    smallest = min(phase._counts(phase.halves[1]))
    batches = [batch.alphas.labels for batch in phase.batches(0, 0)]
    drawn = torch.cat(batches)[: 10 * smallest]
    assert torch.bincount(drawn).tolist() == [smallest] * 10


def test_a_retraining_switches_its_sampler_at_the_epoch_and_resumes_in_mid_epoch(retrain, tiny_digits):
    phase = retrain("sampler=class_balanced", "sampler.defer=0.5")
    counts = [torch.bincount(torch.cat([b.labels for b in phase.batches(e, 0)])).tolist() for e in range(4)]
    assert counts[0] == counts[1] == tiny_digits.counts("train")
    assert counts[2] != counts[0] and sum(counts[2]) == sum(counts[0])
    whole, rest = list(phase.batches(2, 0)), list(phase.batches(2, 3))
    assert all(torch.equal(a.views[0], b.views[0]) for a, b in zip(whole[3:], rest, strict=True))


def test_undersampling_has_fewer_steps_and_says_so(retrain, tiny_digits):
    phase = retrain("sampler=under")
    shown = 10 * min(tiny_digits.counts("train"))
    assert sum(len(batch.labels) for batch in phase.batches(0, 0)) == shown
    assert phase.num_steps(0) == len(list(phase.batches(0, 0))) < retrain().num_steps(0)


def test_a_pretraining_uses_no_sampler_as_that_would_use_labels(tiny_digits):
    sets = ("sampler=class_balanced", "pretrain=barlow")
    settings = load_settings(RetrainSettings, sets=sets, flags=SMALL).resolve_plugins()
    phases, _ = build_phases(make_card(GENOTYPE, settings, tiny_digits), settings, tiny_digits, CPU)
    shown = torch.cat([batch.labels for batch in phases[0].batches(0, 0)])
    assert torch.bincount(shown).tolist() == tiny_digits.counts("train")
    assert torch.bincount(torch.cat([b.labels for b in phases[1].batches(0, 0)])).tolist() != tiny_digits.counts(
        "train"
    )


LOSSES = ["inverse_frequency", "class_balanced", "focal", "ghm", "ldam", "logit_adjusted", "balanced_softmax"]


@pytest.mark.parametrize("loss", [*LOSSES, "label_aware_smoothing"])
def test_every_loss_trains_in_search_and_retraining_with_its_own_head(search, retrain, loss):
    for phase in (search(loss=loss), retrain(loss=loss)):
        values = run(phase, 2)
        assert all(np.isfinite(value) for line in values for value in line.values())
        assert (type(phase.model.head).__name__ == "CosineHead") == (loss == "ldam")
    assert type(phase.model.aux.classifier) is type(phase.model.head), "the auxiliary head's last layer is of its kind"


def test_the_loss_knows_the_counts_of_its_half_and_the_progress(search):
    phase = search("alpha_loss.defer=0.5", loss="logit_adjusted", alpha_loss="class_balanced")
    for loss, half in ((phase.weight_loss, phase.halves[0]), (phase.alpha_loss, phase.halves[1])):
        assert loss.class_counts == np.bincount(phase.split.labels[half], minlength=10).tolist()
    batch, mixing = next(phase.batches(0, 0)), phase.strategy.mixing(0.0)
    phase.model.train()
    values = [phase.alpha_objective(batch, mixing, progress).item() for progress in (0.0, 0.49, 0.5)]
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (("loss=ldam", "head=linear"), "head=linear: loss 'ldam' puts margins on scaled cosines"),
        (("loss=ldam", "head=cosine", "head.scale=16"), "its scale is 16 and the loss's is 30"),
        (("head=predictor",), "head=predictor: gives pairs, and the loss reads scores: take linear, cosine, etf"),
        (("head=projector",), "gives projections"),
    ],
)
def test_a_head_that_does_not_fit_its_loss_is_refused(retrain, search, sets, words):
    for build in (retrain, search):
        with pytest.raises(UsageError, match=words):
            build(*sets)


def test_ldam_takes_a_fixed_simplex_too_and_in_a_search_it_has_no_weights(search):
    phase = search("loss=ldam", "head=etf", "channels=4")
    run(phase, 2)
    assert not list(phase.model.head.parameters())


def test_a_simplex_of_more_classes_than_the_network_has_features_is_refused(retrain):
    with pytest.raises(PluginError, match=r"head 'etf'.*10 classes, 4 features"):
        retrain("head=etf", layers=1)
