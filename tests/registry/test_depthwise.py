import pytest
import torch
import torch.nn.functional as F

from registry.depthwise import DepthwiseConv

KERNELS = [(3, 1), (5, 1), (7, 1), (3, 2), (5, 2), (7, 2), (3, 3)]


def gradients(convolve, x, weight, push):
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    out = convolve(x, weight)
    return [out, *torch.autograd.grad((out * push[:, :, : out.shape[2], : out.shape[3]]).sum(), [x, weight])]


def both(kernel, dilation, stride, sides, dtype, channels_last=True):
    """Output and gradients by DepthwiseConv, and by autograd through the library's convolution."""
    generator = torch.Generator().manual_seed(kernel * 100 + dilation * 10 + stride)
    x = torch.randn(3, 4, *sides, generator=generator, dtype=torch.float64).to(dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    push = torch.randn(3, 4, *sides, generator=generator, dtype=torch.float64).to(dtype)
    conv = DepthwiseConv(4, kernel, stride, dilation).to(dtype)
    padding = dilation * (kernel - 1) // 2
    ours = gradients(lambda a, w: torch.func.functional_call(conv, {"weight": w}, a), x, conv.weight, push)
    plain = lambda a, w: F.conv2d(a, w, None, stride, padding, dilation, 4)
    return (
        ours,
        gradients(plain, x, conv.weight, push),
        gradients(plain, x.double(), conv.weight.double(), push.double()),
    )


@pytest.mark.parametrize("sides", [(8, 8), (7, 10), (5, 5), (2, 1), (16, 9)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel", "dilation"), KERNELS)
def test_gradients_are_those_of_the_plain_convolution(kernel, dilation, stride, sides):
    ours, plain, _ = both(kernel, dilation, stride, sides, torch.float64)
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel", "dilation"), KERNELS)
def test_in_float32_they_are_about_as_far_from_float64_as_the_library_is(kernel, dilation, stride, channels_last):
    ours, plain, exact = both(kernel, dilation, stride, (12, 11), torch.float32, channels_last)
    for one, other, right in zip(ours, plain, exact, strict=True):
        distance, known = (float((got.double() - right).norm() / right.norm()) for got in (one, other))
        assert distance <= 2 * known + 6e-7


def test_only_what_is_asked_for_is_computed():
    conv, x = DepthwiseConv(2, 5, 1, 2), torch.randn(1, 2, 6, 6)
    conv(x).sum().backward()
    assert conv.weight.grad is not None and x.grad is None
    conv.weight.grad = None
    conv.weight.requires_grad_(False)
    x.requires_grad_()
    conv(x).sum().backward()
    assert x.grad is not None and conv.weight.grad is None
