"""Two ways of doing the same thing, timed in turn, each in a process of its own: A B A B.

In turn, because a machine's speed drifts; in processes of their own, so that each has its own peak memory. Only one
computes at a time. The first round warms up; in every round both sides must give the same losses. Each timed round is
written to a file as it ends: an interrupted run goes on from there.
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
from ssfnas_cli.data.build import build_dataset
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.loop import peak_memory_bytes
from ssfnas_cli.main import SPIN_LIMIT
from ssfnas_cli.settings import MakeDatasetSettings

OURS = dict([SPIN_LIMIT])  # the program's own environment; a direct side keeps torch's, with which it is faster here
WARM_UP_ROUNDS = 1  # allocates what later steps reuse
TOLERANCE = 1e-3  # relative, of the first step's losses in float32
LATER_TOLERANCE = 0.05  # rounding errors grow from step to step

Step = Callable[[int], Mapping[str, float]]  # the step's number -> its losses


class Side(NamedTuple):
    """One way of doing it.

    `build(*arguments)` runs in the side's own process and gives the function that is timed; `environ` is added to that
    process's environment before torch is loaded.
    """

    build: Callable[..., Step]
    arguments: tuple[Any, ...]
    environ: Mapping[str, str] = {}


class Worker:
    """A side in its process."""

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
        """Take a step: `seconds`, `values`, and the process's peak memory so far, `peak_bytes`."""
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
    """Build, then step when told. Everything is imported by now, so what is held already is the floor."""
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
    """Processor time the whole machine has spent, what its host took away included; the clock's ticks are 10 ms."""
    try:
        ticks = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return time.process_time()  # nothing is known of others
    user, nice, system, _, _, irq, softirq, steal = map(int, ticks[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


class Results:
    """Rounds by case in a file of JSON lines. A round is {side: what `Worker.step` gave}."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, case: str, facts: Mapping[str, Any], sides: Mapping[str, Any]) -> None:
        """Append a round."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"case": case, "facts": facts, "sides": sides}) + "\n")

    def rounds(self, case: str, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The rounds of a case measured under just these facts (machine, shapes)."""
        if not self.path.exists():
            return []
        lines = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
        return [
            line["sides"] for line in lines if line["case"] == case and line["facts"] == json.loads(json.dumps(facts))
        ]


def compare(case: str, facts: Mapping[str, Any], sides: Mapping[str, Side], num_rounds: int, results: Results) -> None:
    """Bring a case to `num_rounds` rounds in `results`."""
    have = len(results.rounds(case, facts))
    if have >= num_rounds:
        return
    workers = {name: Worker(side) for name, side in sides.items()}
    for number in range(WARM_UP_ROUNDS + num_rounds - have):
        taken = {name: worker.step(number) for name, worker in workers.items()}
        _check_agreement(case, taken, LATER_TOLERANCE if number else TOLERANCE)
        if number >= WARM_UP_ROUNDS:
            results.add(case, facts, taken)
        seconds = ", ".join(f"{name} {one['seconds']:.2f} s" for name, one in taken.items())
        print(f"{case}: step {number}: {seconds}", file=sys.stderr, flush=True)
    for worker in workers.values():
        worker.close()


def _check_agreement(case: str, taken: Mapping[str, Any], tolerance: float) -> None:
    first, *others = taken.values()
    for other in others:
        for key, value in first["values"].items():
            apart = abs(other["values"][key] - value) / max(1.0, abs(value))
            if not apart <= tolerance:  # so that a NaN fails, too
                raise SystemExit(f"{case}: the sides do not compute the same: {key} {value}, {other['values'][key]}")


# What the tables hold


def seconds_of(rounds: Sequence[Mapping[str, Any]], side: str) -> list[float]:
    """A side's seconds, round by round."""
    return [one[side]["seconds"] for one in rounds]


def ratios(rounds: Sequence[Mapping[str, Any]], side: str, reference: str) -> list[float]:
    """How many times faster `side` is, round by round."""
    pairs = zip(seconds_of(rounds, reference), seconds_of(rounds, side), strict=True)
    return [slow / fast for slow, fast in pairs]


def memory_of(rounds: Sequence[Mapping[str, Any]], side: str) -> tuple[float, float]:
    """A side's peak memory in GB: of the whole process, and beyond what it held before anything was built."""
    peak = max(one[side]["peak_bytes"] for one in rounds)
    return peak / 1e9, (peak - statistics.median(one[side]["base_bytes"] for one in rounds)) / 1e9


def row(rounds: Sequence[Mapping[str, Any]], side: str, reference: str) -> list[str]:
    """Seconds, times faster, peak memory (beyond the imports), and its share of the reference's."""
    peak, own = memory_of(rounds, side)
    share = peak / memory_of(rounds, reference)[0]
    faster = "" if side == reference else report.spread(ratios(rounds, side, reference), 1)
    held = "" if side == reference else f"{100 * share:.0f} %"
    return [report.spread(seconds_of(rounds, side)), faster, f"{peak:.2f} ({own:.2f})", held]


def disturbance(cases: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """How much of the machine others used during the timed steps, as a sentence; waiting threads suffer most."""
    shares = [side.get("others_share", 0.0) for rounds in cases for one in rounds for side in one.values()]
    return f"Other processes took at most {100 * max(shares, default=0.0):.0f} % of the processors during any step."


HEADER = ["seconds a step", "times faster", "peak GB (beyond imports)", "share of memory"]


# What both benchmarks need around it


def parse_arguments(description: str, name: str, cases: Sequence[str]) -> argparse.Namespace:
    """The command line of a benchmark."""
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
    """The tensors whose names begin so, without that beginning."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def random_images(folder: Path, num_train: int, side: int, num_classes: int = 10) -> DataSet:
    """A data set of uint8 noise [side, side, 3], the classes alike in number."""
    rng, arrays = np.random.default_rng(0), {}
    for split, num in {"train": num_train, "test": num_classes}.items():
        arrays[f"{split}_images"] = rng.integers(0, 256, (num, side, side, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(num) % num_classes)[:, None].astype(np.uint8)
    np.savez(folder / "noise.npz", **arrays)
    plan = MakeDatasetSettings(source="npz", root=str(folder / "noise.npz"), dist="balance", mu=1.0)
    return build_dataset(plan, folder / "data", lambda line: None)


def check_kernels(device: Device, wanted: str) -> None:
    """Refuse to time torch's kernels under the name of compiled ones."""
    if wanted == "compiled" and device.cells is None:
        raise SystemExit("the compiled kernels are not here: a C++ compiler is needed (or the cases without them)")


def scratch() -> tempfile.TemporaryDirectory:
    """A folder for data and starting points, gone afterwards."""
    return tempfile.TemporaryDirectory(prefix="ssfnas-benchmark-")


def publish(section: str, options: argparse.Namespace, text: str) -> None:
    """Into docs/performance.md, and printed; of a quick run only the latter."""
    if options.quick:
        print(text)
    else:
        report.write_section(section, text)
