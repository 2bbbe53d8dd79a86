"""Searches that begin with another search's supernet: what is taken, what learns, what stays bit for bit, resume."""

import numpy as np
import pytest
import torch
from search_support import TINY, Relabelled, dying_at, run, same, state

from ssfnas_cli.artifacts.checkpoint import load_newest
from ssfnas_cli.artifacts.genotype import read_genotype
from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.engine import dry_run
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.finished_search import FinishedSearch
from ssfnas_cli.engine.search import build_search, plan_search, run_search
from ssfnas_cli.engine.search_phase import SearchPhase
from ssfnas_cli.engine.start import begin_with, find_start
from ssfnas_cli.errors import InputError, OutputExistsError, UsageError
from ssfnas_cli.native import cells
from ssfnas_cli.settings import SearchSettings, load_settings

SHAPE = {**TINY, "batch_size": 64, "ops": ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3"), "kernels": "torch"}


def settings_of(data, *sets, **flags):
    return load_settings(SearchSettings, sets=sets, flags={**SHAPE, "data": str(data.path), "epochs": 1, **flags})


@pytest.fixture(scope="module")
def balanced(tmp_path_factory):
    from ssfnas_cli.data.build import build_dataset
    from ssfnas_cli.settings import MakeDatasetSettings

    made = MakeDatasetSettings(dist="balance", max_per_class=20)
    return build_dataset(made, tmp_path_factory.mktemp("balanced") / "digits", lambda line: None)


@pytest.fixture(scope="module")
def base(tmp_path_factory, balanced):
    """A finished search on balanced digits."""
    path = tmp_path_factory.mktemp("base") / "run"
    run_search(settings_of(balanced), path, False)
    return path


@pytest.fixture
def started(base, tiny_digits):
    """`started("head", loss=...)`: a phase that was just built on the tail and has begun with the base's supernet."""

    def build(adapt, *sets, data=tiny_digits, device=None, **flags):
        flags = {"init_from": str(base), "adapt": adapt, "batch_size": 16, "epochs": 4, **flags}
        settings = settings_of(tiny_digits, *sets, **flags).resolve_plugins()
        phase = SearchPhase(settings, data, device or Device("cpu", 0))
        phase.taken = begin_with(phase, find_start(settings, data))
        return phase

    return build


def supernet_of(base, *prefixes):
    tensors = FinishedSearch.open(base).supernet
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefixes or "")}


def test_all_begins_with_every_weight_and_all_of_them_learn(started, base):
    phase = started("all")
    assert phase.taken == ["encoder", "head"] and same(state(phase), supernet_of(base))
    weights = {name: value.clone() for name, value in phase.model.named_parameters()}
    run(phase, 3)
    moved = [name for name, value in phase.model.named_parameters() if not torch.equal(value, weights[name])]
    assert len(moved) == len(weights)


@pytest.mark.parametrize("order", [1, 2])
def test_head_moves_a_new_head_and_the_alphas_and_no_tensor_of_the_backbone(started, base, order):
    phase = started("head", order=order)
    head, alphas = state(phase, "head."), [values.clone() for values in phase.strategy.alphas.values()]
    assert phase.taken == ["encoder"] and not same(head, supernet_of(base, "head.")), "the head is new"
    run(phase, 3)
    phase.end_epoch(3)
    backbone = supernet_of(base, "encoder.")
    assert same(state(phase, "encoder."), backbone) and any("running_mean" in name for name in backbone)
    assert not any(torch.equal(head[name], value) for name, value in state(phase, "head.").items())
    assert not any(map(torch.equal, alphas, phase.strategy.alphas.values()))


def test_none_moves_the_alphas_alone(started, base):
    phase = started("none")
    alphas = [values.clone() for values in phase.strategy.alphas.values()]
    (values,) = run(phase, 1)
    phase.end_epoch(3)
    assert phase.taken == ["encoder", "head"] and same(state(phase), supernet_of(base))
    assert not any(map(torch.equal, alphas, phase.strategy.alphas.values()))
    assert "alpha_loss" in values and "weight_loss" not in values


def test_the_alphas_on_a_frozen_backbone_have_the_gradient_that_they_have_on_a_free_one(started):
    """The alpha step is independent of what may learn: its gradient is that of the same supernet."""
    frozen, free = started("none"), started("all")
    for phase in (frozen, free):
        phase.settings = phase.settings.model_copy(update={"lr": 1e-30, "lr_min": 0.0, "weight_decay": 0.0})
        phase.optimizer.param_groups[0]["weight_decay"] = 0.0
        run(phase, 1)
    for kind, alphas in frozen.strategy.alphas.items():
        assert torch.equal(alphas, free.strategy.alphas[kind])


def test_a_single_path_over_a_frozen_backbone_trains_the_head_on_its_features(started, base):
    phase = started("head", "strategy.candidates=2", strategy="random")
    head = state(phase, "head.")
    run(phase, 2)
    assert same(state(phase, "encoder."), supernet_of(base, "encoder."))
    assert not any(torch.equal(head[name], value) for name, value in state(phase, "head.").items())


def test_clients_of_a_federated_search_share_the_start_and_leave_the_backbone_as_it_is(base, tiny_digits):
    flags = {"init_from": str(base), "sync": "round", "clients": 2, "local_steps": 1, "batch_size": 16}
    plan = plan_search(settings_of(tiny_digits, **flags, adapt="head"), None)
    _, phase = build_search(plan)
    head = state(phase, "head.")
    run(phase, 2)
    assert same(state(phase, "encoder."), supernet_of(base, "encoder."))
    assert not any(torch.equal(head[name], value) for name, value in state(phase, "head.").items())
    with pytest.raises(UsageError, match="--adapt none: leaves clients no weights to train"):
        plan_search(settings_of(tiny_digits, **flags, adapt="none"), None)


def test_another_number_of_classes_gets_a_new_head_and_none_refuses_it(started, tiny_digits):
    few = Relabelled(tiny_digits, tiny_digits.split("train").labels % 3)
    few.num_classes, few.class_names = 3, ["a", "b", "c"]
    for adapt in ("head", "all"):
        phase = started(adapt, data=few)
        assert phase.taken == ["encoder"] and phase.model.head.weight.shape[0] == 3
        run(phase, 1)
    with pytest.raises(UsageError, match=r"--adapt none: .* has no 'head' for the classes .*: take --adapt head"):
        started("none", data=few)
    others = Relabelled(tiny_digits, tiny_digits.split("train").labels)
    others.class_names = list("abcdefghij")
    with pytest.raises(UsageError, match=r"--adapt none: the head of .* was trained for other classes"):
        started("none", data=others)


def test_a_projector_and_probe_are_new_where_the_start_was_supervised(started, base):
    phase = started("all", loss="barlow")
    assert phase.taken == ["encoder"] and same(state(phase, "encoder."), supernet_of(base, "encoder."))
    run(phase, 1)
    with pytest.raises(UsageError, match="has no 'head'"):
        started("none", loss="barlow")


@pytest.mark.skipif(cells.load() is None, reason="there is no C++ compiler")
def test_the_compiled_kernels_search_over_a_frozen_backbone(started, base):
    """They need no gradient of the weights; the alphas learn what torch makes them learn."""
    fast = started("head", device=Device("cpu", 0, compiled=True), kernels="compiled")
    slow = started("head")
    assert fast.model.encoder.count_compiled()[0] > 0
    start = {kind: alphas.clone() for kind, alphas in slow.strategy.alphas.items()}
    gradients = []
    for phase in (fast, slow):
        run(phase, 1)
        assert same(state(phase, "encoder."), supernet_of(base, "encoder."))
        gradients.append([alphas.grad for alphas in phase.strategy.alphas.values()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert not torch.equal(start["normal"], fast.strategy.alphas["normal"])


@pytest.mark.parametrize("adapt", ["head", "none"])
def test_a_stopped_search_goes_on_bit_equal_and_its_start_is_recorded(base, tiny_digits, tmp_path, adapt):
    flags = {"init_from": str(base), "adapt": adapt}
    result = run_search(settings_of(tiny_digits, **flags), tmp_path / "whole", False)
    with dying_at(SearchPhase, 0, 1):
        run_search(settings_of(tiny_digits, "save_minutes=1e-9", **flags), tmp_path / "run", False)
    run_search(settings_of(tiny_digits, **flags), tmp_path / "run", False)
    ours, theirs = (load_newest(tmp_path / one / "checkpoints").tensors for one in ("run", "whole"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    kept = supernet_of(base, *(["encoder."] if adapt == "head" else []))
    assert all(torch.equal(ours[f"model.{name}"], value) for name, value in kept.items())
    config, provenance = (
        RunFolder.open(tmp_path / "run").config,
        read_genotype(tmp_path / "run/genotype.json").provenance,
    )
    assert result["adapt"] == adapt and config["init"]["source"] == provenance.init_from == str(base.resolve())
    assert config["identity"]["init.sha256"] == config["init"]["sha256"] == provenance.init_sha256
    assert "init_from" not in config["identity"], "where it lies changes nothing"


def test_the_start_is_part_of_the_identity(base, balanced, tiny_digits, tmp_path):
    plain = plan_search(settings_of(tiny_digits), None)
    begun = lambda how, where: plan_search(settings_of(tiny_digits, init_from=str(where), adapt=how), None)
    one, other = begun("head", base), begun("none", base)
    assert len({plain.path, one.path, other.path}) == 3 and not any(key.startswith("init.") for key in plain.identity)
    run_search(settings_of(tiny_digits), tmp_path / "run", False)
    with pytest.raises(OutputExistsError, match=r"differs in .*init.kind \(unset there, supernet here\)"):
        run_search(settings_of(tiny_digits, init_from=str(base)), tmp_path / "run", False)
    run_search(settings_of(balanced, seed=1), tmp_path / "second", False)
    again = begun("head", tmp_path / "second")
    assert again.identity.keys() == one.identity.keys() and again.path != one.path, "other weights are another start"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"channels": 4}, "has channels 2, and this search 4: give --channels 2"),
        ({"layers": 4}, "has layers 3, and this search 4: give --layers 3"),
        ({"stem": "imagenet"}, "has stem cifar, and this search imagenet: give --stem cifar"),
        ({"ops": ("none", "skip_connect")}, "give --set ops=none,max_pool_3x3,skip_connect,sep_conv_3x3"),
        ({"adapt": "none", "order": 2}, "--order 2: looks one step of the weights ahead"),
    ],
)
def test_a_start_that_does_not_fit_is_refused_by_the_name_of_the_setting(base, tiny_digits, tmp_path, flags, words):
    with pytest.raises(UsageError, match=words):
        run_search(settings_of(tiny_digits, **{"init_from": str(base), **flags}), tmp_path / "run", False)
    assert not (tmp_path / "run").exists()


def test_what_is_no_finished_search_is_no_start(base, tiny_digits, tmp_path):
    for where, words in ((tmp_path / "nothing", "no such run folder"), (tiny_digits.path, "a data set, not a run")):
        with pytest.raises(InputError, match=words):
            plan_search(settings_of(tiny_digits, init_from=str(where)), None)
    with pytest.raises(UsageError, match=r"is the search that --init-from names"):
        plan_search(settings_of(tiny_digits, init_from=str(base)), base, force=True)
    with pytest.raises(UsageError, match=r"--adapt: says what learns .*: name one with --init-from"):
        settings_of(tiny_digits, adapt="head")
    colour = Relabelled(tiny_digits, tiny_digits.split("train").labels)
    colour.channels = 3
    with pytest.raises(UsageError, match=r"takes images of 1 channels, and those of .* have 3"):
        find_start(settings_of(tiny_digits, init_from=str(base)).resolve_plugins(), colour)


def test_a_search_that_is_not_done_or_has_no_checkpoint_is_no_start(balanced, tiny_digits, tmp_path, monkeypatch):
    monkeypatch.setattr(SearchPhase, "step", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_search(settings_of(balanced), tmp_path / "run", False)
    with pytest.raises(InputError, match="is running, not done: run its command again"):
        plan_search(settings_of(tiny_digits, init_from=str(tmp_path / "run")), None)
    folder = RunFolder.open(tmp_path / "run")
    folder.write_status("done")
    with pytest.raises(InputError, match="has no checkpoint, so its supernet is gone"):
        plan_search(settings_of(tiny_digits, init_from=str(tmp_path / "run")), None)


def test_a_dry_run_of_a_frozen_supernet_counts_all_of_its_weights(base, tiny_digits, tmp_path, monkeypatch):
    monkeypatch.setattr(dry_run, "MAX_STEPS", 1)
    settings = settings_of(tiny_digits, init_from=str(base), adapt="none")
    facts = dry_run.predict_search(settings, tmp_path / "run", False)
    names = [name for name, _ in build_search(plan_search(settings, None))[1].model.named_parameters()]
    weights = supernet_of(base)
    assert facts["num_params"] == sum(weights[name].numel() for name in names)


def test_weights_that_start_differ_from_those_of_the_seed(started, search, base):
    fresh = search(ops=SHAPE["ops"])
    assert not np.array_equal(state(fresh)["encoder.stem.0.weight"], supernet_of(base)["encoder.stem.0.weight"])
