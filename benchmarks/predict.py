"""Images a second of `ssfnas predict`, and its memory over many images: python benchmarks/predict.py.

Each case predicts files of random pixels with an untrained network, whose time is that of a trained one. The rates are
images per second of processor time, so that other work on the machine counts little. Two parts are measured by
themselves beside the whole: preparing the files, and the network on images in memory, in float32 and in bf16
(`predict --precision bf16`). `--quick` takes few images.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from ssfnas_cli.main import SPIN_LIMIT

os.environ.setdefault(*SPIN_LIMIT)  # the program sets it, too, before torch is imported

import numpy as np
import report
import torch
from PIL import Image
from untrained import untrained

from ssfnas_cli.artifacts.model import DerivedNetwork, Part
from ssfnas_cli.artifacts.named import named_genotype
from ssfnas_cli.deploy.model import BATCH_SIZE, Model
from ssfnas_cli.deploy.paths import find_images
from ssfnas_cli.deploy.prepare import prepare
from ssfnas_cli.deploy.stream import Stream
from ssfnas_cli.machine import memory_bytes

ROUNDS, NUM_FILES, MANY = 5, 512, 20_000


class Case(NamedTuple):
    """A network, the side of its images, and the files: their name's ending, width and height."""

    network: str
    size: int
    suffix: str
    width: int
    height: int

    @property
    def name(self) -> str:
        return f"{self.network}, {self.size}x{self.size} | {self.suffix[1:].upper()} of {self.width}x{self.height}"


CASES = (
    Case("resnet32", 32, ".png", 32, 32),
    Case("DARTS_V2", 32, ".png", 32, 32),
    Case("resnet32", 32, ".jpg", 640, 480),
    Case("mobilenet_v2", 96, ".jpg", 640, 480),
)


def build(case: Case, reduced: bool = False) -> Model:
    """The network of a case, in bf16 if it is `reduced`; DARTS_V2 has 16 channels and 8 cells."""
    genotype = named_genotype(case.network)
    network = Part(name=case.network) if genotype is None else DerivedNetwork(genotype=genotype, channels=16, layers=8)
    return untrained(network, case.size, reduced)


def write_files(case: Case, folder: Path, num: int) -> None:
    """Files of smooth random pixels: noise would take several times the bytes of a photo."""
    draw = np.random.default_rng(0)
    for number in range(num):
        coarse = Image.fromarray(draw.integers(0, 256, (case.height // 8, case.width // 8, 3), dtype=np.uint8))
        coarse.resize((case.width, case.height), Image.Resampling.BICUBIC).save(folder / f"{number:05d}{case.suffix}")


def rate(act: Callable[[], int]) -> float:
    """Images per second of processor time; `act` returns their number."""
    began = time.process_time()
    num = act()
    return num / (time.process_time() - began)


def predict(model: Model, paths: Iterable[str]) -> int:
    """The number of images that `ssfnas predict` predicts."""
    stream = Stream(model, model.shift_to(None), 3)
    assert sum(len(rows) for rows in stream.rows(find_images(paths, None))) == stream.num_read
    return stream.num_read


def parts(model: Model, in_bf16: Model, folder: Path) -> dict[str, float]:
    """One round: the rates of the whole and of its parts."""
    files = sorted(folder.iterdir())
    arrays = [prepare(path, model.card) for path in files]

    def network(of: Model) -> int:
        for start in range(0, len(arrays), BATCH_SIZE):
            of.logits(np.stack(arrays[start : start + BATCH_SIZE]))
        return len(arrays)

    return {
        "predict": rate(lambda: predict(model, [str(folder)])),
        "files": rate(lambda: len([prepare(path, model.card) for path in files])),
        "network": rate(lambda: network(model)),
        "network in bf16": rate(lambda: network(in_bf16)),
    }


def memory(model: Model, folder: Path, num: int) -> list[tuple[int, float]]:
    """The resident MB after a tenth of many images, and after all of them."""
    files = itertools.islice(itertools.cycle(map(str, sorted(folder.iterdir()))), num)
    stream = Stream(model, model.shift_to(None), 3)
    seen = []
    for rows in stream.rows(find_images(files, None)):
        del rows
        if len(seen) == 0 and stream.num_read >= num // 10:
            seen.append((stream.num_read, (memory_bytes() or 0) / 1e6))
    return [*seen, (stream.num_read, (memory_bytes() or 0) / 1e6)]


def main() -> None:
    """Measure every case in turn, then the memory, and write the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    rounds, num_files, many = (1, 32, 200) if quick else (ROUNDS, NUM_FILES, MANY)
    with tempfile.TemporaryDirectory() as name:
        built, rates = [], {}
        for number, case in enumerate(CASES):
            folder = Path(name) / str(number)
            folder.mkdir()
            write_files(case, folder, num_files)
            built.append((case, build(case), build(case, reduced=True), folder))
        for _ in range(rounds):
            for case, model, in_bf16, folder in built:
                for part, value in parts(model, in_bf16, folder).items():
                    rates.setdefault(case.name, {}).setdefault(part, []).append(value)
        seen = memory(built[0][1], built[0][3], many)
    section = text(rates, seen, rounds)
    if quick:
        print(section)
    else:
        report.write_section("predict", section)


def text(rates: dict[str, dict[str, list[float]]], seen: list[tuple[int, float]], rounds: int) -> str:
    """The section of docs/performance.md."""
    rows = [
        [*name.split(" | "), *(report.spread(values, 0) for values in by_part.values())]
        for name, by_part in rates.items()
    ]
    kept = " and ".join(f"{megabytes:,.0f} MB after {num:,} images" for num, megabytes in seen)
    return f"""`python benchmarks/predict.py`, {report.machine()}. Images per second of processor time on one thread; {rounds} rounds in turn.
The whole is `ssfnas predict` without its start, which takes the 2 to 3 seconds of importing torch. DARTS_V2 has 16 channels and 8 cells.

{report.table(["network", "files", "predict", "preparing the files alone", "the network alone", "in bf16"], rows)}

Resident memory of the process, torch included, in the first case: {kept}."""  # noqa: E501


if __name__ == "__main__":
    main()
