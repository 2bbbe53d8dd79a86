"""Measure how time and peak memory of a search step grow with batch, channels, cells, image side and classes.

    python benchmarks/scaling.py                    # measure all points, write table and plot to docs/performance.md
    python benchmarks/scaling.py --quick            # check that the benchmark runs
    python benchmarks/scaling.py --only channels    # points that were measured before are not measured again

`make bench` runs it. One quantity at a time is varied about a base point. Each point has its own process, which takes
steps on prepared batches (DARTS, first order, softmax, cross-entropy). Memory is the peak of the process minus its
memory before the model was built. After a change of the code, name another file with --out.

The exponent p of the growth is fitted to `t(x) - t(x0) = b (x^p - x0^p)`, where x0 is the smallest point, by least
squares on the logarithms of both sides. A constant part (of the interpreter, small operators and weights) therefore
cannot hide the growth. The same fit to the multiply-adds and the values in the maps of the same networks gives the
exponents that the arithmetic implies.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import paired
import report
import torch
from torch import Tensor, nn

from registry.space import CELL_TYPES, edge_list
from ssfnas_cli.artifacts.dataset import DataSet
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.search_phase import SearchPhase
from ssfnas_cli.nets.count import count_macs
from ssfnas_cli.nets.supernet import Supernet
from ssfnas_cli.settings import PAPER_OPS, SearchSettings, load_settings

# The cells are multiples of three, so that each of the three resolutions has equally many. Channels fill vectors of 16.
BASE = {"batch size": 32, "channels": 16, "cells": 6, "image side": 32, "classes": 10}
SWEEPS: dict[str, tuple[int, ...]] = {
    "batch size": (8, 16, 32, 64, 128),
    "channels": (16, 24, 32, 48),
    "cells": (3, 6, 9, 12),
    "image side": (16, 24, 32, 48, 64),
    "classes": (2, 10, 100, 1000),
}
QUICK_BASE = {"batch size": 4, "channels": 2, "cells": 3, "image side": 8, "classes": 2}
QUICK_SWEEPS: dict[str, tuple[int, ...]] = {
    "batch size": (2, 4, 8),
    "channels": (2, 4, 8),
    "cells": (3, 6, 9),
    "image side": (8, 12, 16),
    "classes": (2, 4, 8),
}
WARM_UP, NUM_BATCHES = 2, 2  # steps; batches that are used alternately
TOLERANCE = 0.1  # of an exponent, in addition to the noise, because cells differ and only a few points are fitted
NUM_RESAMPLES = 300  # of the measurements, to estimate the noise of an exponent
FLAT = 0.1  # a relative growth over a whole sweep below this counts as none
FIGURE = report.PAGE.with_name("performance") / "scaling"

Point = dict[str, int]  # like BASE


# Measuring


def settings_of(point: Point) -> SearchSettings:
    """The settings of the search at a point."""
    names = {"batch size": "batch_size", "channels": "channels", "cells": "layers"}
    return load_settings(
        SearchSettings, flags={"kernels": "compiled"} | {flag: point[name] for name, flag in names.items()}
    ).resolve_plugins()


def build(folder: Path, point: Point) -> paired.Step:
    """Build a step on prepared batches."""
    settings = settings_of(point)
    data = DataSet.open(folder / "data")
    phase = SearchPhase(settings, data, Device.from_settings(settings))
    batches = [batch for batch, _ in zip(phase.batches(0, 0), range(NUM_BATCHES), strict=False)]
    return lambda number: phase.step(0, number, batches[number % len(batches)])


def measure(point: Point, num_steps: int) -> dict[str, Any]:
    """Measure a point: `seconds` of each timed step, and `bytes`, the peak memory minus that before the model."""
    with paired.scratch() as scratch:
        folder = Path(scratch)
        num_train = max(2 * NUM_BATCHES * point["batch size"], 2 * point["classes"])
        paired.random_images(folder, num_train, point["image side"], point["classes"])
        worker = paired.Worker(paired.Side(build, (folder, point), paired.OURS))
        steps = [worker.step(number) for number in range(WARM_UP + num_steps)]
        worker.close()
    seconds = [step["seconds"] for step in steps[WARM_UP:]]
    return {"seconds": seconds, "bytes": steps[-1]["peak_bytes"] - steps[-1]["base_bytes"]}


def name_of(point: Point) -> str:
    """Describe a point in one line."""
    return ", ".join(f"{name} {value}" for name, value in point.items())


def measure_all(options: argparse.Namespace, base: Point, sweeps: Mapping[str, Sequence[int]]) -> None:
    """Measure all points `--rounds` times, round by round, so that a slow spell affects more than one quantity."""
    results = paired.Results(options.out)
    for number in range(1, options.rounds + 1):
        for quantity in options.only:
            for value in sweeps[quantity]:
                point = base | {quantity: value}
                if len(results.rounds(name_of(point), facts_of(options))) >= number:
                    continue
                measured = measure(point, options.steps)
                results.add(name_of(point), facts_of(options), measured)
                seconds = statistics.median(measured["seconds"])
                line = f"{name_of(point)}: {seconds:.3f} s, {measured['bytes'] / 1e9:.3f} GB"
                print(line, file=sys.stderr, flush=True)


def facts_of(options: argparse.Namespace) -> dict[str, Any]:
    """The facts in which all measurements of a table must agree."""
    return {"machine": report.machine(), "steps": options.steps}


# Counting


class CountedNetwork(nn.Module):
    """A supernet with a classifier and constant mixing weights, for counting."""

    def __init__(self, point: Point):
        super().__init__()
        self.encoder = Supernet(3, point["channels"], point["cells"], PAPER_OPS)
        self.head = nn.Linear(self.encoder.num_features, point["classes"])

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, classes]"""
        mixing = torch.empty(len(edge_list()), len(PAPER_OPS), device=images.device)
        return self.head(self.encoder(images, dict.fromkeys(CELL_TYPES, mixing)))


def count(point: Point) -> tuple[float, float]:
    """The multiply-adds of a forward pass over a batch, and the number of values in the outputs of its layers."""
    values = 0

    def add(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal values
        values += output.numel()

    with torch.device("meta"):
        network = CountedNetwork(point)
    for module in network.modules():
        if not any(True for _ in module.children()):
            module.register_forward_hook(add)
    macs = count_macs(network, 3, point["image side"])
    return float(macs * point["batch size"]), float(values * point["batch size"])


# Fitting


class Growth(NamedTuple):
    """A fit `y(x) = start + factor (x^exponent - x0^exponent)`. `overall` is the slope of log y against log x."""

    exponent: float | None  # None means that y hardly grows
    factor: float
    start: float
    x0: float
    overall: float

    @property
    def rate(self) -> float:
        """The exponent, or the overall slope, which is close to 0, if there is none."""
        return self.overall if self.exponent is None else self.exponent

    def at(self, x: np.ndarray) -> np.ndarray:
        """The fitted curve."""
        if self.exponent is None:
            return np.full(len(x), self.start)
        return self.start + self.factor * (x**self.exponent - self.x0**self.exponent)


def fit(xs: Sequence[float], ys: Sequence[float]) -> Growth:
    """Fit the growth of ys, which are positive, over ascending xs, as described at the top of this file."""
    x, y = np.array(xs, float), np.array(ys, float)
    overall = float(np.polyfit(np.log(x), np.log(y), 1)[0])
    steps = y[1:] - y[0]
    if y[-1] < (1 + FLAT) * y[0] or (steps <= 0).any():
        return Growth(None, 0.0, float(np.median(y)), x[0], overall)
    exponents = np.arange(0.05, 4, 0.01)
    gaps = np.log(steps) - np.log(x[1:] ** exponents[:, None] - x[0] ** exponents[:, None])
    best = int(((gaps - gaps.mean(1, keepdims=True)) ** 2).sum(1).argmin())
    return Growth(float(exponents[best]), float(np.exp(gaps[best].mean())), y[0], x[0], overall)


class Curve(NamedTuple):
    """The measurements of a sweep, with their growth and the growth that the arithmetic implies."""

    quantity: str
    measure: str
    xs: list[int]
    ys: list[list[float]]
    growth: Growth
    noise: tuple[float, float]  # contains 90 % of the exponents of resampled measurements
    counted: Growth
    counts: list[float]

    @property
    def medians(self) -> list[float]:
        """The median of each point."""
        return [statistics.median(values) for values in self.ys]

    @property
    def is_above(self) -> bool:
        """Whether the growth exceeds that of the arithmetic by more than the noise and the tolerance."""
        return self.noise[0] > self.counted.rate + TOLERANCE


def noise_of(xs: Sequence[float], ys: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The interval of 90 % of the exponents when the measurements of each point are resampled (bootstrap)."""
    rng = np.random.default_rng(0)
    draws = [fit(xs, [float(np.median(rng.choice(y, len(y)))) for y in ys]).rate for _ in range(NUM_RESAMPLES)]
    low, high = np.quantile(draws, (0.05, 0.95))
    return float(low), float(high)


def curves_of(options: argparse.Namespace, base: Point, sweeps: Mapping[str, Sequence[int]]) -> list[Curve]:
    """The curves of seconds and bytes for each quantity whose sweep is complete."""
    results, curves = paired.Results(options.out), []
    for quantity, values in sweeps.items():
        points = [base | {quantity: value} for value in values]
        rounds = [results.rounds(name_of(point), facts_of(options)) for point in points]
        if not all(rounds):
            continue
        seconds = [[second for run in runs for second in run["seconds"]] for runs in rounds]
        gigabytes = [[run["bytes"] / 1e9 for run in runs] for runs in rounds]
        macs, maps = zip(*map(count, points), strict=True)
        for measured, ys, counts in (("seconds a step", seconds, macs), ("peak GB", gigabytes, maps)):
            growth = fit(values, [statistics.median(y) for y in ys])
            arithmetic = fit(values, counts), list(counts)
            curves.append(Curve(quantity, measured, list(values), ys, growth, noise_of(values, ys), *arithmetic))
    return curves


# The page


def exponent_text(growth: Growth) -> str:
    """Format an exponent, or `none` if there is hardly any growth."""
    return f"{growth.exponent:.2f}" if growth.exponent is not None else f"none ({growth.overall:+.2f})"


def render(curves: Sequence[Curve], options: argparse.Namespace, base: Point) -> str:
    """The table as Markdown."""
    rows = []
    for curve in curves:
        ends = [f"{curve.xs[k]}: {report.spread(curve.ys[k])}" for k in (0, -1)]
        verdict = "ABOVE" if curve.is_above else "no"
        low, high = curve.noise
        noise = f" ({low:.2f} to {high:.2f})" if curve.growth.exponent is not None and low < high else ""
        fitted = [
            exponent_text(curve.growth) + noise,
            f"{curve.growth.overall:.2f}",
            exponent_text(curve.counted),
            verdict,
        ]
        rows.append([curve.quantity, ", ".join(map(str, curve.xs)), curve.measure, *ends, *fitted])
    header = ["varied", "points", "of", "smallest", "largest"]
    header += ["exponent of the growth", "log-log slope", "arithmetic's exponent", "above it?"]
    return "\n\n".join(
        [
            f"`python benchmarks/scaling.py`, {report.machine()}. "
            f"One quantity at a time is varied about {name_of(base)} "
            f"(softmax, cross-entropy, first order, float32). Each point has {options.rounds} x {options.steps} timed "
            "steps in separate processes. Memory is that above the process's memory before the model was built.",
            report.table(header, rows),
            "The exponent of the growth is fitted by least squares, in logarithms, to the increments over the smallest "
            "point, `y(x) - y(x0) = b (x^p - x0^p)`. Unlike in the log-log slope, a constant part cannot hide it. The "
            "arithmetic's exponent is the same fit to the multiply-adds (for seconds) and to the values in the layers' "
            "maps (for memory) of the same networks. The interval in brackets contains 90 % of the exponents when the "
            'measurements are resampled. "Above" means that all of these exceed the arithmetic\'s exponent by more '
            f'than {TOLERANCE}. "None" means that all points lie within {100 * FLAT:.0f} %.',
            "![How time and memory grow](performance/scaling.svg)",
        ]
    )


def plot(curves: Sequence[Curve], base: Point, target: Path) -> None:
    """Plot a column for each quantity, with seconds above and memory below. Dashed lines show the arithmetic."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "ssfnas", "font.size": 9})
    matplotlib.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    from matplotlib import pyplot

    quantities = list(dict.fromkeys(curve.quantity for curve in curves))
    measures = list(dict.fromkeys(curve.measure for curve in curves))
    figure, axes = pyplot.subplots(
        len(measures), len(quantities), figsize=(2.5 * len(quantities), 5.6), squeeze=False, layout="constrained"
    )
    for curve in curves:
        row = measures.index(curve.measure)
        draw(axes[row, quantities.index(curve.quantity)], curve, base, "#1f5fa8" if row == 0 else "#b3541e")
    for row, measured in zip(axes, measures, strict=True):
        row[0].set_ylabel(measured)
        row[0].legend(frameon=False, fontsize=8, loc="upper left", handlelength=1.6)
        share_limits(row)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(target.with_suffix(".png"), dpi=160)
    pyplot.close(figure)


def draw(axes: Any, curve: Curve, base: Point, colour: str) -> None:
    """Draw one panel."""
    from matplotlib.ticker import NullFormatter, NullLocator

    medians, x = curve.medians, np.geomspace(curve.xs[0], curve.xs[-1], 100)
    pivot = curve.xs.index(base[curve.quantity])
    arithmetic = np.array(curve.counts) * medians[pivot] / curve.counts[pivot]
    axes.plot(curve.xs, arithmetic, "--", color="#8a8a8a", linewidth=1.2, label="arithmetic, from the base")
    axes.plot(x, curve.growth.at(x), color=colour, linewidth=1.6, label="fitted")
    spread = [[m - min(y) for m, y in zip(medians, curve.ys, strict=True)]]
    spread.append([max(y) - m for m, y in zip(medians, curve.ys, strict=True)])
    axes.errorbar(curve.xs, medians, yerr=spread, fmt="o", color=colour, markersize=4.5, capsize=2)
    axes.set(xscale="log", yscale="log", xlabel=curve.quantity)
    axes.set_xticks(curve.xs, [str(value) for value in curve.xs])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    exponent = "no growth" if curve.growth.exponent is None else f"exponent {curve.growth.exponent:.2f}"
    counted = "none" if curve.counted.exponent is None else f"{curve.counted.exponent:.2f}"
    axes.set_title(f"{exponent}\n(arithmetic: {counted})", fontsize=9)
    axes.grid(True, which="major", color="#e4e4e4", linewidth=0.6)


def share_limits(row: Sequence[Any]) -> None:
    """Give the panels of a row the same scale, with ticks at round numbers, so that they can be compared."""
    from matplotlib.ticker import FixedLocator

    lows, highs = zip(*(axes.get_ylim() for axes in row), strict=True)
    low, high = min(lows), max(highs)
    round_numbers = [digit * 10.0**power for power in range(-6, 7) for digit in (1, 2, 5)]
    ticks = [number for number in round_numbers if low <= number <= high]
    for axes in row:
        axes.set_ylim(low, high)
        axes.yaxis.set_major_locator(FixedLocator(ticks))
        axes.set_yticklabels([f"{tick:g}" for tick in ticks] if axes is row[0] else [])


def main() -> None:
    """Measure the missing points and write table and plot. Exit with 1 if anything grows faster than the arithmetic."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SWEEPS, default=list(SWEEPS), metavar="QUANTITY")
    parser.add_argument("--rounds", type=int, default=2, help="processes a point (2)")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each (3)")
    parser.add_argument("--quick", action="store_true", help="a tiny shape, to try the script; docs are not written")
    parser.add_argument("--render", action="store_true", help="measure nothing: write table and plot from the file")
    parser.add_argument("--out", type=Path, help="file of the measurements (build/benchmarks/scaling.jsonl)")
    options = parser.parse_args()
    options.out = options.out or Path("build", "benchmarks", f"scaling{'-quick' if options.quick else ''}.jsonl")
    base, sweeps = (QUICK_BASE, QUICK_SWEEPS) if options.quick else (BASE, SWEEPS)
    if not options.render:
        measure_all(options, base, sweeps)
    curves = curves_of(options, base, sweeps)
    if options.quick:
        print(render(curves, options, base))
        plot(curves, base, options.out.with_suffix(""))
    else:
        report.write_section("scaling", render(curves, options, base))
        plot(curves, base, FIGURE)
    above = [f"{curve.quantity} ({curve.measure})" for curve in curves if curve.is_above]
    if above and not options.quick:
        raise SystemExit(f"grows faster than the layer arithmetic: {', '.join(above)}")


if __name__ == "__main__":
    main()
