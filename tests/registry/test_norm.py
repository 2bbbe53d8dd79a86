import pytest
import torch
from torch import nn

from registry.norm import BatchNorm, batch_norm, held_statistics


def trained_norm(affine=True):
    norm = BatchNorm(3, affine=affine)
    for number in range(3):
        norm(torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(number)) + 2)
    return norm


def buffers(module):
    return {name: value.clone() for name, value in module.named_buffers()}


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 5, 4)])
def test_it_normalises_vectors_and_maps_like_torch(shape):
    x = torch.randn(shape) * 3 + 1
    ours, theirs = BatchNorm(3), nn.BatchNorm1d(3) if len(shape) == 2 else nn.BatchNorm2d(3)
    for mode in (True, False):
        ours.train(mode), theirs.train(mode)
        torch.testing.assert_close(ours(x), theirs(x))
    for (_, one), (_, other) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
        torch.testing.assert_close(one, other)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"expected \[N, C\] or \[N, C, H, W\], got \[2, 3, 4\]"):
        BatchNorm(3)(torch.zeros(2, 3, 4))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("state", ["training", "held", "evaluation"])
def test_a_factor_is_as_good_as_multiplying_afterwards(state, affine):
    x = torch.randn(6, 3, 5, 4).contiguous(memory_format=torch.channels_last)
    results = []
    for apart in (True, False):
        norm, factors = trained_norm(affine), torch.tensor([0.3, -2.0]).requires_grad_()
        norm.train(state != "evaluation")
        norm.hold_statistics = state == "held"
        a = x.clone().requires_grad_()
        out = factors[1] * norm(a) if apart else batch_norm(norm, a, factors[1])
        results.append([out, *torch.autograd.grad(out.square().sum() + out[:, 0].sum(), [a, factors]), *norm.buffers()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("affine", [True, False])
def test_held_statistics_leave_the_buffers_alone_and_the_output_the_same(affine):
    norm, x = trained_norm(affine), torch.randn(6, 3, 2, 2)
    before = buffers(norm)
    with held_statistics(nn.Sequential(nn.Identity(), nn.Sequential(norm))):
        held = norm(x)
    assert all(torch.equal(before[name], value) for name, value in norm.named_buffers())
    torch.testing.assert_close(held, norm(x), rtol=0, atol=0)
    assert not torch.equal(before["running_mean"], norm.running_mean), "afterwards they move again"
    assert norm.num_batches_tracked == before["num_batches_tracked"] + 1


def test_held_statistics_change_nothing_in_evaluation():
    norm, x = trained_norm().eval(), torch.randn(6, 3, 2, 2)
    expected = norm(x)
    with held_statistics(norm):
        assert torch.equal(norm(x), expected)


def test_statistics_move_again_after_an_error():
    norm = trained_norm()
    with pytest.raises(RuntimeError, match="oops"), held_statistics(norm):
        raise RuntimeError("oops")
    before = buffers(norm)
    norm(torch.randn(6, 3))
    assert not torch.equal(before["running_mean"], norm.running_mean)
