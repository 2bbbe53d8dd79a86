"""What a correction is chosen on and what prior it starts from; and the part of train that is set aside for it."""

import json
import shutil

import numpy as np
import pytest
import torch
from adjust_support import GENOTYPE, METHODS, SMALL, flags_for, logits_of, model_of, recalls, shares

from ssfnas_cli.artifacts.dataset import DataSet
from ssfnas_cli.artifacts.model import load_model, save_model
from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.data.batches import Subset
from ssfnas_cli.data.holdout import split_holdout
from ssfnas_cli.engine import loop
from ssfnas_cli.engine.network import make_card
from ssfnas_cli.engine.retrain import run_retrain
from ssfnas_cli.errors import InputError, Stopped, UsageError
from ssfnas_cli.settings import RetrainSettings, load_settings

# What is chosen, and on what


def test_tau_is_chosen_by_balanced_accuracy_on_val(retrain, adjust, tailed):
    run = retrain()
    adjusted = adjust(run, tau="auto")
    logits, labels = logits_of(run, tailed)
    log_prior = np.log(shares(tailed.counts("train")))
    scores = {step / 20: 100 * recalls((logits - step / 20 * log_prior).argmax(1), labels) for step in range(61)}
    choice = adjusted.status()["result"]["choice"]
    assert dict(map(tuple, choice["curve"])) == pytest.approx(scores)
    assert (choice["split"], choice["criterion"]) == ("val", "balanced_accuracy")
    assert scores[choice["value"]] == max(scores.values()) > scores[0]
    assert adjusted.config["adjustment"]["choice"] == choice
    (record,) = model_of(adjusted)[1].corrections
    assert (record.value, record.chosen_on) == (choice["value"], "val")
    after, _ = logits_of(adjusted, tailed)
    assert 100 * recalls(after.argmax(1), labels) == pytest.approx(max(scores.values()))


def test_nothing_is_read_from_a_test_split(retrain, adjust, tailed, tmp_path):
    """The same corrections come out where the test files are poisoned, or gone."""
    run = retrain()
    expected = {method: adjust(run, method, **flags_for(method)) for method in METHODS}
    names = [shard.file for split in ("test", "test_longtail") for shard in tailed.manifest.splits[split].shards]
    assert names
    for harm in ("poisoned", "gone"):
        folder = tmp_path / harm
        shutil.copytree(tailed.path, folder)
        for name in names:
            content = (folder / name).read_bytes()
            (folder / name).unlink()
            if harm == "poisoned":
                (folder / name).write_bytes(bytes(len(content)))
        for method in METHODS:
            got = adjust(run, method, data=str(folder), **flags_for(method))
            one, other = model_of(expected[method])[2], model_of(got)[2]
            assert all(torch.equal(one[key], other[key]) for key in one), (harm, method)


def test_without_val_and_holdout_a_choice_is_refused_and_a_given_tau_needs_no_data(
    retrain, adjust, tiny_digits, tmp_path
):
    shutil.copytree(tiny_digits.path, tmp_path / "moved")
    run = retrain(on=DataSet.open(tmp_path / "moved"))
    for method, tau in (("logit", "auto"), ("tau-norm", "auto"), ("temperature", None)):
        with pytest.raises(InputError, match=r"no images to choose on.*--val-share.*holdout=0.1") as refused:
            adjust(run, method, **({"tau": tau} if tau else {}))
        assert ("or give --tau" in str(refused.value)) == (tau is not None)
    shutil.rmtree(tmp_path / "moved")
    for method in ("logit", "tau-norm"):
        assert len(model_of(adjust(run, method, tau=1.5))[1].corrections) == 1
    with pytest.raises(InputError, match="not there any more"):
        adjust(run, "crt")


# The prior that the outputs hold


def test_the_card_records_the_prior_by_loss_and_sampler(tailed):
    uniform, trained = [0.1] * 10, shares(tailed.counts("train"))
    for sets, expected in (
        ((), trained),
        (("ssl.loss=barlow", "ssl.loss.projector_dim=8"), trained),
        (("loss=balanced_softmax",), uniform),
        (("loss=logit_adjusted", "loss.tau=1"), uniform),
        (("loss=logit_adjusted", "loss.tau=0"), trained),
        (("loss=inverse_frequency",), "unknown"),
        (("loss.label_smoothing=0.1",), "unknown"),
        (("sampler=square_root",), "unknown"),
        (("loss=balanced_softmax", "sampler=class_balanced"), "unknown"),
    ):
        settings = load_settings(RetrainSettings, sets=sets, flags=SMALL).resolve_plugins()
        prior = make_card(GENOTYPE, settings, tailed).prior
        assert prior == (expected if isinstance(expected, str) else pytest.approx(expected)), sets


def test_an_adjustment_starts_from_the_prior_that_is_held(retrain, adjust, tailed):
    run = retrain("loss.tau=0.4", loss="logit_adjusted")
    (before, _), (after, _) = logits_of(run, tailed), logits_of(adjust(run), tailed)
    held = shares(tailed.counts("train")) ** 0.6
    np.testing.assert_allclose(after, before - np.log(held / held.sum()), atol=1e-5)
    with pytest.raises(InputError, match="nothing to adjust"):
        adjust(retrain(loss="balanced_softmax", epochs=1))


def test_an_unknown_prior_has_to_be_said(retrain, adjust, tailed, tmp_path):
    run = retrain("sampler=class_balanced", epochs=1)
    with pytest.raises(InputError, match=r"not known \(loss ce, sampler class_balanced\).*--from-prior train"):
        adjust(run)
    counts = tailed.counts("train")
    (tmp_path / "counts.json").write_text(json.dumps([2 * count for count in counts]))
    (tmp_path / "named.json").write_text(json.dumps(dict(zip(tailed.class_names, counts, strict=True))))
    expected = model_of(adjust(run, from_prior="train"))
    np.testing.assert_allclose(expected[2]["correction.shift"], -np.log(shares(counts)), rtol=1e-6)
    for name in ("counts.json", "named.json"):
        _, card, tensors = model_of(adjust(run, from_prior=str(tmp_path / name)))
        torch.testing.assert_close(tensors["correction.shift"], expected[2]["correction.shift"])
        assert card.prior == pytest.approx([0.1] * 10)
    assert model_of(adjust(run, "temperature"))[1].prior == "unknown"
    assert model_of(adjust(run, "temperature", from_prior="uniform"))[1].prior == pytest.approx([0.1] * 10)


@pytest.mark.parametrize("content", ["[1, 2]", "[1, 2, 3, 4, 5, 6, 7, 8, 9, 0]", '{"0": 3}', "7", '["a"]', "[true]"])
def test_a_file_that_is_no_prior_is_refused(retrain, adjust, tmp_path, content):
    (tmp_path / "counts.json").write_text(content)
    with pytest.raises(InputError, match="10 positive counts"):
        adjust(retrain(), from_prior=str(tmp_path / "counts.json"))


def test_the_prior_of_an_old_card_is_decided_from_loss_and_sampler(retrain, adjust, tmp_path):
    for sets in ((), ("sampler=class_balanced",)):
        run = retrain(*sets, epochs=1)
        shutil.copytree(run.path, tmp_path / f"old{len(sets)}")
        tensors, card = load_model(run.path / "model.safetensors")
        old = card.model_copy(update={"prior": None})
        save_model(tmp_path / f"old{len(sets)}" / "model.safetensors", tensors, old)
    expected = model_of(adjust(retrain(epochs=1)))[2]
    got = model_of(adjust(RunFolder.open(tmp_path / "old0")))[2]
    assert torch.equal(expected["correction.shift"], got["correction.shift"])
    with pytest.raises(InputError, match="not known"):
        adjust(RunFolder.open(tmp_path / "old1"))


def test_a_second_correction_is_refused_and_only_a_temperature_may_follow(retrain, adjust, tailed):
    run = retrain()
    first = {method: adjust(run, method, **flags_for(method)) for method in ("logit", "crt", "temperature")}
    for before, corrected in first.items():
        for method in METHODS:
            if method == "temperature" and before != "temperature":
                continue
            with pytest.raises(InputError, match=rf"corrected already \({before}\).*'{run.path}'"):
                adjust(corrected, method)
    both = adjust(first["logit"], "temperature")
    (logits, _), (cooled, _) = logits_of(first["logit"], tailed), logits_of(both, tailed)
    records = model_of(both)[1].corrections
    assert [record.method for record in records] == ["logit", "temperature"]
    np.testing.assert_allclose(cooled, logits / records[1].value, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=r"corrected already \(logit, temperature\)"):
        adjust(both, "temperature")


# A part of train that is set aside


def test_a_holdout_is_stratified_seeded_and_disjoint():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(5), [100, 31, 12, 3, 2]))
    rest, aside = split_holdout(labels, 5, 0.1, seed=3)
    assert np.array_equal(np.sort(np.concatenate([rest, aside])), np.arange(148))
    assert np.bincount(labels[aside], minlength=5).tolist() == [10, 3, 1, 1, 0]
    again, other = split_holdout(labels, 5, 0.1, seed=3)[1], split_holdout(labels, 5, 0.1, seed=4)[1]
    assert np.array_equal(aside, again) and not np.array_equal(aside, other)
    assert set(aside) < set(split_holdout(labels, 5, 0.3, seed=3)[1]), "a larger share holds a smaller one"
    whole, none = split_holdout(labels, 5, 0.0, seed=3)
    assert np.array_equal(whole, np.arange(148)) and not len(none)


def test_a_network_trains_on_the_rest_and_is_corrected_on_what_was_set_aside(retrain, adjust, tiny_digits, monkeypatch):
    seen, batch = set(), Subset.batch
    monkeypatch.setattr(
        Subset, "batch", lambda self, places, *more: (seen.update(self.indices[places]), batch(self, places, *more))[1]
    )
    sets = ("holdout=0.2", "pretrain=barlow", "pretrain_epochs=1", "pretrain.projector_dim=8", "seed=7")
    run = retrain(*sets, on=tiny_digits)
    split = tiny_digits.split("train")
    rest, aside = split_holdout(split.labels, 10, 0.2, 7)
    assert seen == set(rest) and len(aside)
    _, card, _ = model_of(run)
    assert card.holdout == 0.2 and card.train_counts == np.bincount(split.labels[rest]).tolist()
    assert card.prior == pytest.approx(shares(card.train_counts))
    adjusted = adjust(run, tau="auto")
    choice = adjusted.status()["result"]["choice"]
    assert (choice["split"], choice["num_images"]) == ("holdout", len(aside))
    logits, labels = logits_of(run, tiny_digits, "train", aside)
    assert dict(map(tuple, choice["curve"]))[0.0] == pytest.approx(100 * recalls(logits.argmax(1), labels))
    seen.clear()
    adjust(run, "crt", epochs=6)
    assert seen <= set(rest) and len(seen) > 0.9 * len(rest)


def test_a_retraining_with_a_holdout_that_is_stopped_goes_on_and_ends_bit_equal(retrain, tailed, tmp_path, monkeypatch):
    sets = ["aux_weight=0", "drop_path=0", "holdout=0.3", "sampler=class_balanced"]
    settings = load_settings(RetrainSettings, sets=sets, flags={**SMALL, "data": str(tailed.path), "epochs": 2})
    asked = iter([None] * 6 + ["SIGTERM"])
    with monkeypatch.context() as patch:
        patch.setattr(loop.stop, "requested_by", lambda max_time: next(asked))
        with pytest.raises(Stopped, match="saved in"):
            run_retrain(GENOTYPE, settings, tmp_path / "cut", False)
    run_retrain(GENOTYPE, settings, tmp_path / "cut", False)
    whole = model_of(retrain("holdout=0.3", "sampler=class_balanced", epochs=2))[2]
    cut = model_of(RunFolder.open(tmp_path / "cut"))[2]
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_a_holdout_is_part_of_the_identity_and_runs_without_one_keep_theirs():
    default = RetrainSettings().resolve_plugins()
    assert "holdout" not in default.changed_identity()
    other = load_settings(RetrainSettings, sets=["holdout=0.1"]).resolve_plugins()
    assert other.changed_identity()["holdout"] == 0.1 and other.identity() != default.identity()


def test_where_no_class_can_give_an_image_a_holdout_is_refused(tiny_digits, retrain):
    class Tiny:
        def __getattr__(self, name):
            return getattr(tiny_digits, name)

        def counts(self, name):
            return [2] * 10

    settings = load_settings(RetrainSettings, sets=["holdout=0.1"], flags=SMALL).resolve_plugins()
    with pytest.raises(UsageError, match=r"--set holdout=0\.1: no class has 3 images"):
        make_card(GENOTYPE, settings, Tiny())
