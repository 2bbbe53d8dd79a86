"""What a sweep will cost: `--dry-run` of its searches and retrainings, each kind measured once, added up.

Runs that differ only in their seeds count as equal. One random genotype stands for the others, and for a genotype that
is not found yet; a data set that is not made yet is made in a temporary folder. Each is measured by a process of its
own, one at a time: the peak memory of a process is that of its one run, and others beside it would falsify the time.

Time is that of the steps of searches and retrainings. What else the sweep runs is counted by number, not by time:
cells of the other stages, and the start of every process, which imports torch, and of which one is measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssfnas_cli import stop
from ssfnas_cli.artifacts.named import RANDOM
from ssfnas_cli.console import log
from ssfnas_cli.sweep.cells import TRAINING, Cell
from ssfnas_cli.sweep.runner import PROGRAM, last_error
from ssfnas_cli.sweep.state import is_done, parse_words

STAND_IN = "random-0"  # for other random genotypes, and those that are not there yet
START = (sys.executable, "-P", "-c", "import ssfnas_cli.engine.evaluate")  # what each process imports at least
FIGURES = ("total_seconds", "disk_bytes", "peak_memory_bytes")


def predict(cells: Sequence[Cell], jobs: int, threads: int) -> dict[str, Any]:
    """Predict the cost of the searches and retrainings among the cells.

    Args:
        cells: what is missing.
        jobs: how many run at a time.
        threads: of each; see `Runner`.

    Returns:
        The output of `sweep --dry-run`: seconds and bytes of every cell, and their sums. A cell whose dry run fails has
        an `error` instead and is not counted. `counted` and `not_counted` are the numbers of cells of each stage whose
        time is in the sums, and is not; `starts` is the number of processes, whose starts, of `start_seconds` each,
        are not in them either.

    Raises:
        Stopped: a signal has arrived.
    """
    with stop.interruptible("in a dry run; it leaves nothing behind"), tempfile.TemporaryDirectory() as name:
        measured: dict[str, dict[str, Any]] = {}
        folder = Path(name)
        data = {cell.output: folder / cell.name for cell in cells if cell.stage == "data" and not is_done(cell)}
        entries = []
        for cell in cells:
            if cell.stage == "data" and cell.output in data:
                _ask([*cell.argv[:-1], str(data[cell.output])], folder)
            elif cell.stage in TRAINING:
                argv = _stand_in(cell, data, threads)
                key = repr(parse_words(argv, ("--seed", "-o")))  # what decides the cost
                if key not in measured:
                    log.info("dry run of %s", cell.name)
                    measured[key] = _ask([*argv, "--dry-run", "--json"], folder)
                entries.append({"name": cell.name, "stage": cell.stage, **measured[key]})
        data_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and file.parent != folder)
    counted = Counter(entry["stage"] for entry in entries if "error" not in entry)
    not_counted = Counter(cell.stage for cell in cells) - counted
    told: dict[str, Any] = {"counted": dict(counted), "not_counted": dict(not_counted)}
    told |= {"starts": len(cells), "start_seconds": _start_seconds() if cells else 0.0}
    return _sum(entries, data_bytes, jobs) | told


def _start_seconds() -> float:
    """How long a process takes before its own work begins, measured once."""
    began = time.monotonic()
    subprocess.run(START, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return round(time.monotonic() - began, 1)


def _stand_in(cell: Cell, data: Mapping[Path, Path], threads: int) -> list[str]:
    """The words of a cell's command, with what is there in place of what is not."""
    words = [str(data.get(Path(word), word)) for word in cell.with_threads(threads)]
    if cell.stage == "retrain" and (RANDOM.fullmatch(words[1]) if cell.source is None else not cell.source.exists()):
        words[1] = STAND_IN
    return words


def _ask(argv: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run a command and return the figures that it prints, or its error."""
    path = folder / "said"
    with path.open("wb") as said:
        done = subprocess.run([*PROGRAM, *argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said)
    if done.returncode:
        return {"error": last_error(path, 0, done.returncode)}
    with contextlib.suppress(ValueError):
        printed = json.loads(done.stdout)
        return {name: printed[name] for name in FIGURES if name in printed}
    return {"error": "it printed no prediction"}


def _sum(entries: Sequence[dict[str, Any]], data_bytes: int, jobs: int) -> dict[str, Any]:
    whole = [entry for entry in entries if "error" not in entry]
    seconds = sum(entry["total_seconds"] for entry in whole)
    return {
        "kind": "sweep-dry-run",
        "cells": list(entries),
        "failed": len(entries) - len(whole),
        "jobs": jobs,
        "total_seconds": round(seconds, 1),
        # At best: as if the longest cell did not keep the others waiting.
        "elapsed_seconds": round(max([seconds / jobs, *(entry["total_seconds"] for entry in whole)]), 1),
        "disk_bytes": sum(entry["disk_bytes"] for entry in whole) + data_bytes,
        "data_bytes": data_bytes,
        "peak_memory_bytes": max((entry["peak_memory_bytes"] for entry in whole), default=0),
        "cores": os.cpu_count(),
    }
