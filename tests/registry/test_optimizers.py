"""SGD and Adam, held against torch's, bit for bit."""

import copy

import pytest
import torch

from registry.optimizers import SGD, Adam
from registry.state import load_optimizer, optimizer_tensors

SHAPES = [(3, 5), (40, 1, 5, 5), (17,), (33, 33, 1, 1), ()]
SGDS = [
    {"momentum": 0.9, "weight_decay": 3e-4},
    {"momentum": 0.9, "weight_decay": 3e-4, "nesterov": True},
    {"momentum": 0.9},
    {"weight_decay": 0.1},
    {},
]
CASES = [(SGD, torch.optim.SGD, options) for options in SGDS]
CASES += [
    (Adam, torch.optim.Adam, {"betas": (0.5, 0.999), "weight_decay": 1e-3}),
    (Adam, torch.optim.Adam, {}),
]


def weights():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in SHAPES]


def take_steps(optimizer, tensors, numbers):
    """Steps with gradients that depend on their numbers. The third weight has none in the first step."""
    for number in numbers:
        optimizer.param_groups[0]["lr"] = 0.05 / (1 + number)
        for place, tensor in enumerate(tensors):
            generator = torch.Generator().manual_seed(100 * number + place)
            gradient = torch.randn(tensor.shape, generator=generator)
            tensor.grad = None if (number, place) == (0, 2) else gradient
        optimizer.step()


@pytest.mark.parametrize(("ours", "torchs", "options"), CASES)
def test_steps_are_those_of_torch_bit_for_bit(ours, torchs, options):
    mine, theirs = weights(), weights()
    take_steps(ours(mine, lr=0.05, **options), mine, range(4))
    take_steps(torchs(theirs, lr=0.05, **options), theirs, range(4))
    assert all(torch.equal(one, other) for one, other in zip(mine, theirs, strict=True))


@pytest.mark.parametrize(("ours", "torchs", "options"), CASES)
def test_a_checkpoint_of_torchs_optimizer_is_gone_on_with_bit_for_bit(ours, torchs, options):
    theirs = weights()
    first = torchs(theirs, lr=0.05, **options)
    take_steps(first, theirs, range(2))
    saved = {name: value.clone() for name, value in optimizer_tensors("at", first).items()}
    mine = [weight.detach().clone().requires_grad_() for weight in theirs]
    second = ours(mine, lr=0.05, **options)
    load_optimizer("at", second, saved)
    assert optimizer_tensors("at", second).keys() == saved.keys()
    take_steps(first, theirs, range(2, 4))
    take_steps(second, mine, range(2, 4))
    assert all(torch.equal(one, other) for one, other in zip(mine, theirs, strict=True))
    for name, value in optimizer_tensors("at", first).items():
        assert torch.equal(optimizer_tensors("at", second)[name], value)


def test_groups_have_options_of_their_own():
    mine, theirs = weights(), weights()
    for optimizer, tensors in ((SGD, mine), (torch.optim.SGD, theirs)):
        groups = [{"params": tensors[:2], "weight_decay": 0.1}, {"params": tensors[2:], "weight_decay": 0.0}]
        take_steps(optimizer(groups, 0.05, momentum=0.9), tensors, range(3))
    assert all(torch.equal(one, other) for one, other in zip(mine, theirs, strict=True))


def test_no_weights_at_all_take_no_step_and_the_state_of_others_is_refused():
    empty, some = SGD([{"params": []}], 0.1, momentum=0.9), SGD(weights(), 0.1)
    empty.step()
    assert optimizer_tensors("at", empty) == {}
    with pytest.raises(ValueError, match="other weights"):
        empty.load_state_dict(some.state_dict())
    beyond = copy.deepcopy(some.state_dict()) | {"state": {len(SHAPES): {}}}
    with pytest.raises(ValueError, match="other weights"):
        some.load_state_dict(beyond)


def test_gradients_are_forgotten_or_set_to_zeros():
    tensors = weights()
    optimizer = SGD(tensors, 0.1)
    tensors[0].grad = torch.ones(3, 5)
    optimizer.zero_grad(set_to_none=False)
    assert not tensors[0].grad.any() and tensors[1].grad is None
    optimizer.zero_grad()
    assert tensors[0].grad is None
