"""Time a training step on one thread and on two, on an idle machine and beside a busy process (make bench).

    python benchmarks/shared_machine.py               # measure and write the table to docs/performance.md
    python benchmarks/shared_machine.py --quick       # check that the benchmark runs

The busy process occupies one core in its own session, as a process of another user would. A single thread then has the
other core to itself, but one of two threads must share. The steps are those of `benchmarks/retrain_step.py`, and the
configurations alternate.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import paired
import report
import retrain_step

GENOTYPE = "DARTS_V2"
SHAPE = {"channels": 16, "layers": 8, "batch_size": 32}
QUICK = {"channels": 4, "layers": 3, "batch_size": 8}
THREADS = (1, 2)
KERNELS = ("compiled", "torch")
NEIGHBOURS = ("idle machine", "beside a busy process")
STEPS = 4  # consecutive timed steps of a configuration in each round


@contextlib.contextmanager
def busy_process(enabled: bool) -> Iterator[None]:
    """Run a process that computes without pause within this context, if enabled."""
    if not enabled:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure seconds per step: a dictionary for each round, kind of kernels, neighbour and number of threads."""
    shape, rows = (QUICK if options.quick else SHAPE), []
    with paired.scratch() as scratch:
        folder = Path(scratch)
        flags = {**shape, "kernels": "torch"}
        retrain_step.prepare(folder, GENOTYPE, flags)
        workers = {
            (kernels, threads): paired.Worker(
                paired.Side(
                    retrain_step.build_product,
                    (folder, GENOTYPE, {**shape, "kernels": kernels, "threads": threads}),
                    paired.OURS,
                )
            )
            for kernels in options.kernels
            for threads in THREADS
        }
        for number in range(paired.WARM_UP_ROUNDS + options.pairs):
            for neighbour in NEIGHBOURS:
                with busy_process(neighbour == NEIGHBOURS[1]):
                    for (kernels, threads), worker in workers.items():
                        seconds = [worker.step(step)["seconds"] for step in range(STEPS)]
                        case = {"kernels": kernels, "neighbour": neighbour, "threads": threads}
                        if number >= paired.WARM_UP_ROUNDS:
                            rows.append({**case, "round": number, "seconds": statistics.median(seconds)})
                        print(
                            f"round {number}: {case}: {statistics.median(seconds):.3f} s", file=sys.stderr, flush=True
                        )
        for worker in workers.values():
            worker.close()
    return rows


def render(options: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> str:
    """The table of all rounds as Markdown."""
    lines = []
    for kernels in options.kernels:
        for neighbour in NEIGHBOURS:
            one, two = (
                [
                    row["seconds"]
                    for row in rows
                    if (row["kernels"], row["neighbour"], row["threads"]) == (kernels, neighbour, threads)
                ]
                for threads in THREADS
            )
            ratios = [slow / fast for slow, fast in zip(one, two, strict=True)]
            lines.append([kernels, neighbour, report.spread(one, 3), report.spread(two, 3), report.spread(ratios)])
    shape = QUICK if options.quick else SHAPE
    return "\n\n".join(
        [
            f"`python benchmarks/shared_machine.py`, {report.machine()}. {GENOTYPE}, C={shape['channels']}, "
            f"{shape['layers']} cells, batch {shape['batch_size']}, 32x32 images, float32; {options.pairs} rounds in "
            f"turn, {STEPS} steps each.",
            report.table(
                ["kernels", "machine", "seconds a step, 1 thread", "2 threads", "times faster on 2"],
                lines,
            ),
        ]
    )


def main() -> None:
    """Measure, then write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5, help="timed rounds (5)")
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS), help="what computes the cells")
    parser.add_argument("--quick", action="store_true", help="a tiny shape, to try the script; docs are not written")
    parser.add_argument("--out", type=Path, help="also write the rounds here, as JSON lines")
    options = parser.parse_args()
    rows = measure(options)
    if options.out is not None:
        options.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    paired.publish("shared_machine", options, render(options, rows))


if __name__ == "__main__":
    main()
