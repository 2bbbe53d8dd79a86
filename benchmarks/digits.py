"""Compare the step of a search on images of 8x8 pixels with a direct implementation (make bench).

    python benchmarks/digits.py                     # measure and write the table to docs/performance.md
    python benchmarks/digits.py --quick             # check that the benchmark runs

This is the size of `ssfnas search` on the embedded digits, the demo: there the maps are so small that calls cost more
than arithmetic. The sides are those of search_step.py, on one thread each. Of the product's step it is also measured
which share the kernels take; the rest is Python and torch.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import paired
import report
import search_step

from ssfnas_cli.native import cells

SIDE = 8
CASES = {
    f"{loss}-{batch_size}": search_step.Case("sigmoid", loss, 1, batch_size)
    for loss, batch_size in (("barlow", 64), ("barlow", 32), ("ce", 32))
}


def build_product(folder: Path, flags: Mapping[str, Any]) -> paired.Step:
    """Build the product's step, which returns beside its losses the seconds that its kernels took."""
    spent = 0.0
    bind = cells.bind

    def timed(function: Any, *structures: Any, **more: Any) -> Callable[..., None]:
        run = bind(function, *structures, **more)

        def call(*arguments: Any) -> None:
            nonlocal spent
            began = time.perf_counter()
            run(*arguments)
            spent += time.perf_counter() - began

        return call

    cells.bind = timed
    step = search_step.build_product(folder, flags)

    def with_kernels(number: int) -> dict[str, float]:
        nonlocal spent
        spent = 0.0
        return {**step(number), "kernels_seconds": spent}

    return with_kernels


def flags_of(name: str, quick: bool) -> dict[str, Any]:
    """The settings of a search as command-line flags."""
    case = {key: value for key, value in CASES[name]._asdict().items() if key != "partial_channels"}
    shape = {"channels": 4, "layers": 3, "batch_size": 8} if quick else {"channels": 8, "layers": 4}
    return {**case, "threads": 1, **shape}


def facts_of(name: str, quick: bool) -> dict[str, Any]:
    """The facts in which all rounds of a table must agree."""
    return {"machine": report.machine(), "side": SIDE, **flags_of(name, quick)}


def measure(name: str, options: argparse.Namespace, results: paired.Results) -> None:
    """Time a case."""
    flags = flags_of(name, options.quick)
    with paired.scratch() as scratch:
        folder = Path(scratch)
        num_steps = search_step.prepare(folder, flags, SIDE)
        sides = {
            "direct": paired.Side(search_step.build_direct, (folder, flags, num_steps), {"OMP_NUM_THREADS": "1"}),
            "ssfnas": paired.Side(build_product, (folder, flags), paired.OURS | {"OMP_NUM_THREADS": "1"}),
        }
        paired.compare(name, facts_of(name, options.quick), sides, options.pairs, results)


def render(options: argparse.Namespace, results: paired.Results) -> str:
    """The table of all measurements so far, as Markdown."""
    lines, timed = [], []
    for name, case in CASES.items():
        rounds = results.rounds(name, facts_of(name, options.quick))[: options.pairs]
        timed.append(rounds)
        for side in rounds[0] if rounds else ():
            taken = [sides[side] for sides in rounds]
            shares = [step["values"].get("kernels_seconds", 0.0) / step["seconds"] for step in taken]
            share = f"{100 * statistics.median(shares):.0f} %" if side == "ssfnas" else ""
            lines.append([case.loss, str(case.batch_size), side, share, *paired.row(rounds, side, "direct")])
    flags = flags_of(next(iter(CASES)), options.quick)
    return "\n\n".join(
        [
            f"`python benchmarks/digits.py`, {report.machine()}. Sigmoid relaxation, first order, "
            f"C={flags['channels']}, {flags['layers']} cells, {SIDE}x{SIDE} images, float32, one thread; "
            f"{options.pairs} pairs in turn. {paired.disturbance(timed)}",
            report.table(["loss", "batch", "step", "of it kernels", *paired.HEADER], lines),
        ]
    )


if __name__ == "__main__":
    paired.run(__doc__, "digits", list(CASES), measure, render)
