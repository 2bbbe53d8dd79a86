"""Compare the steps of the relaxations on one supernet: time, and peak memory (make bench).

    python benchmarks/relaxations.py                # measure and write the table to docs/performance.md
    python benchmarks/relaxations.py --quick        # check that the benchmark runs

A step consists of an alpha step and a weight step, as in search_step.py. `gumbel` computes one op an edge, the others
all of them. A path that is drawn anew at every step also has costs of its own, which are part of its time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import paired
import report
import search_step

RELAXATIONS = ("softmax", "dirichlet", "gumbel")
CASES = {kernels: search_step.Case("softmax", "ce", 1, 64, kernels) for kernels in ("compiled", "torch")}


def measure(name: str, options: argparse.Namespace, results: paired.Results) -> None:
    """Time the relaxations alternately."""
    flags = search_step.flags_of(CASES[name], options.quick)
    with paired.scratch() as scratch:
        folder = Path(scratch)
        search_step.prepare(folder, flags, search_step.shape_of(options.quick)["image_size"])
        given = {relax: (folder, flags | {"relax": relax}) for relax in RELAXATIONS}
        sides = {relax: paired.Side(search_step.build_alone, given[relax], paired.OURS) for relax in RELAXATIONS}
        paired.compare(name, search_step.facts_of(CASES[name], options.quick), sides, options.pairs, results)


def render(options: argparse.Namespace, results: paired.Results) -> str:
    """The table of all measurements so far, as Markdown."""
    lines, timed = [], []
    for name, case in CASES.items():
        rounds = results.rounds(name, search_step.facts_of(case, options.quick))[: options.pairs]
        timed.append(rounds)
        for relax in RELAXATIONS if rounds else ():
            lines.append([relax, name, *paired.row(rounds, relax, "softmax")])
    shape = search_step.shape_of(options.quick)
    text = [
        f"`python benchmarks/relaxations.py`, {report.machine()}. C={shape['channels']}, {shape['layers']} cells, "
        f"{shape['image_size']}x{shape['image_size']} images, float32, cross-entropy, first order, batch "
        f"{search_step.flags_of(CASES['torch'], options.quick)['batch_size']}; {options.pairs} rounds in turn. "
        f"{paired.disturbance(timed)}",
        report.table(["relaxation", "kernels", *paired.HEADER], lines),
    ]
    return "\n\n".join(text)


if __name__ == "__main__":
    paired.run(__doc__, "relaxations", list(CASES), measure, render)
