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

import numpy as np
from PIL import Image

from ssfnas_cli.machine import environment

SSFNAS = str(Path(sys.executable).with_name("ssfnas"))
CLASSES = 10


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


def measure(*argv: str | Path) -> tuple[float, float]:
    """Wall seconds and peak MB of a command that must succeed."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    process = subprocess.Popen([SSFNAS, *map(str, argv)], stdout=subprocess.DEVNULL, env=environ)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"ssfnas {argv[0]} ended with {process.returncode}")
    return time.perf_counter() - began, usage.ru_maxrss / 1024


def main() -> None:
    """Print a row for each number of images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small numbers, to see that it works")
    numbers = (200, 400) if parser.parse_args().quick else (10_000, 100_000, 1_000_000)
    print("| images | make-dataset s | peak MB | evaluated | evaluate s | peak MB |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(prefix="ssfnas-many-") as name:
        folder = Path(name)
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
            cells = [f"{num:,}", f"{made[0]:.0f}", f"{made[1]:.0f}", f"{num * 9 // 10:,}"]
            print("| " + " | ".join([*cells, f"{evaluated[0]:.0f}", f"{evaluated[1]:.0f}"]) + " |", flush=True)
    facts = environment()
    print(f"\n{facts['processor']}, {facts['cores']} cores, 1 thread, torch {facts['torch']}, Python {facts['python']}")


if __name__ == "__main__":
    main()
