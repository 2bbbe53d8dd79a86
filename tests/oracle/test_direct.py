"""The oracle against published counts and exact derivatives, and the product's whole steps against the oracle's."""

import functools
import json
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from torch import nn

from registry import LOSSES, OPS
from ssfnas_cli.artifacts.genotype import Genotype
from ssfnas_cli.data.batches import Batch, SearchBatch
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.loop import cosine
from ssfnas_cli.engine.network import make_card
from ssfnas_cli.engine.retrain import build_phases
from ssfnas_cli.engine.search_phase import SearchPhase
from ssfnas_cli.native import cells
from ssfnas_cli.nets.search_model import SearchModel
from ssfnas_cli.nets.supernet import Supernet
from ssfnas_cli.settings import PAPER_OPS, RetrainSettings, SearchSettings, load_settings
from tests.oracle import direct, steps

GOLDEN = Path(__file__).parents[1] / "golden"
CPU = Device("cpu", 0)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distance(got, expected):
    """Relative, by the norm of all tensors together."""
    flat = lambda tensors: torch.cat([tensors[name].detach().double().flatten() for name in sorted(expected)])
    return float((flat(got) - flat(expected)).norm() / flat(expected).norm())


def plans(genotype):
    return {
        kind: ([(edge.op, edge.source, edge.target) for edge in cell.edges], cell.concat)
        for kind, cell in genotype.cells().items()
    }


def golden(name):
    facts = json.loads((GOLDEN / f"{name}.json").read_text())
    return Genotype.model_validate(facts["genotype"]), facts


# The oracle by itself


def test_the_supernet_has_the_published_number_of_weights():
    """1,930,618 at C=16, 8 cells, 10 classes, as the public code of DARTS counts."""
    net = direct.Supernet(3, 16, 8, PAPER_OPS)
    head = nn.Linear(net.num_features, 10)
    assert sum(value.numel() for part in (net, head) for value in part.parameters()) == 1_930_618


@pytest.mark.parametrize("name", ["darts_v2", "fairdarts_a", "pdarts", "amoebanet"])
def test_a_derived_network_has_the_published_number_of_weights(name):
    genotype, facts = golden(name)
    net = direct.Classifier(plans(genotype), genotype.drop_path, 3, facts["channels"], facts["layers"], 10)
    counts = {part: sum(p.numel() for p in module.parameters()) for part, module in net.named_children()}
    assert sum(counts.values()) == facts["num_params_with_aux"]
    assert sum(counts.values()) - counts["aux"] == facts["num_params"]


def test_on_large_images_a_derived_network_has_the_published_number_of_weights():
    """DARTS_V2 at C=48, 14 cells and 1,000 classes, with the auxiliary head, as the public code of DARTS counts."""
    genotype, _ = golden("darts_v2")
    with torch.device("meta"):
        net = direct.Classifier(plans(genotype), genotype.drop_path, 3, 48, 14, 1000, large=True)
    assert sum(value.numel() for value in net.parameters()) == 5_979_528


class Loss(nn.Module):
    """A search model whose `forward` is its loss."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch, mixing):
        return self.model.loss(batch.views, batch.labels, mixing)


def test_the_second_order_gradient_is_that_of_autograd_through_the_step():
    """With a radius small enough that the network, bent as it is, is straight over it."""
    torch.manual_seed(0)
    net = direct.Supernet(1, 2, 3, ("skip_connect", "avg_pool_3x3", "dil_conv_3x3"))
    model = direct.SearchModel(net, nn.Linear(net.num_features, 3)).double()
    alphas = {kind: draw(14, 3, seed=seed).requires_grad_() for seed, kind in enumerate(("normal", "reduce"))}
    search = steps.DirectSearch(model, alphas, "softmax", order=2, radius=1e-5)
    train, val = [steps.Batch([draw(9, 1, 6, 6, seed=seed)], torch.arange(9) % 3) for seed in (5, 6)]
    search.step(train, val, 0.02)  # so that there is momentum
    lr, call, mixing = 0.05, Loss(model), search.mixing()
    weights = dict(call.named_parameters())
    moved = {}
    gradients = torch.autograd.grad(call(train, mixing), list(weights.values()), create_graph=True)
    for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
        velocity = search.optimizer.state[weight]["momentum_buffer"]
        moved[name] = weight - lr * (0.9 * velocity + gradient + 3e-4 * weight)
    loss = torch.func.functional_call(call, moved, (val, mixing))
    exact = dict(zip(alphas, torch.autograd.grad(loss, list(alphas.values())), strict=True))
    assert search._second_order(train, val, lr) == pytest.approx(loss.item(), rel=1e-12)
    got = {kind: values.grad.clone() for kind, values in alphas.items()}
    search.order = 1
    search._first_order(val)
    first = {kind: values.grad for kind, values in alphas.items()}
    error, without = distance(got, exact), distance(first, exact)
    assert error < 1e-3 and without > 0.1, (error, without)


# The product against it


def batch(seed, num_views=1):
    """Grey 8x8 images of 10 classes."""
    return Batch(tuple(draw(16, 1, 8, 8, seed=seed + 50 * view) for view in range(num_views)), torch.arange(16) % 10)


def objective(name):
    plugin = LOSSES.get(name)
    return plugin.factory(plugin.parse_options(), num_classes=3, class_counts=[5, 4, 3])


@pytest.mark.parametrize("loss", ["ce", "barlow"])
def test_loss_and_gradients_of_the_products_supernet(loss):
    torch.manual_seed(0)
    ops = (*PAPER_OPS, "sep_conv_7x7", "conv_7x1_1x7")
    net = SearchModel(Supernet(3, 2, 4, ops), 3, objective(loss)).double()
    views = [draw(5, 3, 9, 9, seed=seed) for seed in range(1 if loss == "ce" else 2)]
    labels = torch.tensor([0, 1, 2, 0, 1])
    mixing = {kind: torch.rand(14, len(ops), dtype=torch.float64).requires_grad_() for kind in ("normal", "reduce")}
    value, expected = direct.direct_gradients(net.state_dict(), ops, views, labels, mixing)
    mine = objective(loss).loss([net.head(net.encoder(view, mixing)) for view in views], labels)
    mine.backward()
    torch.testing.assert_close(mine.detach(), value, rtol=1e-10, atol=0)
    got = {name: p.grad for name, p in net.named_parameters() if not name.startswith("probe.")}
    got |= {f"mixing.{kind}": weights.grad for kind, weights in mixing.items()}
    assert got.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-7, atol=1e-11, msg=name)


@functools.cache
def small_net(seed):
    """Weights, images, labels and mixing weights by a seed, and the oracle's gradients in float64 and float32."""
    torch.manual_seed(seed)
    net = SearchModel(Supernet(3, 16, 3, PAPER_OPS), 3, objective("ce"))
    images, labels = draw(4, 3, 12, 12, seed=seed).float(), torch.arange(4) % 3
    mixing = {kind: torch.rand(14, 8).requires_grad_() for kind in ("normal", "reduce")}
    arguments = net.state_dict(), PAPER_OPS, [images], labels, mixing
    exact, single = direct.direct_gradients(*arguments, torch.float64)[1], direct.direct_gradients(*arguments)[1]
    return net.state_dict(), images, labels, mixing, exact, single


@pytest.mark.parametrize(("path", "times"), [("compiled", 2), ("torch", 6)])
def test_in_float32_every_gradient_is_about_as_far_from_float64_as_the_direct_one(path, times):
    """In each tensor's best draw: in others a side takes the other of a pool's or a ReLU's nearly equal values.

    torch's own BN adds up channels-last maps pixel by pixel, in float32, which costs its path some of the last digits.
    """
    kernels = cells.load() if path == "compiled" else None
    if path == "compiled" and kernels is None:
        pytest.skip("no C++ compiler")
    mine, direct_ones = defaultdict(list), defaultdict(list)
    for seed in range(4):
        weights, images, labels, mixing, exact, single = small_net(seed)
        net = SearchModel(Supernet(3, 16, 3, PAPER_OPS), 3, objective("ce"))
        net.load_state_dict(weights)
        net.encoder.compile_with(kernels)
        net.to(memory_format=torch.channels_last)
        loss = objective("ce").loss([net.head(net.encoder(images, mixing))], labels)
        named = {name: p for name, p in net.named_parameters() if name in exact}
        named |= {f"mixing.{kind}": weights for kind, weights in mixing.items()}
        for name, gradient in zip(named, torch.autograd.grad(loss, list(named.values())), strict=True):
            for where, found in ((mine, gradient), (direct_ones, single[name])):
                where[name].append(distance({name: found}, {name: exact[name]}))
    assert mine.keys() == exact.keys()
    ratios = {name: min(mine[name]) / min(direct_ones[name]) for name in mine}
    assert max(ratios.values()) <= times, sorted(ratios.items(), key=lambda item: -item[1])[:5]


def test_float32_weights_can_be_judged_in_float64():
    torch.manual_seed(0)
    net = SearchModel(Supernet(3, 2, 3, PAPER_OPS), 3, objective("ce"))
    mixing = {kind: torch.full((14, 8), 0.5) for kind in ("normal", "reduce")}
    views, labels = [draw(4, 3, 8, 8).float()], torch.tensor([0, 1, 2, 0])
    exact = direct.direct_gradients(net.state_dict(), PAPER_OPS, views, labels, mixing, torch.float64)[1]
    single = direct.direct_gradients(net.state_dict(), PAPER_OPS, views, labels, mixing)[1]
    assert {value.dtype for value in single.values()} == {torch.float32}
    assert {value.dtype for value in exact.values()} == {torch.float64}
    assert 0 < distance(single, exact) < 1e-4


def test_an_op_the_oracle_does_not_know_can_be_given():
    torch.manual_seed(0)
    net = SearchModel(Supernet(3, 2, 3, ("skip_connect", "dil_conv_3x3")), 3, objective("ce"))
    plugin = OPS.get("dil_conv_3x3")
    build = lambda channels, stride, affine: plugin.factory(channels, stride, affine, plugin.parse_options())
    views, labels = [draw(4, 3, 8, 8).float()], torch.tensor([0, 1, 2, 0])
    mixing = {kind: torch.full((14, 2), 0.5) for kind in ("normal", "reduce")}
    one = direct.direct_gradients(
        net.state_dict(), ("skip_connect", "mine"), views, labels, mixing, more_ops={"mine": build}
    )[1]
    other = direct.direct_gradients(net.state_dict(), ("skip_connect", "dil_conv_3x3"), views, labels, mixing)[1]
    assert distance(one, other) < 1e-5


@pytest.mark.parametrize(
    ("relax", "loss", "order"),
    [
        ("softmax", "ce", 1),
        ("softmax", "ce", 2),
        ("sigmoid", "ce", 1),
        ("sigmoid", "barlow", 1),
        ("softmax", "barlow", 2),
    ],
)
def test_the_products_search_steps(tiny_digits, monkeypatch, relax, loss, order):
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # the product takes its losses in float32
    ops = ("none", "max_pool_3x3", "skip_connect", "dil_conv_5x5")
    if order == 1:  # the second order takes several times as long, and is the same for every op
        ops += ("avg_pool_3x3", "sep_conv_3x3")
    flags = {"channels": 2, "layers": 3, "batch_size": 16, "epochs": 4, "ops": ops}
    flags |= {"relax": relax, "loss": loss, "order": order}
    settings = load_settings(SearchSettings, sets=["relax.init_std=0.1"], flags=flags).resolve_plugins()
    phase = SearchPhase(settings, tiny_digits, CPU)
    phase.model.double()
    for values in phase.strategy.alphas.values():
        values.data = values.data.double()
    model = direct.search_model(phase.model.state_dict(), settings.ops)
    alphas = {kind: values.detach().clone().requires_grad_() for kind, values in phase.strategy.alphas.items()}
    adam = phase.strategy.optimizer.param_groups[0]
    search = steps.DirectSearch(model, alphas, relax, order, adam["lr"], adam["betas"])
    for step in range(2):
        train, val = [batch(3 * step + half, num_views=2 if loss == "barlow" else 1) for half in range(2)]
        got = phase.step(0, step, SearchBatch(train, val, None))
        expected = search.step(train, val, cosine(0.025, 0.001, step / phase.num_steps(0) / 4))
        assert {key: got[key] for key in expected} == pytest.approx(expected, rel=1e-9)
    start = {kind: values[0] for kind, values in phase.strategy.history.items()}
    assert distance(phase.strategy.alphas, alphas) < 1e-6 * distance(start, alphas)
    mine = {direct.product_name(name): value for name, value in model.named_parameters()}
    assert distance(dict(phase.model.named_parameters()), mine) < 1e-9


@pytest.mark.parametrize("name", ["darts_v2", "fairdarts_a"])
def test_the_products_training_steps(tiny_digits, name):
    genotype, _ = golden(name)
    flags = {"channels": 4, "layers": 3, "batch_size": 16, "epochs": 4, "drop_path": 0.4}
    settings = load_settings(RetrainSettings, flags=flags).resolve_plugins()
    (phase,), net = build_phases(make_card(genotype, settings, tiny_digits), settings, tiny_digits, CPU)
    net.double()
    model = direct.Classifier(plans(genotype), genotype.drop_path, 1, 4, 3, 10).double()
    direct.load_product(model, net.state_dict())
    training = steps.DirectTraining(model)
    for step in range(2):
        (images,), labels = batch(step)[:2]
        torch.manual_seed(step)
        got = phase.step(2, step, Batch((images,), labels))
        torch.manual_seed(step)
        lr = cosine(0.025, 0.001, (2 + step / phase.num_steps(2)) / 4)
        assert got["loss"] == pytest.approx(training.step(images, labels, lr, 0.2), rel=1e-6)
    mine = {direct.product_name(key): value for key, value in model.state_dict().items()}
    assert distance(net.state_dict(), mine) < 1e-6
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(images), model.eval()(images))


def test_dead_nodes_are_left_out():
    cell = ([("skip_connect", 0, 2), ("sep_conv_3x3", 3, 4), ("skip_connect", 4, 5), ("none", 1, 3)], (2, 3, 4, 5))
    net = direct.Classifier({"normal": cell, "reduce": cell}, "op", 3, 4, 5, 3)
    assert all(len(layer.ops) == 1 and layer.concat == [2] for layer in net.encoder.cells)
    assert net(torch.randn(2, 3, 8, 8)).shape == (2, 3)
