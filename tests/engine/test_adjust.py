"""Corrected runs: what each method changes in the network and what not, and the folder that it writes."""

import logging
import math
import shutil

import numpy as np
import pytest
import torch
from adjust_support import CPU, GENOTYPE, SMALL, head_phase, logits_of, model_of, normalised, shares

from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.engine import loop
from ssfnas_cli.engine.adjust import run_adjust
from ssfnas_cli.engine.evaluate import evaluate_run
from ssfnas_cli.engine.predict import predict
from ssfnas_cli.engine.retrain import run_retrain
from ssfnas_cli.errors import InputError, OutputExistsError, Stopped, UsageError
from ssfnas_cli.settings import AdjustSettings, RetrainSettings, load_settings

# What a method does to the network


def test_logit_adjustment_subtracts_the_log_prior_and_leaves_the_trained_tensors_as_they_are(retrain, adjust, tailed):
    run = retrain()
    adjusted = adjust(run, tau=0.7)
    (before, _), (after, _) = logits_of(run, tailed), logits_of(adjusted, tailed)
    log_prior = [math.log(count / sum(tailed.counts("train"))) for count in tailed.counts("train")]
    np.testing.assert_allclose(after, before - 0.7 * np.array(log_prior), atol=1e-5)
    _, card, tensors = model_of(run)
    _, new, changed = model_of(adjusted)
    assert all(torch.equal(tensors[name], changed[name]) for name in tensors)
    assert changed.keys() - tensors.keys() == {"correction.scale", "correction.shift"}
    assert card.prior == pytest.approx(shares(tailed.counts("train")))
    rest = shares(tailed.counts("train")) ** 0.3
    assert new.prior == pytest.approx(rest / rest.sum())
    assert [record.model_dump() for record in new.corrections] == [{"method": "logit", "value": 0.7, "chosen_on": None}]


@pytest.mark.parametrize("method", ["logit", "tau-norm"])
def test_tau_0_changes_nothing_but_tau_norm_drops_the_bias(retrain, adjust, tailed, method):
    run = retrain()
    adjusted = adjust(run, method, tau=0)
    (before, _), (after, _) = logits_of(run, tailed), logits_of(adjusted, tailed)
    model, card, _ = model_of(run)
    if method == "logit":
        assert np.array_equal(before, after) and model_of(adjusted)[1].prior == pytest.approx(card.prior)
    else:
        np.testing.assert_allclose(after, before - model.head.bias.detach().numpy(), atol=1e-5)
        assert torch.equal(model_of(adjusted)[2]["head.weight"], model.head.weight)


def test_tau_normalisation_divides_class_vectors_by_their_lengths(retrain, adjust, tailed):
    run, tau = retrain(), 1.3
    adjusted = adjust(run, "tau-norm", tau=tau)
    model, card, tensors = model_of(run)
    features, _ = predict(
        model,
        tailed.split("val"),
        normalised(card),
        CPU,
        None,
        lambda x: model.encoder(x).features,
    )
    weight = model.head.weight.detach().double().numpy()
    lengths = np.array([math.sqrt(sum(float(value) ** 2 for value in vector)) for vector in weight])
    expected = features.astype(np.float64) @ weight.T / lengths**tau
    np.testing.assert_allclose(logits_of(adjusted, tailed)[0], expected, rtol=1e-4, atol=1e-5)
    _, new, changed = model_of(adjusted)
    assert new.prior == "unknown"
    assert all(torch.equal(tensors[name], changed[name]) for name in tensors if not name.startswith("head."))


def test_a_temperature_divides_the_logits_and_changes_no_prediction(retrain, adjust, tailed):
    run = retrain()
    adjusted = adjust(run, "temperature")
    (before, _), (after, _) = logits_of(run, tailed), logits_of(adjusted, tailed)
    (record,) = model_of(adjusted)[1].corrections
    assert record.chosen_on == "val" and record.value != 1
    np.testing.assert_allclose(after, before / record.value, rtol=1e-4, atol=1e-5)
    assert np.array_equal(before.argmax(1), after.argmax(1))
    assert model_of(adjusted)[1].prior == model_of(run)[1].prior


@pytest.mark.parametrize("method", ["crt", "lws"])
def test_a_classifier_trained_on_frozen_features_leaves_the_encoder_bit_equal(retrain, adjust, tailed, method):
    run = retrain()
    adjusted = adjust(run, method, epochs=2)
    _, _, before = model_of(run)
    _, card, after = model_of(adjusted)
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("encoder."))
    head_is_equal = torch.equal(before["head.weight"], after["head.weight"])
    scale, shift = after["correction.scale"], after["correction.shift"]
    assert not shift.any() and head_is_equal == (method == "lws") and (scale == 1).all() == (method == "crt")
    assert card.prior == "unknown" and [line["phase"] for line in adjusted.metrics()] == ["adjust"] * 2
    again = adjust(run, method, epochs=2)
    assert all(torch.equal(after[name], tensor) for name, tensor in model_of(again)[2].items())


def test_the_factors_of_lws_follow_the_gradient_of_balanced_samples(retrain, tailed):
    """Slow direct code: the first step, from features of the encoder that was saved."""
    run = retrain()
    model, _, _ = model_of(run)
    phase = head_phase(run, "lws", tailed, trained={"clip": 1e9}, lr=0.5)
    batch = next(phase.batches(0, 0))
    with torch.no_grad():
        logits = model(batch.views[0]).double()
    targets = torch.nn.functional.one_hot(batch.labels, 10)
    slope = ((logits.softmax(1) - targets) * logits).mean(0)
    phase.step(0, 0, batch)
    decay = phase.training.weight_decay
    expected = 1 - 0.5 * (slope + decay)
    torch.testing.assert_close(phase.correction.scale.detach().double(), expected, rtol=1e-4, atol=1e-5)


def test_training_on_frozen_features_sees_every_class_equally_often(retrain, tailed):
    phase = head_phase(retrain(), "crt", tailed, epochs=40)
    labels = torch.cat([batch.labels for epoch in range(40) for batch in phase.batches(epoch, 0)])
    found = torch.bincount(labels, minlength=10) / len(labels)
    assert (found - 0.1).abs().max() < 0.02
    assert sum(phase.num_steps(e) for e in range(40)) == sum(1 for e in range(40) for _ in phase.batches(e, 0))
    assert all(not module.training for name, module in phase.model.named_modules() if name.startswith("encoder"))


def test_images_are_augmented_as_in_the_training_but_not_mixed(retrain, tailed):
    run, first = retrain(), {}
    for changes in ({}, {"cutout": 0.0}, {"augment": "rand"}, {"mixup": 0.4}):
        first[str(changes)] = next(head_phase(run, "crt", tailed, trained=changes).batches(0, 0))
    plain, *others, mixed = first.values()
    for other in others:
        assert torch.equal(plain.labels, other.labels) and not torch.equal(plain.views[0], other.views[0])
    assert torch.equal(plain.views[0], mixed.views[0]) and mixed.mixed is None


@pytest.mark.parametrize("method", ["crt", "lws"])
def test_a_correction_that_is_stopped_goes_on_and_ends_bit_equal(retrain, adjust, tmp_path, monkeypatch, method):
    run = retrain()
    whole = adjust(run, method, epochs=3)
    asked = iter([None] * 7 + ["SIGTERM"])
    with monkeypatch.context() as patch:
        patch.setattr(loop.stop, "requested_by", lambda max_time: next(asked))
        with pytest.raises(Stopped, match="saved in"):
            adjust(run, method, epochs=3, output=tmp_path / "cut")
    cut = RunFolder.open(tmp_path / "cut")
    assert cut.status()["state"] == "stopped" and not (cut.path / "model.safetensors").exists()
    resumed = adjust(run, method, epochs=3, output=tmp_path / "cut")
    expected, got = model_of(whole)[2], model_of(resumed)[2]
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    values = [
        [{k: v for k, v in line.items() if "seconds" not in k and "memory" not in k} for line in one.metrics()]
        for one in (whole, resumed)
    ]
    assert values[0] == values[1]


def test_heads_that_a_method_cannot_correct_are_refused_and_the_others_corrected(retrain, adjust, tailed):
    cosine, fixed = retrain("head=cosine", epochs=1), retrain("head=etf", epochs=1)
    for run in (cosine, fixed):
        with pytest.raises(InputError, match="no class vectors of different lengths"):
            adjust(run, "tau-norm")
        (before, _), (after, _) = logits_of(run, tailed), logits_of(adjust(run), tailed)
        np.testing.assert_allclose(after, before - np.log(shares(tailed.counts("train"))), atol=1e-5)
        assert (model_of(adjust(run, "lws", epochs=1))[2]["correction.scale"] != 1).any()
    with pytest.raises(InputError, match="no weights that --method crt could train"):
        adjust(fixed, "crt")
    new = model_of(adjust(cosine, "crt", epochs=1))[0]
    assert type(new.head).__name__ == "CosineHead" and new.head.scale == 30


def test_a_plain_network_is_corrected_like_a_derived_one_and_keeps_its_name(retrain, adjust, tailed):
    run = retrain(genotype=None, network="resnet20", epochs=1)
    adjusted = adjust(run, "crt", epochs=1)
    before, after = model_of(run)[2], model_of(adjusted)[2]
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("encoder."))
    assert adjusted.status()["result"]["network"] == "resnet20"
    assert adjusted.status()["result"]["num_params"] == run.status()["result"]["num_params"]
    assert set(evaluate_run(adjusted, "", [], CPU)["splits"]) == {"val", "test", "test_longtail"}


# The run folder


def test_a_corrected_run_is_found_done_and_another_correction_in_its_place_refused(retrain, adjust, tmp_path, caplog):
    run, folder = retrain(), tmp_path / "one"
    first = adjust(run, output=folder).status()["result"]
    with caplog.at_level(logging.INFO, "ssfnas"):
        assert adjust(run, output=folder).status()["result"] == first
    assert "nothing to do" in caplog.text
    assert (first["adjusted"], first["tau"], first["source"], first["choice"]) == ("logit", 1.0, str(run.path), None)
    for flags in ({"tau": 2}, {"method": "lws"}, {"from_prior": "train"}):
        with pytest.raises(OutputExistsError, match="holds another run, which differs in adjustment"):
            adjust(run, output=folder, **flags)
    settings = load_settings(RetrainSettings, sets=["aux_weight=0", "drop_path=0"], flags=SMALL)
    with pytest.raises(OutputExistsError, match="adjustment"):
        run_retrain(
            GENOTYPE.model_copy(), settings.model_copy(update={"data": run.config["data"]["path"]}), folder, False
        )
    adjust(run, tau=2, output=folder, force=True)
    assert len(list(tmp_path.glob("one*"))) == 2, "the old one is moved aside"
    for force in (False, True):
        with pytest.raises(UsageError, match="is the run that is corrected"):
            adjust(run, output=run.path, force=force)


def test_an_unfinished_run_is_not_corrected(retrain, adjust, tmp_path):
    shutil.copytree(retrain().path, tmp_path / "half")
    half = RunFolder.open(tmp_path / "half")
    half.write_status("stopped")
    with pytest.raises(InputError, match="is stopped, not done"):
        adjust(half)


def test_default_folders_differ_by_what_is_done(retrain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = set()
    for flags in ({}, {"tau": 2}, {"from_prior": "train"}, {"method": "tau-norm"}, {"tau": 1.0}):
        settings = load_settings(AdjustSettings, flags=flags)
        paths.add(run_adjust(retrain(), settings, None, False)["path"])
    assert len(paths) == 4 and all(path.startswith("runs/adjust-digits-ce-") for path in paths)
    assert sum("tau-norm-s0-" in path for path in paths) == 1


# Settings


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"epochs": 3}, "--epochs: is for --method crt and lws, not for logit"),
        ({"method": "crt", "tau": 2}, "--tau: is for --method logit and tau-norm, not for crt"),
        ({"method": "tau-norm", "from_prior": "train"}, "--from-prior: is for --method logit and temperature"),
    ],
)
def test_a_setting_that_a_method_has_no_use_for_is_refused(flags, words):
    from ssfnas_cli.settings import refuse_useless

    with pytest.raises(UsageError, match=words):
        refuse_useless(load_settings(AdjustSettings, flags=flags))


@pytest.mark.parametrize(
    ("name", "value"), [("tau", -1), ("tau", "much"), ("lr", 0), ("epochs", 0), ("method", "cert")]
)
def test_values_out_of_range_are_refused_by_the_flags_name(name, value):
    with pytest.raises(UsageError, match=f"--{name}: "):
        load_settings(AdjustSettings, flags={name: value})
