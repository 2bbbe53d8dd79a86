"""How far the kernels of a retraining are from the arithmetic: python benchmarks/kernel_floor.py (--quick to try it).

Everything runs on one thread and in turn, with the memory settings of a training, and the time is that of the
processor. The floor is what torch's matrix product would take for the multiply-adds, and a copy for the maps that must
go through memory at least once in each pass over the batch. The maps are those of a derived network (C=36, 20 cells):
36 channels of 32x32 pixels, 72 of 16x16, 144 of 8x8. A second table compares widths that fill vectors with some that do
not.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import report
import torch
from torch import Tensor, nn

from registry import OPS
from registry.ops import ReLUConvBN
from ssfnas_cli.engine.device import Device
from ssfnas_cli.native import cells
from ssfnas_cli.nets.compiled.fanout import split_ops
from ssfnas_cli.nets.compiled.projection import with_kernels

ROUNDS, BATCH = 7, 32
MAPS = [(36, 32), (72, 16), (144, 8)]  # channels and side
WIDTHS = [16, 24, 32, 36, 40, 48]
FULL = 16  # a multiple of it fills vectors, also those of AVX-512
MATRIX, COPY = 1024, 64 << 20  # the side of a matrix product, the bytes of a copy


class Part(NamedTuple):
    """What is timed: `run` returns the seconds of the forward and of the backward pass."""

    run: Callable[[], tuple[float, float]]
    flops: tuple[float, float]  # of the passes; what the backward pass computes again is not counted
    maps: tuple[int, int]  # bytes that the passes read and write, in maps of `channels` channels
    map_bytes: int


def timed(work: Callable[[], Tensor], x: Tensor, weights: list[Tensor]) -> tuple[float, float]:
    """Seconds of the forward and of the backward pass."""
    began = time.process_time()
    out = work()
    middle = time.process_time()
    torch.autograd.grad(out, [x, *weights], torch.ones_like(out))
    return middle - began, time.process_time() - middle


def edge(channels: int, side: int, batch: int) -> Part:
    """A separable convolution (two stages, 3x3) with the sum that it is added to."""
    plugin = OPS.get("sep_conv_3x3")
    op = plugin.factory(channels, 1, True, plugin.parse_options())
    fan, _ = split_ops(cells.load(), [(op, 2)], 1, affine=True)
    assert fan is not None
    x = torch.randn(batch, channels, side, side).to(memory_format=torch.channels_last).requires_grad_()
    scale, shift = (torch.ones(1, channels).requires_grad_() for _ in range(2))
    last = op[-1]
    assert isinstance(last, nn.Module)
    weights = [weight for weight in op.parameters() if all(weight is not own for own in last.parameters())]

    def forward() -> Tensor:
        sums: dict[int, Tensor] = {}
        fan.add_to(sums, x, scale, shift)
        return sums[2]

    flops = 2 * 2 * batch * side**2 * (channels**2 + 9 * channels)
    # Forward: x -> y1 -> y2 -> sum. Backward, twice each: y2, the sum's gradient, y1 and its gradient; x and its own.
    return Part(lambda: timed(forward, x, weights), (flops, 2 * flops), (6, 10), 4 * batch * side**2 * channels)


def projection(channels: int, side: int, batch: int) -> Part:
    """ReLU, 1x1 convolution and BN from the output of a cell with four nodes to the width of the next."""
    module = ReLUConvBN(4 * channels, channels, True)
    run = with_kernels(module, cells.load())
    x = torch.randn(batch, 4 * channels, side, side).to(memory_format=torch.channels_last).requires_grad_()
    flops = 2 * batch * side**2 * 4 * channels**2
    weights = list(module.parameters())
    return Part(lambda: timed(lambda: run(x), x, weights), (flops, 2 * flops), (7, 12), 4 * batch * side**2 * channels)


def rates(quick: bool) -> tuple[float, float]:
    """The flops a second of torch's matrix product, and the bytes a second that a copy reads and writes."""
    side, size = (64, 1 << 16) if quick else (MATRIX, COPY)
    a, b, out = (torch.randn(side, side) for _ in range(3))
    source, target = (torch.ones(size // 4) for _ in range(2))
    began = time.process_time()
    torch.mm(a, b, out=out)
    middle = time.process_time()
    target.copy_(source)
    return 2 * side**3 / (middle - began), 2 * size / (time.process_time() - middle)


def measure(parts: dict[tuple[str, int, int], Part], quick: bool) -> tuple[tuple[float, float], dict]:
    """Time all parts in turn. Returns the two rates, and each part's seconds (forward, backward); all are medians."""
    rounds = 1 if quick else ROUNDS
    found: dict = {key: [] for key in parts}
    speeds = []
    for number in range(rounds + 1):
        speeds.append(rates(quick))
        for key, part in parts.items():
            part.run()  # what ran before has left its own memory in the caches
            seconds = part.run()
            if number > 0:  # the first round allocates memory
                found[key].append(seconds)
    product, copy = (statistics.median(values) for values in zip(*speeds[1:], strict=True))
    return (product, copy), {
        key: [statistics.median(v) for v in zip(*all_, strict=True)] for key, all_ in found.items()
    }


def floors(parts: dict, speeds: tuple[float, float], seconds: dict, batch: int) -> list[list[str]]:
    """The rows of the first table."""
    rows = []
    for key, part in parts.items():
        name, channels, side = key
        for place, direction in enumerate(("forward", "backward")):
            took, flops, maps = seconds[key][place], part.flops[place], part.maps[place]
            arithmetic, memory = flops / speeds[0], maps * part.map_bytes / speeds[1]
            what = [f"{channels} of {side}x{side}", f"{name}, {direction}", f"{1e6 * took / batch:.0f}"]
            rate = [f"{flops / took / 1e9:.0f}", f"{100 * arithmetic / took:.0f} %"]
            rows.append([*what, *rate, f"{1e6 * memory / batch:.0f}", f"{took / (arithmetic + memory):.1f}"])
    return rows


def expected(channels: int, seconds: dict[int, float]) -> float:
    """Seconds if vectors were always full: by a quadratic without constant through the full widths beside this one."""
    low = min(channels // FULL * FULL, max(seconds) - FULL)
    high = low + FULL
    slope = (seconds[high] / high - seconds[low] / low) / (high - low)
    return channels * (seconds[low] / low + slope * (channels - low))


def main() -> None:
    """Time all parts, and write the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="tiny maps, one round, printed and not written")
    quick = parser.parse_args().quick
    if cells.load() is None:
        raise SystemExit("the compiled kernels are not here: a C++ compiler is needed")
    Device("cpu", threads=1)  # memory as in a training: without it, every map's pages are asked of the system anew
    batch, maps, side = (2, [(4, 8)], 4) if quick else (BATCH, MAPS, 32)
    makers = {"edge": edge, "projection": projection}
    parts = {(name, *of_map): make(*of_map, batch) for of_map in maps for name, make in makers.items()}
    widths = {("edge", width, side): edge(width, side, batch) for width in WIDTHS}
    speeds, seconds = measure(parts | widths, quick)
    totals = {width: sum(seconds["edge", width, side]) for width in WIDTHS}
    width_rows = [
        [str(width), f"{1e6 * took / batch:.0f}", f"{took / expected(width, totals):.2f}"]
        for width, took in totals.items()
    ]
    header = ["channels", "part", "us an image", "GFLOP/s", "of the product's", "memory's floor, us", "times the floor"]
    body = f"""`python benchmarks/kernel_floor.py`, {report.machine()}.
Batch {batch} on one of the threads, {ROUNDS} rounds in turn, processor time. A matrix product ran at
{speeds[0] / 1e9:.0f} GFLOP/s; a copy read and wrote {speeds[1] / 1e9:.1f} GB/s together.

{report.table(header, floors(parts, speeds, seconds, batch))}

An edge of {side}x{side} pixels, forward and backward. Expected is a quadratic through the widths that fill vectors.

{report.table(["channels", "us an image", "times the expected"], width_rows)}"""
    if quick:
        print(body)
    else:
        report.write_section("kernel_floor", body)


if __name__ == "__main__":
    main()
