"""Comparison of two implementations, which are timed alternately in separate processes: A B A B.

They alternate because the speed of a machine drifts, and they have separate processes so that each has its own peak
memory. Only one computes at a time. The first rounds warm up. In every round, both sides must compute the same losses.
Each timed round is appended to a file, so an interrupted benchmark can be continued.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import report
from torch import Tensor

from ssfnas_cli.artifacts.dataset import DataSet
from ssfnas_cli.data.batches import Batch
from ssfnas_cli.data.build import build_dataset
from ssfnas_cli.engine.device import Device
from ssfnas_cli.machine import peak_memory_bytes
from ssfnas_cli.main import SPIN_LIMIT
from ssfnas_cli.settings import MakeDatasetSettings

OURS = dict([SPIN_LIMIT])  # the environment of the program; the direct side is faster with torch's default
WARM_UP_ROUNDS = 3  # they allocate memory that later steps reuse, which takes a large network more than one
TOLERANCE = 1e-3  # relative, of the first step's losses in float32
LATER_TOLERANCE = 0.05  # rounding errors grow from step to step

Step = Callable[[int], Mapping[str, float]]  # maps the number of a step to its losses


class Side(NamedTuple):
    """One of the implementations to compare.

    `build(*arguments)` is called in the side's process and returns the function to time. `environ` is added to the
    environment of that process before torch is loaded. A side that computes something else is not `compared`.
    """

    build: Callable[..., Step]
    arguments: tuple[Any, ...]
    environ: Mapping[str, str] = {}
    compared: bool = True


class Worker:
    """A side and its process."""

    def __init__(self, side: Side):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, side.build, side.arguments), daemon=True)
        before = dict(os.environ)
        os.environ.update(side.environ)
        try:
            self._process.start()
        finally:
            os.environ.clear()
            os.environ.update(before)
        theirs.close()
        self.facts = self._receive()

    def step(self, number: int) -> dict[str, Any]:
        """Take a step. Return its `seconds` and `values`, and the peak memory of the process so far, `peak_bytes`."""
        self._pipe.send(number)
        return self._receive() | self.facts

    def close(self) -> None:
        """End the process."""
        self._pipe.send(None)
        self._process.join()

    def _receive(self) -> dict[str, Any]:
        try:
            return self._pipe.recv()
        except EOFError:
            self._process.join()
            raise SystemExit(f"a side ended by itself (exit {self._process.exitcode}; -9: out of memory)") from None


def _serve(pipe: Any, build: Callable[..., Step], arguments: tuple[Any, ...]) -> None:
    """Build the step and take steps on request. All imports are done, so the current memory is the baseline."""
    base = peak_memory_bytes()
    began = time.perf_counter()
    step = build(*arguments)
    pipe.send({"base_bytes": base, "build_seconds": time.perf_counter() - began})
    while (number := pipe.recv()) is not None:
        others = busy_seconds() - time.process_time()
        began = time.perf_counter()
        values = step(number)
        seconds = time.perf_counter() - began
        others = busy_seconds() - time.process_time() - others
        share = max(0.0, others / seconds / (os.cpu_count() or 1))
        taken = {"seconds": seconds, "values": dict(values), "peak_bytes": peak_memory_bytes(), "others_share": share}
        pipe.send(taken)


def busy_seconds() -> float:
    """Processor time that the machine has spent, including time stolen by its host. The resolution is 10 ms."""
    try:
        ticks = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return time.process_time()  # other processes are unknown
    user, nice, system, _, _, irq, softirq, steal = map(int, ticks[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


class Results:
    """The rounds of all cases, in a file of JSON lines. A round is {side: the result of `Worker.step`}."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, case: str, facts: Mapping[str, Any], sides: Mapping[str, Any]) -> None:
        """Append a round."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"case": case, "facts": facts, "sides": sides}) + "\n")

    def rounds(self, case: str, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The rounds of a case that were measured with exactly these facts (machine, shapes)."""
        if not self.path.exists():
            return []
        lines = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
        return [
            line["sides"] for line in lines if line["case"] == case and line["facts"] == json.loads(json.dumps(facts))
        ]


def compare(
    case: str,
    facts: Mapping[str, Any],
    sides: Mapping[str, Side],
    num_rounds: int,
    results: Results,
    later_tolerance: float = LATER_TOLERANCE,
) -> None:
    """Measure a case until `results` has `num_rounds` rounds of it."""
    num_done = len(results.rounds(case, facts))
    if num_done >= num_rounds:
        return
    workers = {name: Worker(side) for name, side in sides.items()}
    for number in range(WARM_UP_ROUNDS + num_rounds - num_done):
        taken = {name: worker.step(number) for name, worker in workers.items()}
        compared = {name: step for name, step in taken.items() if sides[name].compared}
        _check_agreement(case, compared, later_tolerance if number else TOLERANCE)
        if number >= WARM_UP_ROUNDS:
            results.add(case, facts, taken)
        seconds = ", ".join(f"{name} {step['seconds']:.2f} s" for name, step in taken.items())
        print(f"{case}: step {number}: {seconds}", file=sys.stderr, flush=True)
    for worker in workers.values():
        worker.close()


def _check_agreement(case: str, taken: Mapping[str, Any], tolerance: float) -> None:
    first, *others = taken.values()
    for other in others:
        for key, value in first["values"].items():
            error = abs(other["values"][key] - value) / max(1.0, abs(value))
            if not error <= tolerance:  # written so that a NaN fails, too
                raise SystemExit(f"{case}: the sides do not compute the same: {key} {value}, {other['values'][key]}")


# Tables


def seconds_of(rounds: Sequence[Mapping[str, Any]], side: str) -> list[float]:
    """The seconds of a side in each round."""
    return [sides[side]["seconds"] for sides in rounds]


def ratios(rounds: Sequence[Mapping[str, Any]], side: str, reference: str) -> list[float]:
    """How many times faster `side` is in each round."""
    pairs = zip(seconds_of(rounds, reference), seconds_of(rounds, side), strict=True)
    return [slow / fast for slow, fast in pairs]


def memory_of(rounds: Sequence[Mapping[str, Any]], side: str) -> tuple[float, float]:
    """The peak memory of a side in GB, in total and without the baseline of its process."""
    peak = max(sides[side]["peak_bytes"] for sides in rounds)
    return peak / 1e9, (peak - statistics.median(sides[side]["base_bytes"] for sides in rounds)) / 1e9


def row(rounds: Sequence[Mapping[str, Any]], side: str, reference: str) -> list[str]:
    """A row of the table: seconds, speedup, peak memory (without imports), and its share of the reference's."""
    peak, above_baseline = memory_of(rounds, side)
    share = peak / memory_of(rounds, reference)[0]
    faster = "" if side == reference else report.spread(ratios(rounds, side, reference), 1)
    memory_share = "" if side == reference else f"{100 * share:.0f} %"
    return [report.spread(seconds_of(rounds, side)), faster, f"{peak:.2f} ({above_baseline:.2f})", memory_share]


def disturbance(cases: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """A sentence on how much of the machine other processes used during the timed steps."""
    shares = [side.get("others_share", 0.0) for rounds in cases for sides in rounds for side in sides.values()]
    return f"Other processes took at most {100 * max(shares, default=0.0):.0f} % of the processors during any step."


HEADER = ["seconds a step", "times faster", "peak GB (beyond imports)", "share of memory"]


# Helpers of the benchmarks


def parse_arguments(description: str, name: str, cases: Sequence[str]) -> argparse.Namespace:
    """Parse the command line of a benchmark."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--only", nargs="+", choices=cases, default=list(cases), metavar="CASE", help=", ".join(cases))
    parser.add_argument("--pairs", type=int, default=3, help="timed rounds of each case (3)")
    parser.add_argument("--quick", action="store_true", help="a tiny shape, to try the script; docs are not written")
    parser.add_argument("--render", action="store_true", help="measure nothing: write the table from the file")
    parser.add_argument("--out", type=Path, help=f"file of the rounds (build/benchmarks/{name}.jsonl)")
    options = parser.parse_args()
    options.out = options.out or Path("build", "benchmarks", f"{name}{'-quick' if options.quick else ''}.jsonl")
    return options


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def read_batch(tensors: Mapping[str, Tensor], name: str) -> Batch:
    """The batch whose views and labels are `NAME.view0`, ... and `NAME.labels`."""
    parts = part(tensors, f"{name}.")
    return Batch(tuple(parts[key] for key in sorted(parts) if key != "labels"), parts["labels"])


def random_images(folder: Path, num_train: int, side: int, num_classes: int = 10) -> DataSet:
    """Make a data set of random pixels, uint8 [side, side, 3], with balanced classes."""
    rng, arrays = np.random.default_rng(0), {}
    for split, num in {"train": num_train, "test": num_classes}.items():
        arrays[f"{split}_images"] = rng.integers(0, 256, (num, side, side, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(num) % num_classes)[:, None].astype(np.uint8)
    np.savez(folder / "noise.npz", **arrays)
    settings = MakeDatasetSettings(source="npz", root=str(folder / "noise.npz"), dist="balance")
    return build_dataset(settings, folder / "data", lambda line: None)


def check_kernels(device: Device, expected: str) -> None:
    """Exit if the compiled kernels are to be timed and are not available."""
    if expected == "compiled" and device.cells is None:
        raise SystemExit("the compiled kernels are not here: a C++ compiler is needed (or the cases without them)")


def scratch() -> tempfile.TemporaryDirectory:
    """A temporary folder for data and initial weights."""
    return tempfile.TemporaryDirectory(prefix="ssfnas-benchmark-")


def publish(section: str, options: argparse.Namespace, text: str) -> None:
    """Print a section, and write it to docs/performance.md unless the run is a quick one."""
    if options.quick:
        print(text)
    else:
        report.write_section(section, text)


def run(
    doc: str,
    name: str,
    cases: Sequence[str],
    measure: Callable[[str, argparse.Namespace, Results], None],
    render: Callable[[argparse.Namespace, Results], str],
) -> None:
    """A benchmark of cases: measure the missing rounds, then write the table.

    Args:
        doc: the benchmark's docstring, whose first line is its help.
        name: that of its file and of its section.
        cases: the names of all cases.
        measure: measures the missing rounds of a case.
        render: the section's text.
    """
    options = parse_arguments(doc.splitlines()[0], name, cases)
    results = Results(options.out)
    if not options.render:
        for case in options.only:
            measure(case, options, results)
    publish(name, options, render(options, results))
