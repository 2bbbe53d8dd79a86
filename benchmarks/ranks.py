"""Compare two ranks of one thread each with one process of one and of two threads (make bench).

    python benchmarks/ranks.py                      # measure all cases and write the tables to docs/performance.md
    python benchmarks/ranks.py --quick              # check that the benchmark runs
    python benchmarks/ranks.py --only search-local --pairs 5

The global batch is the same on all sides, and so are weights, images and losses (but with local statistics, which are
other statistics). The compiled kernels compute on all sides; with global statistics they stop between two stages of a
cell, until the ranks have summed theirs. One rank alone is one process: it calls nothing that others would have to
answer (tests/ranks/test_one_rank.py). Two processes that compute half a batch each side by side, and have nothing to do
with each other, show what the machine has for two ranks at most. The second table projects what is sent to more ranks,
on the assumptions named there.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import paired
import report
import retrain_step
import search_step
import torch

from registry import collective
from ssfnas_cli import world

NUM_RANKS, NUM_BATCHES = 2, 2
ONE, THREADS, RANKS = "one process, one thread", "one process, two threads", "two ranks, one thread each"
APART = "two processes, half the batch each"
GENOTYPE = "DARTS_V2"


class Case(NamedTuple):
    """A training, and how its batch normalisation takes statistics."""

    kind: str
    batch_stats: str


CASES = {f"{kind}-{stats}": Case(kind, stats) for kind in ("search", "retrain") for stats in ("global", "local")}


class Network(NamedTuple):
    """What joins the ranks: bytes a second of each, and seconds until a message arrives."""

    bandwidth: float
    latency: float


NETWORKS = {"10 Gb/s, 50 us": Network(1.25e9, 50e-6), "100 Gb/s, 5 us": Network(12.5e9, 5e-6)}
PROJECTED = (8, 64, 512)


class Traffic(NamedTuple):
    """What one rank gives in a step: messages and bytes of sums over the ranks, and of what all ranks gather."""

    summed: float
    summed_bytes: float
    gathered: float
    gathered_bytes: float


# The sides


def build(folder: Path, kind: str, flags: Mapping[str, Any]) -> paired.Step:
    """Build the step of this process: of all images if it is alone, else of its share of each batch."""
    if kind == "search":
        phase: Any = search_step.make_phase(folder, flags)
        epoch, losses = 0, ["alpha_loss", "weight_loss"]
    else:
        phase = retrain_step.make_phase(folder, GENOTYPE, flags)
        epoch, losses = retrain_step.EPOCH, ["loss"]
    if flags["batch_stats"] == "local":  # other statistics than one process has, and so other losses: none to compare
        losses = []
    paired.check_kernels(phase.device, flags["kernels"])
    batches = [batch for batch, _ in zip(phase.batches(epoch, 0), range(NUM_BATCHES), strict=False)]

    def step(number: int) -> dict[str, float]:
        torch.manual_seed(number)
        values = phase.step(epoch, number % phase.num_steps(epoch), batches[number % NUM_BATCHES])
        return {name: values[name] for name in losses}

    return step


def build_two(folder: Path, kind: str, flags: Mapping[str, Any]) -> paired.Step:
    """Build the step of the first of two processes, which starts the other one and tells it when to take its step.

    Whether they are ranks says the environment.
    """
    others = [start_other(rank, folder, kind, flags) for rank in range(1, NUM_RANKS)]
    assert world.enter(["search"])
    gathered = count_gathered()
    step = build(folder, kind, flags)

    def step_together(number: int) -> dict[str, float]:
        for other in others:
            print(number, file=other.stdin, flush=True)
        sent, before = collective.traffic(), dict(gathered)
        values = step(number)
        for other in others:
            assert other.stdout is not None and other.stdout.readline() == "done\n"
        now = {name: collective.traffic()[name] - sent[name] for name in sent}
        of_gathered = {name: gathered[name] - before[name] for name in gathered}
        traffic = Traffic(
            now["messages"] - of_gathered["messages"],
            now["bytes"] - of_gathered["bytes"],
            of_gathered["messages"],
            of_gathered["bytes"],
        )
        return values | traffic._asdict()

    return step_together


def count_gathered() -> dict[str, int]:
    """Count from now on what is gathered: of that, each rank gets the more the more ranks there are."""
    counted, gather = {"messages": 0, "bytes": 0}, collective.all_gather

    def counting(x: torch.Tensor) -> torch.Tensor:
        counted["messages"] += 1
        counted["bytes"] += x.numel() * x.element_size()
        return gather(x)

    collective.all_gather = counting
    return counted


def start_other(rank: int, *arguments: Any) -> subprocess.Popen[str]:
    """Start another process, which takes a step for every line of its stdin, and says when it is done."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import ranks; ranks.follow()"
    environ = os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    print(json.dumps(arguments, default=str), file=process.stdin, flush=True)
    return process


def follow() -> None:
    """Be a process that `start_other` has started."""
    folder, kind, flags = json.loads(sys.stdin.readline())
    assert world.enter(["search"])
    step = build(Path(folder), kind, flags)
    for line in sys.stdin:
        step(int(line))
        print("done", flush=True)
    os._exit(0)  # the first rank is gone, and with it what the ranks would have to part from


# The run


def flags_of(case: Case, quick: bool) -> dict[str, Any]:
    """The settings of a case as command-line flags. Others have the paper's values."""
    shape = {"channels": 4, "layers": 3, "batch_size": 8} if quick else {"channels": 16, "layers": 8, "batch_size": 64}
    return {**shape, "kernels": "compiled", "batch_stats": case.batch_stats}


def facts_of(case: Case, quick: bool) -> dict[str, Any]:
    """The facts in which all rounds of a table must agree."""
    return {"machine": report.machine(), "kind": case.kind, **flags_of(case, quick)}


def measure(name: str, options: argparse.Namespace, results: paired.Results) -> None:
    """Time the sides alternately."""
    case, flags = CASES[name], flags_of(CASES[name], options.quick)
    with paired.scratch() as scratch:
        folder = Path(scratch)
        paired.random_images(folder, 2 * NUM_BATCHES * flags["batch_size"], 16 if options.quick else 32)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        place = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": NUM_RANKS, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        sides = {
            side: paired.Side(build, (folder, case.kind, flags | {"threads": threads}), paired.OURS)
            for side, threads in {ONE: 1, THREADS: 2}.items()
        }
        environ = paired.OURS | {key: str(value) for key, value in place.items()}
        sides[RANKS] = paired.Side(build_two, (folder, case.kind, flags | {"threads": 1}), environ)
        half = {"threads": 1, "batch_size": flags["batch_size"] // NUM_RANKS}
        sides[APART] = paired.Side(build_two, (folder, case.kind, flags | half), paired.OURS, compared=False)
        paired.compare(name, facts_of(case, options.quick), sides, options.pairs, results)


# The tables


def traffic_of(rounds: Sequence[Mapping[str, Any]]) -> Traffic:
    """What a rank sends in a step, which is the same in every step."""
    values = rounds[-1][RANKS]["values"]
    return Traffic(*(values[name] for name in Traffic._fields))


def communication(traffic: Traffic, num_ranks: int, network: Network) -> tuple[float, float]:
    """Seconds of a step in which messages are under way, and in which bytes are, for rings of ranks.

    A sum takes 2 (n - 1) messages in turn, each of a share 1/n of the bytes; what is gathered takes n - 1 of all bytes.
    The loop adds one small sum, by which the ranks agree on whether to stop.
    """
    others = num_ranks - 1
    waiting = (2 * (traffic.summed + 1) + traffic.gathered) * others * network.latency
    sent = 2 * others / num_ranks * traffic.summed_bytes + others * traffic.gathered_bytes
    return waiting, sent / network.bandwidth


def render(options: argparse.Namespace, results: paired.Results) -> str:
    """The tables of all measurements so far, as Markdown."""
    measured = {name: results.rounds(name, facts_of(case, options.quick)) for name, case in CASES.items()}
    measured = {name: rounds[: options.pairs] for name, rounds in measured.items() if rounds}
    lines = [line for name, rounds in measured.items() for line in rows(name, rounds)]
    # What two processes take is not the work of others.
    alone = [[{side: sides[side] for side in (ONE, THREADS)} for sides in rounds] for rounds in measured.values()]
    shape = flags_of(CASES["search-global"], options.quick)
    header = ["what", "batch_stats", "side", "seconds a step", "times faster", "efficiency"]
    return "\n\n".join(
        [
            f"`python benchmarks/ranks.py`, {report.machine()}. C={shape['channels']}, {shape['layers']} cells, a "
            f"global batch of {shape['batch_size']}; the search is softmax, cross-entropy, first order, the retraining "
            f"{GENOTYPE}; {options.pairs} rounds in turn. The efficiency is how many times faster it is than one "
            "process of one thread, divided by two. "
            f"{paired.disturbance(alone)}",
            report.table([*header, "messages a step", "MB a step", "peak GB a process"], lines),
            "Projected efficiency of more ranks, each with the share of one of the two ranks, so with a global batch "
            "that grows with them. Assumed: a step computes for half the time of the one process, rings of ranks, "
            "nothing overlaps, and the given network; in brackets the seconds that messages wait, and that bytes take.",
            report.table(["what", "batch_stats", "network", *map(str, PROJECTED)], projection(measured)),
        ]
    )


def rows(name: str, rounds: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The rows of a case."""
    case, lines = CASES[name], []
    traffic = traffic_of(rounds)
    for side in (ONE, THREADS, RANKS, APART):
        times = paired.ratios(rounds, side, ONE)
        faster = ["", ""] if side == ONE else [report.spread(times), report.spread([t / NUM_RANKS for t in times])]
        sent = ["", ""]
        if side == RANKS:
            sent = [f"{traffic.summed + traffic.gathered:.0f}"]
            sent += [f"{(traffic.summed_bytes + traffic.gathered_bytes) / 1e6:.2f}"]
        memory = f"{paired.memory_of(rounds, side)[0]:.2f}"
        seconds = report.spread(paired.seconds_of(rounds, side))
        lines.append([case.kind, case.batch_stats, side, seconds, *faster, *sent, memory])
    return lines


def projection(measured: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[list[str]]:
    """The rows of the projection."""
    lines = []
    for name, rounds in measured.items():
        computing = statistics.median(paired.seconds_of(rounds, ONE)) / NUM_RANKS
        for title, network in NETWORKS.items():
            cells = []
            for num_ranks in PROJECTED:
                waiting, sending = communication(traffic_of(rounds), num_ranks, network)
                efficiency = computing / (computing + waiting + sending)
                cells.append(f"{efficiency:.2f} ({waiting:.2g} + {sending:.2g})")
            lines.append([*CASES[name], title, *cells])
    return lines


if __name__ == "__main__":
    paired.run(__doc__, "ranks", list(CASES), measure, render)
