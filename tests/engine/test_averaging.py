"""The moving average of the weights against a float64 recursion."""

import numpy as np
import pytest
import torch
from torch import nn

from registry.norm import BatchNorm
from ssfnas_cli.engine.averaging import MovingAverage


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), BatchNorm(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))


def wander(model, steps, average):
    """Random steps of the weights and statistics, and the states after each."""
    states = []
    for step in range(steps):
        torch.manual_seed(step)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight))
        model.train()(torch.randn(8, 1, 4, 4))
        average.update(model)
        states.append({name: value.double().numpy().copy() for name, value in model.state_dict().items()})
    return states


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.9999])
def test_the_average_is_the_recursion_with_a_decay_that_rises_to_the_settings(decay):
    model = network()
    average = MovingAverage(model, decay)
    states = wander(model, 120, average)
    expected = states[0]
    for t, state in enumerate(states[1:], start=1):
        d = min(decay, (1 + t) / (10 + t))
        expected = {name: d * expected[name] + (1 - d) * state[name] for name in state}
    for name, value in average.values.items():
        if name.endswith("num_batches_tracked"):
            assert value == 120, "a count is copied"
        else:
            np.testing.assert_allclose(value.double().numpy(), expected[name], rtol=1e-4, atol=1e-4)
    assert int(average.num_updates) == 120
    assert any("running_mean" in name for name in average.values), "statistics are averaged, too"


def test_the_weights_before_the_first_step_have_no_part_in_it():
    model = network()
    average = MovingAverage(model, 0.999)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1)
    average.update(model)
    assert all(torch.equal(average.values[name], value) for name, value in model.state_dict().items())


def test_an_applied_average_is_what_is_computed_with_and_the_weights_come_back_bit_for_bit():
    model = network()
    average = MovingAverage(model, 0.9)
    wander(model, 5, average)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    places = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    twin = network()
    twin.load_state_dict(average.values)
    images = torch.randn(3, 1, 4, 4)
    with pytest.raises(KeyboardInterrupt), average.applied(model):
        assert torch.equal(model.eval()(images), twin.eval()(images))
        assert not torch.equal(model[0].weight, before["0.weight"])
        raise KeyboardInterrupt
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert places == {name: weight.data_ptr() for name, weight in model.named_parameters()}


def test_it_is_saved_and_taken_back():
    model = network()
    whole, part = MovingAverage(model, 0.9), MovingAverage(model, 0.9)
    wander(model, 4, whole)
    assert set(whole.tensors()) == {f"ema.{name}" for name in model.state_dict()} | {"ema_updates"}
    part.load({name: tensor.clone() for name, tensor in whole.tensors().items()})
    with torch.no_grad():
        model[0].weight.add_(1)
    whole.update(model)
    assert not torch.equal(part.values["0.weight"], whole.values["0.weight"])
    part.update(model)
    assert all(torch.equal(tensor, part.tensors()[name]) for name, tensor in whole.tensors().items())
