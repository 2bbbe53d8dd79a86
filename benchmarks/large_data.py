"""The memory of making a large data set, and of training on it.

    python benchmarks/large_data.py [--gigabytes 10] [--side 224] [--source npz idx list] [--workers 0 2] [--quick]

It writes images of noise as a MedMNIST file (or IDX files, or PNG files with lists), makes a data set of them, and
trains a small network on it for an epoch. What is counted is anonymous memory, which the system cannot take back
without swapping: RssAnon of /proc/PID/status, and the shared memory in which batches travel (RssShmem), added up over
the command and its loader processes, so that pages that processes share count in each. Mapped pages of files do not
count. The same training on a few images shows what the network itself takes. The disk needs room for three times the
size; the files are deleted at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import report
from PIL import Image

from ssfnas_cli.machine import environment

SSFNAS = str(Path(sys.executable).with_name("ssfnas"))
CLASSES, NETWORK, QUICK_NETWORK, BATCH = 10, "shufflenet_v2_x0_5", "resnet20", 64
NUM_FEW, QUICK_NUM_FEW = 8 * BATCH, BATCH  # images that show what the network takes
POLL_SECONDS = 0.05


class Measured(NamedTuple):
    """What a command took: seconds on the clock, seconds of processor time, and its peak of anonymous memory in MB."""

    seconds: float
    processor_seconds: float
    megabytes: float


def images(num: int, side: int, seed: int) -> Iterator[np.ndarray]:
    """Noise, uint8 [n, side, side, 3], some at a time."""
    random = np.random.default_rng(seed)
    for start in range(0, num, BATCH):
        yield random.integers(0, 256, (min(BATCH, num - start), side, side, 3), np.uint8)


def labels(num: int) -> np.ndarray:
    """Every class as often as the others."""
    return (np.arange(num) % CLASSES).astype(np.uint8)


def write_npz(folder: Path, side: int, counts: dict[str, int]) -> list[str]:
    """A MedMNIST file, whose arrays are stored as they are."""
    with zipfile.ZipFile(folder / "images.npz", "w") as archive:
        for seed, (split, num) in enumerate(counts.items()):
            header = {"descr": "|u1", "fortran_order": False, "shape": (num, side, side, 3)}
            with archive.open(f"{split}_images.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array_header_1_0(stream, header)
                for part in images(num, side, seed):
                    stream.write(part.data)
            with archive.open(f"{split}_labels.npy", "w") as stream:
                np.lib.format.write_array(stream, labels(num))
    return ["--source", "npz", "--root", str(folder / "images.npz")]


def write_idx(folder: Path, side: int, counts: dict[str, int]) -> list[str]:
    """IDX files."""
    for seed, (split, num) in enumerate(counts.items()):
        for what, dims, parts in (
            ("images", (num, side, side, 3), images(num, side, seed)),
            ("labels", (num,), iter([labels(num)])),
        ):
            with (folder / f"{split}-{what}-idx{len(dims)}-ubyte").open("wb") as stream:
                stream.write(bytes([0, 0, 8, len(dims)]) + np.array(dims, ">u4").tobytes())
                for part in parts:
                    stream.write(part.data)
    return ["--source", "idx", "--root", str(folder)]


def write_list(folder: Path, side: int, counts: dict[str, int]) -> list[str]:
    """PNG files, compressed as little as possible because noise cannot be, and a list a split."""
    for seed, (split, num) in enumerate(counts.items()):
        (folder / split).mkdir()
        with (folder / f"{split}.txt").open("w") as lines:
            for place, image in enumerate(image for part in images(num, side, seed) for image in part):
                Image.fromarray(image).save(folder / split / f"{place}.png", compress_level=0)
                lines.write(f"{split}/{place}.png {place % CLASSES}\n")
    return ["--source", "list", "--root", str(folder)]


SOURCES = {"npz": write_npz, "idx": write_idx, "list": write_list}


def anonymous_bytes(process: int) -> int:
    """Anonymous and shared memory of a process and of those that it has started, in bytes."""
    total = 0
    with contextlib.suppress(OSError):  # it has just ended
        lines = (line.split() for line in Path(f"/proc/{process}/status").read_text().splitlines())
        total = sum(1024 * int(line[1]) for line in lines if line[0] in ("RssAnon:", "RssShmem:"))
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            total += sum(anonymous_bytes(int(child)) for child in children.read_text().split())
    return total


def measure(*argv: str | Path) -> Measured:
    """Run a command, which must succeed."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    process = subprocess.Popen([SSFNAS, *map(str, argv)], stdout=subprocess.DEVNULL, env=environ)
    peak, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(POLL_SECONDS):
            peak = max(peak, anonymous_bytes(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    ended.set()
    watcher.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"ssfnas {argv[0]} ended with {process.returncode}")
    return Measured(time.perf_counter() - began, usage.ru_utime + usage.ru_stime, peak / 1e6)


def train(network: str, data: Path, run: Path, workers: int) -> Measured:
    """An epoch."""
    shape = ["--epochs", "1", "--batch-size", BATCH, "--threads", "1", "--workers", workers, "--preset", "quick"]
    return measure("retrain", network, "--data", data, *map(str, shape), "-o", run, "-q")


def measure_all(options: argparse.Namespace, folder: Path) -> list[list[str]]:
    """The rows of the table."""
    side = options.side
    num = int(options.gigabytes * 1e9) // (side * side * 3)
    num_test = max(CLASSES, num // 50)
    num_few, network = (QUICK_NUM_FEW, QUICK_NETWORK) if options.quick else (NUM_FEW, NETWORK)
    few, networks = folder / "few", {}
    write_few = folder / "few-source"
    write_few.mkdir()
    measure("make-dataset", *write_npz(write_few, side, {"train": num_few, "test": CLASSES}), "-o", few, "-q")
    rows: list[list[str]] = []

    def add(what: str, num_images: int, taken: Measured, beyond: float) -> None:
        times = f"{taken.seconds:,.0f} ({taken.processor_seconds:,.0f})"
        size = f"{num_images * side * side * 3 / 1e9:.2f}"
        rows.append([what, f"{num_images:,}", size, times, f"{taken.megabytes:,.0f}", f"{beyond:,.0f}"])
        print(" | ".join(rows[-1]), file=sys.stderr, flush=True)

    for workers in options.workers:
        networks[workers] = taken = train(network, few, folder / f"few-{workers}", workers)
        add(f"an epoch, {workers} loader processes: the network's", num_few, taken, 0)
    for source in options.source:
        origin, data = folder / source, folder / f"{source}-data"
        origin.mkdir()
        flags = SOURCES[source](origin, side, {"train": num - num_test, "test": num_test})
        taken = measure("make-dataset", *flags, "-o", data, "-q")
        add(f"make-dataset --source {source}", num, taken, taken.megabytes)
        shutil.rmtree(origin)
        if source == options.source[0]:
            for workers in options.workers:
                taken = train(network, data, folder / f"run-{workers}", workers)
                beyond = taken.megabytes - networks[workers].megabytes
                add(f"an epoch, {workers} loader processes", num - num_test, taken, beyond)
        shutil.rmtree(data)
    return rows


def render(options: argparse.Namespace, rows: list[list[str]]) -> str:
    """The section as Markdown."""
    facts: dict[str, Any] = environment()
    command = f"--gigabytes {options.gigabytes:g} --source {' '.join(options.source)}"
    workers = " ".join(map(str, options.workers))
    network = QUICK_NETWORK if options.quick else NETWORK
    return "\n\n".join(
        [
            f"`python benchmarks/large_data.py {command} --workers {workers}`, {facts['processor']}, "
            f"{facts['cores']} cores, 1 thread, torch {facts['torch']}, Python {facts['python']}. Images of noise, "
            f"{options.side}x{options.side} in colour; `retrain {network}`, batch {BATCH}. Memory is the peak of what "
            "the system cannot take back, anonymous and shared, added up over the command and its loader processes, "
            f"looked at every {POLL_SECONDS:g} s; mapped pages of files do not count. Seconds are on the clock and, in "
            "brackets, of processor time.",
            report.table(
                ["step", "images", "GB", "seconds", "peak MB", "beyond the network's MB"],
                rows,
            ),
        ]
    )


def main() -> None:
    """Measure, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the images (1)")
    parser.add_argument("--side", type=int, default=224, help="of the images, in pixels (224)")
    parser.add_argument("--source", nargs="+", choices=SOURCES, default=list(SOURCES), help="made from; trained once")
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 2], help="loader processes (0 2)")
    parser.add_argument("--folder", type=Path, help="where the files are written; default: Python's temporary folder")
    parser.add_argument("--quick", action="store_true", help="0.6 MB of 32x32, to try the script; docs are not written")
    options = parser.parse_args()
    if options.quick:
        options.gigabytes, options.side = 0.0006, 32
    with tempfile.TemporaryDirectory(prefix="ssfnas-large-", dir=options.folder) as name:
        wanted, free = 3e9 * options.gigabytes, shutil.disk_usage(name).free
        if wanted > free:
            raise SystemExit(f"{name}: {wanted / 1e9:.1f} GB are needed, and {free / 1e9:.1f} are free: see --folder")
        rows = measure_all(options, Path(name))
    if options.quick:
        print(render(options, rows))
    else:
        report.write_section("large_data", render(options, rows))


if __name__ == "__main__":
    main()
