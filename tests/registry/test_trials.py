"""Mistakes in plugins of other packages are told in one line, before anything is computed with them."""

import numpy as np
import pytest
import torch
from torch import nn

from registry.core import Options, Plugin, PluginError
from registry.networks import Encoded
from registry.samplers import Instance
from registry.trials import build_op, order_of, try_features, try_scores


class Works(nn.Module):
    """What the mistaken ones are made from: at stride 2 it halves both sides upwards."""

    def __init__(self, stride=1, change=lambda x: x):
        super().__init__()
        self.norm, self.pool, self.change = nn.BatchNorm2d(4), nn.MaxPool2d(1, stride), change

    def forward(self, x):
        return self.change(self.norm(self.pool(x)))


def plugin(factory, origin="mine 0.1"):
    return Plugin("op", factory, Options, None, origin)


def build(factory, stride=1, origin="mine 0.1"):
    return build_op(plugin(factory, origin), 4, stride, False, Options())


@pytest.mark.parametrize("stride", [1, 2])
def test_a_sound_op_is_given_back_as_it_was_made(stride):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    op = build(lambda channels, stride, affine, options: Works(stride), stride)
    assert torch.equal(torch.get_rng_state(), before) and op.training and op.norm.num_batches_tracked == 0


@pytest.mark.parametrize(
    ("factory", "told"),
    [
        (
            lambda channels, stride: nn.Identity(),
            r"'op' of mine 0.1 cannot be made: TypeError: .*[(].*, line",
        ),
        (lambda *_: None, "gives no torch.nn.Module: None"),
        (lambda *_: Works(change=lambda x: None), "gives no tensor at stride 1 .*: NoneType"),
        (lambda *_: Works(change=lambda x: (x, x)), "gives no tensor at stride 1 .*: tuple"),
        (
            lambda *_: Works(change=lambda x: x.mean((2, 3), keepdim=True)),
            r"gives \[2, 4, 1, 1\] .* should give \[2, 4, 8",
        ),
        (lambda *_: Works(change=lambda x: x[:1]), r"gives \[1, 4, 8, 8\]"),
        (lambda *_: Works(change=lambda x: x[:, :1]), r"gives \[2, 1, 8, 8\]"),
        (lambda *_: Works(change=lambda x: x.double()), "gives torch.float64 .* of torch.float32: it should keep"),
        (
            lambda *_: Works(change=lambda x: x @ x.new_ones(3, 3)),
            r"fails on \[2, 4, 8, 8\]: RuntimeError: .*test_trials.py, line",
        ),
        (lambda *_: nn.ReLU(inplace=True), "changes its input"),
    ],
)
def test_a_mistaken_op_is_told(factory, told):
    with pytest.raises(PluginError, match=told) as caught:
        build(factory)
    assert "mine 0.1" in str(caught.value)


def test_an_op_that_keeps_the_size_at_stride_2_is_told():
    with pytest.raises(PluginError, match=r"gives \[2, 4, 8, 8\] at stride 2 .* should give \[2, 4, 4, 4\]"):
        build(lambda *_: Works(), 2)


def test_ops_are_built_on_the_meta_device_and_built_in_ones_are_not_tried():
    with torch.device("meta"):
        assert build(lambda *_: Works()).norm.weight.is_meta
    assert isinstance(build(lambda *_: nn.ReLU(inplace=True), origin="builtin"), nn.ReLU)


def test_a_head_of_another_number_of_classes_is_told():
    try_scores(plugin(None), nn.Linear(6, 3), 6, 3)
    with pytest.raises(PluginError, match=r"gives \[2, 6\] for features \[2, 6\]: it should give \[2, 3\]"):
        try_scores(plugin(None), nn.Linear(6, 6), 6, 3)
    with pytest.raises(PluginError, match="fails on"):
        try_scores(plugin(None), nn.Linear(5, 3), 6, 3)


def test_a_network_of_another_number_of_features_is_told():
    class Network(nn.Module):
        num_features = 6

        def __init__(self, num_features):
            super().__init__()
            self.last = nn.Linear(3, num_features)

        def forward(self, images):
            return Encoded(self.last(images.mean((2, 3))), images)

    try_features(plugin(None), Network(6), 3, 5)
    with pytest.raises(PluginError, match=r"gives \[2, 7\] as features of images .*: it should give \[2, 6\]"):
        try_features(plugin(None), Network(7), 3, 5)


@pytest.mark.parametrize(
    ("order", "told"),
    [
        ([0], r"its order has the shape \[1\], and its length is 3"),
        ([0, 1, 3], "positions from 0 to 2, as whole numbers"),
        ([-1, 0, 1], "positions from 0 to 2"),
        ([0.0, 1.0, 2.0], "as whole numbers"),
        ([[0, 1, 2]], r"shape \[1, 3\]"),
    ],
)
def test_an_order_of_another_length_or_of_no_positions_is_told(order, told):
    class Mistaken(Instance):
        def order(self, labels, seed, epoch, progress):
            return np.array(order)

    labels = np.array([0, 0, 1])
    assert sorted(order_of(Instance(Options(), [2, 1]), labels, 0, 0, 0.0)) == [0, 1, 2]
    with pytest.raises(PluginError, match=f"sampler 'Mistaken': .*{told}"):
        order_of(Mistaken(Options(), [2, 1]), labels, 0, 0, 0.0)
