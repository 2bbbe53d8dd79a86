"""How the kernels share their chunks among threads: whoever takes them, the results are the same to the last bit."""

from __future__ import annotations

import multiprocessing
import threading

import pytest
import torch
from torch import Tensor, nn

from registry.ops import ReLUConvBN
from ssfnas_cli.native import cells
from ssfnas_cli.nets.compiled.fanout import split_ops
from ssfnas_cli.nets.compiled.projection import with_kernels

pytestmark = pytest.mark.skipif(cells.load() is None, reason="no C++ compiler")


def compute(threads: int, seed: int = 0, repeats: int = 1) -> list[Tensor]:
    """Results and gradients of a projection on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        generator = torch.Generator().manual_seed(seed)
        module = ReLUConvBN(24, 20, affine=False)
        module[1].weight.data.copy_(torch.randn(20, 24, 1, 1, generator=generator))
        run = with_kernels(module, cells.load())
        x = torch.randn(33, 24, 11, 9, generator=generator).requires_grad_()
        results = []
        for _ in range(repeats):
            out = run(x)
            results = [out.detach(), *torch.autograd.grad(out.square().mul(out).sum(), [x, module[1].weight])]
        return results
    finally:
        torch.set_num_threads(before)


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(map(torch.equal, one, other))


@pytest.mark.parametrize("threads", [2, 3, 8, 20])
def test_more_threads_than_cores_or_chunks_change_nothing(threads):
    assert equal(compute(1), compute(threads, repeats=20))
    assert equal(compute(1), compute(2)), "fewer again"


def test_two_callers_at_once_each_get_their_own_result():
    expected = [compute(1, seed) for seed in (1, 2)]
    got: dict[int, bool] = {}

    def call(place: int) -> None:
        kernel = [compute(2, place + 1, repeats=5) for _ in range(5)]
        got[place] = all(equal(one, expected[place]) for one in kernel)

    callers = [threading.Thread(target=call, args=(place,)) for place in (0, 1)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=120)
    assert got == {0: True, 1: True}


def _forward_in_a_fork(pipe) -> None:
    with torch.no_grad():
        pipe.send(_forward().numpy())


def _forward() -> Tensor:
    """A kernel's result on two threads, without torch's own operations, whose threads a fork does not have."""
    fan, _ = split_ops(cells.load(), [(nn.Identity(), 2)], stride=1, affine=False)
    assert fan is not None
    sums: dict[int, Tensor] = {}
    fan.add_to(sums, torch.arange(8.0 * 16).reshape(8, 16, 1, 1), torch.tensor([[0.5]]))
    return sums[2]


def test_a_forked_process_computes_by_itself(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    expected = _forward()
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_forward_in_a_fork, args=(theirs,), daemon=True)
    process.start()
    try:
        assert ours.poll(60), "the forked process waits for threads that it does not have"
        assert torch.equal(torch.from_numpy(ours.recv()), expected)
        assert torch.equal(expected, torch.arange(8.0 * 16).reshape(8, 16, 1, 1) / 2)
    finally:
        process.kill()
        process.join()
