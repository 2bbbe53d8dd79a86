"""What evaluates a network gives the network's logits, whichever way they are computed."""

import copy

import pytest
import torch
from torch import nn

from ssfnas_cli.machine import multiplies_bf16
from ssfnas_cli.nets.evaluation import BATCHES_BEFORE, Evaluated
from ssfnas_cli.nets.heads import Classifier
from ssfnas_cli.nets.program import ADDITION, CONVOLUTION, aten, record
from tests.nets.trained_networks import network


def images_of(seed, num=8, size=24):
    images = torch.randn(num, 3, size, size, generator=torch.Generator().manual_seed(seed))
    return images.to(memory_format=torch.channels_last)


def functions(program):
    return [one.function for one in program.operations]


def warmed(model, reduced=False):
    """What evaluates the model, when it has seen so many batches that it has recorded its operations."""
    evaluated = Evaluated(model.to(memory_format=torch.channels_last), images_of(0)[:2], reduced)
    for _ in range(BATCHES_BEFORE + 1):
        evaluated(images_of(0))
    return evaluated


@pytest.mark.parametrize("name", ["resnet20", "every op", "mobilenet_v2"])
def test_a_program_gives_the_networks_logits(name):
    model = network(name)
    evaluated = warmed(model)
    (program,) = evaluated._programs.values()
    assert program is not None and functions(program).count(CONVOLUTION) > 4
    assert aten.convolution.default not in functions(program), "every convolution has its weight in oneDNN's layout"
    for number in (1, 2):
        wanted = copy.deepcopy(model).double()(images_of(number).double())
        assert (evaluated(images_of(number)) - wanted).abs().max() <= 3e-5 * wanted.abs().max()
    wanted = copy.deepcopy(model).double()(images_of(3, num=5).double())
    assert (evaluated(images_of(3, num=5)) - wanted).abs().max() <= 3e-5 * wanted.abs().max(), "another shape"


@pytest.mark.skipif(not multiplies_bf16(), reason="this processor does not multiply bf16")
@pytest.mark.parametrize("name", ["resnet20", "every op"])
def test_bf16_is_as_near_as_its_digits_allow(name):
    model = network(name)
    evaluated = warmed(model, reduced=True)
    assert None not in evaluated._programs.values()
    wanted = copy.deepcopy(model).double()(images_of(1).double())
    by_modules = Evaluated(model, images_of(0)[:2], reduced=True)(images_of(1))
    by_program = evaluated(images_of(1))
    assert by_program.dtype == by_modules.dtype == torch.float32
    errors = [(found - wanted).abs().max() / wanted.abs().max() for found in (by_program, by_modules)]
    assert 1e-4 < errors[0] < 2 * errors[1] < 0.4, "random weights are worse than trained ones"
    assert next(model.parameters()).dtype == torch.float32, "the network itself stays as it was"


def test_residual_blocks_add_in_the_memory_of_the_shortcut():
    (program,) = warmed(network("resnet20"))._programs.values()
    assert functions(program).count(ADDITION) == 9
    assert aten.relu.default not in functions(program)[1:], "each is computed with what it follows"


class Tangle(nn.Module):
    """Maps that are read several times, in place and not, before and after they are added."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x):
        first = self.a(x)
        rectified = torch.relu(first)
        second = self.b(rectified)
        both = second + first  # `first` is read again
        again = self.b(torch.relu(first)) + rectified
        again = torch.relu_(again)
        third = self.b(both)
        third += again
        return (third * first + both).mean(dim=(2, 3))


def test_maps_that_are_read_again_are_not_overwritten():
    torch.manual_seed(0)
    net, images = Tangle().eval(), images_of(4)
    program = record(net, images_of(5))
    assert ADDITION in functions(program)
    assert functions(program).count(aten.relu.default) + functions(program).count(CONVOLUTION) <= 4
    with torch.no_grad():
        assert torch.allclose(program(images), net(images), rtol=1e-5, atol=1e-6)


class Deciding(nn.Module):
    """A network whose operations depend on its images."""

    def forward(self, x):
        return x.mean(dim=(2, 3)) if x.sum() > 0 else x.amax(dim=(2, 3))


class Random(nn.Module):
    """A network that draws."""

    def forward(self, x):
        return (x + torch.rand_like(x)).mean(dim=(2, 3))


@pytest.mark.parametrize("net", [Deciding(), Random()])
def test_a_network_that_is_no_list_of_operations_is_not_recorded(net):
    assert record(net, images_of(0)) is None


def test_a_network_of_the_compiled_kernels_stays_as_it_is(monkeypatch):
    model = network("every op")
    monkeypatch.setattr(type(model.encoder), "count_compiled", lambda self: (3, 4))
    evaluated = warmed(model)
    assert evaluated.network is model and not evaluated._programs and isinstance(model, Classifier)
