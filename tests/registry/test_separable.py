import pytest
import torch
import torch.nn.functional as F
from torch import nn

from registry.separable import SeparableConvs, depthwise_conv, separable

KERNELS = [(3, 1), (5, 1), (7, 1), (3, 2), (5, 2), (7, 2), (3, 3)]
CHANNELS = 4


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def convolutions(kernel, dilation, stride):
    torch.manual_seed(kernel)
    return depthwise_conv(CHANNELS, kernel, stride, dilation), nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False)


def results(run, x, depthwise, pointwise):
    """Output and gradients."""
    x = x.detach().requires_grad_()
    out = run(x)
    push = draw(*out.shape, seed=5).to(x.dtype)
    return [out, *torch.autograd.grad((out * push).sum(), [x, depthwise.weight, pointwise.weight])]


def both(x, depthwise, pointwise):
    ours = results(lambda x: separable(x, depthwise, pointwise), x, depthwise, pointwise)
    return ours, results(lambda x: pointwise(depthwise(x)), x, depthwise, pointwise)


@pytest.mark.parametrize("sides", [(8, 8), (7, 10), (5, 5), (2, 1), (16, 9)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel", "dilation"), KERNELS)
def test_gradients_are_those_of_the_two_convolutions(kernel, dilation, stride, sides):
    pair = [module.double() for module in convolutions(kernel, dilation, stride)]
    x = draw(3, CHANNELS, *sides).contiguous(memory_format=torch.channels_last)
    for one, other in zip(*both(x, *pair), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel", "dilation"), KERNELS)
def test_in_float32_they_are_about_as_far_from_float64_as_the_library_is(kernel, dilation, stride, channels_last):
    pair = convolutions(kernel, dilation, stride)
    x = draw(3, CHANNELS, 12, 11).float()
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    ours, library = both(x, *pair)
    _, exact = both(x.double(), *(module.double() for module in pair))
    for one, other, right in zip(ours, library, exact, strict=True):
        distance, known = (float((got.double() - right).norm() / right.norm()) for got in (one, other))
        assert distance <= 2 * known + 6e-7


def test_where_no_weight_wants_a_gradient_x_is_not_kept():
    pair = convolutions(5, 1, 1)
    x = draw(1, CHANNELS, 6, 6).float().requires_grad_()
    (expected,) = torch.autograd.grad(pair[1](pair[0](x)).sum(), [x])
    for module in pair:
        module.requires_grad_(False)
    out = separable(x, *pair)
    assert out.grad_fn.saved_tensors[0] is None
    torch.testing.assert_close(torch.autograd.grad(out.sum(), [x])[0], expected)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kernels", [(3,), (5, 5)])
def test_a_stack_is_its_modules_one_after_the_other(kernels, affine):
    stack = SeparableConvs(CHANNELS, kernels, 2, 1, affine).double()
    names = [type(module).__name__ for module in stack]
    assert names == ["ReLU", "Conv2d", "Conv2d", "BatchNorm"] * len(kernels)
    x = draw(3, CHANNELS, 9, 9).requires_grad_()

    def plainly(x):
        for module in stack:
            x = module(x)
        return x

    found = []
    for run in (
        stack,
        plainly,
        lambda x: stack.after_relu(F.relu(x), torch.tensor(-1.5).double()) if not affine else stack(x),
    ):
        out = run(x)
        found.append([out, *torch.autograd.grad((out * draw(*out.shape, seed=3)).sum(), [x, *stack.parameters()])])
    factor = 1 if affine else -1.5
    for one, other, weighed in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(weighed, factor * other, rtol=1e-10, atol=1e-11)
