"""Time a search step of one thread alone, and while another search of one thread computes beside it (make bench).

    python benchmarks/two_searches.py               # measure and write the table to docs/performance.md
    python benchmarks/two_searches.py --quick       # check that the benchmark runs

Several seeds or arms are often searched side by side, one on each core. They share the memory and the last cache.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import paired
import report
import search_step

ALONE, BESIDE = "alone", "beside another"
SHAPES = {"C=8, 4 cells": {"channels": 8, "layers": 4}, "C=16, 8 cells": {"channels": 16, "layers": 8}}


def flags_of(name: str, quick: bool) -> dict[str, Any]:
    """The settings of a case as command-line flags. Others have the paper's values."""
    shape = {"channels": 4, "layers": 3, "batch_size": 8} if quick else {**SHAPES[name], "batch_size": 64}
    return {**shape, "relax": "softmax", "loss": "ce", "order": 1, "kernels": "compiled"}


def facts_of(name: str, quick: bool) -> dict[str, Any]:
    """The facts in which all rounds of a table must agree."""
    return {"machine": report.machine(), **flags_of(name, quick)}


def measure(name: str, options: argparse.Namespace, results: paired.Results) -> None:
    """Time steps of a search by itself and together with those of a second one, in turn."""
    facts, flags = facts_of(name, options.quick), flags_of(name, options.quick)
    missing = options.pairs - len(results.rounds(name, facts))
    if missing <= 0:
        return
    with paired.scratch() as scratch, ThreadPoolExecutor(2) as pool:
        search_step.prepare(Path(scratch), flags, 16 if options.quick else 32)
        side = paired.Side(search_step.build_product, (Path(scratch), {**flags, "threads": 1}), paired.OURS)
        workers = [paired.Worker(side), paired.Worker(side)]
        for number in range(paired.WARM_UP_ROUNDS + missing):
            alone = workers[number % 2].step(number)
            both = list(pool.map(lambda worker, step=number: worker.step(step), workers))
            if number >= paired.WARM_UP_ROUNDS:
                slower = max(both, key=lambda taken: taken["seconds"])
                # The other search is meant to be there, so it does not count as a disturbance.
                results.add(name, facts, {ALONE: alone, BESIDE: slower | {"others_share": 0.0}})
        for worker in workers:
            worker.close()


def render(options: argparse.Namespace, results: paired.Results) -> str:
    """The table of all measurements so far, as Markdown."""
    measured = {name: results.rounds(name, facts_of(name, options.quick))[: options.pairs] for name in SHAPES}
    measured = {name: rounds for name, rounds in measured.items() if rounds}
    lines = []
    for name, rounds in measured.items():
        alone, beside = (report.spread(paired.seconds_of(rounds, side)) for side in (ALONE, BESIDE))
        lines.append([name, alone, beside, report.spread(paired.ratios(rounds, ALONE, BESIDE))])
    return "\n\n".join(
        [
            f"`python benchmarks/two_searches.py`, {report.machine()}. Softmax, cross-entropy, first order, batch 64, "
            f"32x32 images, one thread each; {options.pairs} rounds in turn, and of two searches the slower step. "
            f"{paired.disturbance(list(measured.values()))}",
            report.table(["supernet", "seconds a step, alone", "beside another", "times as long"], lines),
        ]
    )


if __name__ == "__main__":
    paired.run(__doc__, "two_searches", list(SHAPES), measure, render)
