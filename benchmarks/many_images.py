"""How `make-dataset` and `evaluate` grow with the number of images: seconds and peak memory.

    python benchmarks/many_images.py [--quick]

It makes folders of 8x8 grey PNG files in ten classes, nine tenths of them for training, and evaluates a ResNet-32 on
the training split. Every command is a process of its own, whose peak memory the operating system reports. Mapped pages
of the data set count as memory here.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import report
from PIL import Image

from ssfnas_cli.machine import environment

SSFNAS = str(Path(sys.executable).with_name("ssfnas"))
CLASSES = 10
QUICK_NUMBERS, NUMBERS = (200, 400), (10_000, 100_000, 1_000_000)


class Measured(NamedTuple):
    """What a command took: seconds on the clock, seconds of processor time, and its peak memory in MB."""

    seconds: float
    processor_seconds: float
    megabytes: float

    def cells(self) -> list[str]:
        """Two cells of the table."""
        return [f"{self.seconds:,.0f} ({self.processor_seconds:,.0f})", f"{self.megabytes:,.0f}"]


def write_images(root: Path, num: int) -> None:
    """`num` files of noise."""
    random = np.random.default_rng(0)
    for split, share in (("train", 0.9), ("test", 0.1)):
        for label in range(CLASSES):
            folder = root / split / f"c{label}"
            folder.mkdir(parents=True)
            for number in range(round(num * share / CLASSES)):
                stream = io.BytesIO()
                Image.fromarray(random.integers(0, 255, (8, 8), dtype=np.uint8)).save(stream, "PNG")
                (folder / f"{number}.png").write_bytes(stream.getvalue())


def measure(*argv: str | Path) -> Measured:
    """Run a command, which must succeed."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    process = subprocess.Popen([SSFNAS, *map(str, argv)], stdout=subprocess.DEVNULL, env=environ)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"ssfnas {argv[0]} ended with {process.returncode}")
    return Measured(time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def measure_all(folder: Path, numbers: tuple[int, ...]) -> list[list[str]]:
    """A row of the table for each number of images."""
    rows = []
    network = folder / "network"
    for num in numbers:
        source, data = folder / f"images-{num}", folder / f"data-{num}"
        write_images(source, num)
        made = measure("make-dataset", "--source", "folder", "--root", source, "-o", data, "-q")
        shutil.rmtree(source)
        if not network.exists():
            short = ["--epochs", "1", "--batch-size", "128", "--threads", "1", "--set", "kernels=torch"]
            measure("retrain", "resnet32", "--data", data, "--preset", "quick", *short, "-o", network, "-q")
        flags = ["--data", data, "--other-data", "--split", "train", "--threads", "1", "-q"]
        evaluated = measure("evaluate", network, *flags)
        rows.append([f"{num:,}", *made.cells(), f"{num * 9 // 10:,}", *evaluated.cells()])
        print(" ".join(rows[-1]), file=sys.stderr, flush=True)
    return rows


def main() -> None:
    """Measure, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small numbers, to try the script; docs are not written")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory(prefix="ssfnas-many-") as name:
        rows = measure_all(Path(name), QUICK_NUMBERS if quick else NUMBERS)
    facts = environment()
    text = "\n\n".join(
        [
            f"`python benchmarks/many_images.py`, {facts['processor']}, {facts['cores']} cores, 1 thread, "
            f"torch {facts['torch']}, Python {facts['python']}. Folders of 8x8 grey PNG files in ten classes, nine "
            "tenths of them in train; a ResNet-32 is evaluated on train. Seconds are on the clock and, in brackets, of "
            "processor time, which other work on the machine does not lengthen much. Memory is the peak of the whole "
            "process, with torch and with the mapped pages of the data set.",
            report.table(
                ["images", "make-dataset s", "peak MB", "images evaluated", "evaluate s", "peak MB"],
                rows,
            ),
        ]
    )
    if quick:
        print(text)
    else:
        report.write_section("many_images", text)


if __name__ == "__main__":
    main()
