"""Heads, probe and statistics of a search: what one does to another."""

import numpy as np
import pytest
import torch
from search_support import TINY, run, same, state

from ssfnas_cli.data.augment import to_float
from ssfnas_cli.data.batches import Batch, normaliser
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.probe import train_probe
from ssfnas_cli.engine.search_phase import SearchPhase
from ssfnas_cli.machine import multiplies_bf16
from ssfnas_cli.settings import SearchSettings, load_settings

# What the heads, the probe and the statistics do to each other


def test_a_head_on_detached_features_takes_nothing_of_the_encoders_share_of_the_clipping(search):
    phases = [search(f"alpha_loss.scale={scale}", alpha_loss="barlow", warmup_epochs=1) for scale in (1.0, 1000.0)]
    for phase in phases:
        run(phase, 3)
    one, other = phases
    assert same(state(one, "encoder.", "head."), state(other, "encoder.", "head."))
    assert not same(state(one, "alpha_head."), state(other, "alpha_head."))


def test_a_loss_beside_another_changes_neither_its_views_nor_its_statistics(search):
    alone, beside = search(warmup_epochs=1), search(alpha_loss="barlow", warmup_epochs=1)
    for one, other in zip(alone.batches(0, 0), beside.batches(0, 0), strict=True):
        assert torch.equal(one.weights.views[0], other.weights.views[0]) and len(other.weights.views) == 1
        assert len(other.alpha_head.views) == 2
    run(alone, 3), run(beside, 3)
    assert same(state(alone, "encoder.", "head."), state(beside, "encoder.", "head.")), "running statistics included"


def test_heads_are_shared_only_if_they_would_be_built_equal(search):
    assert search(loss="ce", alpha_loss="ce").model.alpha_head is None
    assert search("alpha_loss.lambda=0.5", loss="barlow", alpha_loss="barlow").model.alpha_head is None
    apart = search("alpha_loss.projector_dim=16", loss="barlow", alpha_loss="barlow").model.alpha_head
    assert apart[0].out_features == 16
    assert search("head=cosine", loss="ce", alpha_loss="ce").model.alpha_head.out_features == 10


def test_rescaling_the_features_changes_nothing_for_the_probe(search):
    """Relaxations differ in the scale of their features; an optimizer on raw ones would rank them by it."""
    scales, phases = (1.0, 100.0), [search(loss="barlow") for _ in range(2)]
    features = torch.randn(64, phases[0].model.encoder.num_features)
    labels = torch.arange(64) % 10
    for phase, scale in zip(phases, scales, strict=True):
        phase.model.train()
        for _ in range(50):
            optimizer, sums = phase.optimizers["probe"], phase.gradient_sums["probe"]
            train_probe(phase.model.probe, optimizer, sums, scale * features, Batch((), labels))
        phase.model.eval()
    one, other = (phase.model.probe(scale * features) for phase, scale in zip(phases, scales, strict=True))
    torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("compiled", [True, False])
def test_the_second_order_is_computed_in_float32_in_a_search_of_bf16(tiny_digits, compiled):
    """Finite differences of bf16 losses are noise: their cosine to the exact ones is 0.6 at best."""
    settings = {**TINY, "order": 2, "ops": ("avg_pool_3x3", "skip_connect", "dil_conv_3x3")}
    gradients = []
    for precision in ("fp32", "bf16"):
        resolved = load_settings(SearchSettings, flags={**settings, "precision": precision}).resolve_plugins()
        phase = SearchPhase(resolved, tiny_digits, Device("cpu", 0, precision, compiled))
        run(phase, 1)
        gradients.append(torch.cat([a.grad.flatten() for a in phase.strategy.alphas.values()]))
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.9999


@pytest.mark.skipif(not multiplies_bf16(), reason="this processor does not multiply bf16")
def test_a_search_in_bf16_by_the_kernels_is_resumed_bit_equal_with_any_number_of_threads(tiny_digits):
    flags = {**TINY, "ops": ("avg_pool_3x3", "sep_conv_3x3"), "precision": "bf16"}
    settings = load_settings(SearchSettings, flags=flags).resolve_plugins()
    whole, first, second = (SearchPhase(settings, tiny_digits, Device("cpu", 1, "bf16", True)) for _ in range(3))
    run(whole, 3)
    run(first, 2)
    second.load({name: tensor.detach().clone() for name, tensor in first.tensors().items()})
    torch.set_num_threads(2)
    run(second, 1, start=2)
    torch.set_num_threads(1)
    ours, theirs = whole.strategy.alphas, second.strategy.alphas
    assert all(torch.equal(ours[kind], theirs[kind]) for kind in ours)


def test_a_loss_is_computed_in_float32_in_a_search_of_bf16(tiny_digits, monkeypatch):
    """Barlow Twins's correlations among them."""
    resolved = load_settings(SearchSettings, flags={**TINY, "loss": "barlow", "precision": "bf16"}).resolve_plugins()
    phase, seen = SearchPhase(resolved, tiny_digits, Device("cpu", 0, "bf16")), []
    original = type(phase.weight_loss).loss

    def spy(self, outputs, labels, progress):
        seen.append((outputs[0] @ outputs[1].T).dtype)
        return original(self, outputs, labels, progress)

    monkeypatch.setattr(type(phase.weight_loss), "loss", spy)
    run(phase, 1)
    assert len(seen) == 2 and set(seen) == {torch.float32}


def test_statistics_are_estimated_on_the_weight_half_before_the_supernet_is_evaluated(search):
    phase = search("statistics_batches=3")
    run(phase, 2)
    norm = phase.model.encoder.stem[1]
    before = {name: value.clone() for name, value in norm.named_buffers()}
    order = np.random.Generator(np.random.Philox(key=[phase.seed, 3])).permutation(len(phase.halves[0]))
    parts = np.array_split(order, -(-len(order) // 16))[:3]
    normal = normaliser(phase.data)
    maps = [phase.model.encoder.stem[0](normal(to_float(phase.split.rows(phase.halves[0][part])))) for part in parts]
    means = torch.stack([m.mean(dim=(0, 2, 3)) for m in maps])
    with phase.estimated_statistics(phase.strategy.mixing(0.0)):
        torch.testing.assert_close(norm.running_mean, means.mean(0), rtol=1e-4, atol=1e-5)
        assert not torch.equal(norm.running_mean, before["running_mean"])
    assert all(torch.equal(value, before[name]) for name, value in norm.named_buffers())
    assert norm.momentum == 0.1 and phase.model.training


def test_in_the_first_steps_estimated_statistics_see_what_has_been_learned(search):
    phase = search("lr=0.1")
    for epoch in range(3):
        run(phase, 100, epoch)
    mixing, rows = phase.strategy.mixing(0.5), phase.halves[1]
    lagging = phase.accuracy(phase.split, rows, mixing)
    with phase.estimated_statistics(mixing):
        assert phase.accuracy(phase.split, rows, mixing) >= lagging


def test_a_stop_while_the_loader_brings_no_batch_saves_the_steps_so_far(search, tmp_path, monkeypatch):
    from ssfnas_cli import stop
    from ssfnas_cli.artifacts.checkpoint import load_newest
    from ssfnas_cli.artifacts.claim import open_for_writing
    from ssfnas_cli.engine.loop import Loop
    from ssfnas_cli.errors import Stopped

    phase = search()
    whole = phase.batches

    def hanging(epoch, start):
        yield from list(whole(epoch, start))[:2]
        monkeypatch.setattr(stop, "requested_by", lambda max_time: "SIGTERM")
        raise Stopped("the loader was waiting")

    monkeypatch.setattr(phase, "batches", hanging)
    config = {"settings": {}, "data": {"path": "x", "sha256": "x"}, "environment": {}}
    with (
        open_for_writing(tmp_path / "run", "search", config, {"seed": 0}) as run,
        pytest.raises(Stopped, match="saved in"),
    ):
        Loop(run, phase.settings).run_phase(0, phase)
    assert load_newest(tmp_path / "run" / "checkpoints").state["step"] == 2
