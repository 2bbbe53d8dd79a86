"""Steps on a GPU: the direct formulation of the papers beside ours, in every way in which ours can be computed.

    python benchmarks/gpu.py            # all cases, into the section of docs/performance.md
    python benchmarks/gpu.py --on cpu   # on the CPU and tiny, only to see that it runs; nothing is written

It ends at once where there is no GPU. The direct step (tests/oracle) is that of `search_step.py` and `retrain_step.py`:
float32, torch's default layout, `backward` on everything. Ours are `SearchPhase.step` and `TrainPhase.step`. Each side
is built, warmed up, timed by CUDA events and freed, all of them in turn, and that twice. Memory is the most that torch
had allocated in the timed steps.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import paired
import report
import retrain_step
import search_step
import torch

from registry.state import load_module
from ssfnas_cli.artifacts.tensors import load_tensors
from ssfnas_cli.engine.device import Device
from ssfnas_cli.settings import SearchSettings, load_settings
from tests.oracle import direct, steps

PASSES, STEPS, WARM_UP = 2, 20, 5


class Variant(NamedTuple):
    """A way to compute our step: precision, layout of maps, and mode of torch.compile."""

    precision: str = "fp32"
    channels_last: bool = True
    compile: str = "none"

    @property
    def name(self) -> str:
        layout = "channels last" if self.channels_last else "torch's default layout"
        return f"ours, {self.precision}, {layout}" + ("" if self.compile == "none" else f", compile={self.compile}")


VARIANTS = (
    Variant(),
    Variant(channels_last=False),
    Variant("bf16"),
    Variant("bf16", channels_last=False),
    Variant(compile="default"),
    Variant("bf16", compile="default"),
    Variant("bf16", compile="reduce-overhead"),
)
SEARCHES = {name: search_step.CASES[name] for name in ("softmax-ce-1", "sigmoid-barlow-1", "softmax-ce-2")}
RETRAININGS = {name: retrain_step.CASES[name] for name in ("DARTS_V2-16x8", "DARTS_V2-36x20")}
Step = Callable[[int], Any]


class Bench:
    """Where things are computed, and whether they are tiny."""

    def __init__(self, device: torch.device):
        self.device, self.tiny = device, device.type == "cpu"

    def search_flags(self, case: search_step.Case) -> dict[str, Any]:
        flags = search_step.flags_of(case, self.tiny) | {"device": str(self.device), "kernels": "torch"}
        return flags | ({"batch_size": 8} if self.tiny else {})

    def retrain_flags(self, case: retrain_step.Case) -> dict[str, Any]:
        flags = retrain_step.flags_of(case, self.tiny)
        return flags | {"device": str(self.device), "kernels": "torch"}

    # The sides, by name: what builds a step

    @property
    def variants(self) -> tuple[Variant, ...]:
        """Those of our steps; compiling takes too long only to see that it runs."""
        return tuple(one for one in VARIANTS if one.compile == "none") if self.tiny else VARIANTS

    def search_sides(self, folder: Path, name: str) -> dict[str, Callable[[], Step]]:
        flags = self.search_flags(SEARCHES[name])
        search_step.prepare(folder, flags | {"device": "cpu"}, search_step.shape_of(self.tiny)["image_size"])
        ours = {variant.name: partial(self.our_search, folder, flags, variant) for variant in self.variants}
        return {"direct": partial(self.direct_search, folder, flags), **ours}

    def training_sides(self, folder: Path, name: str) -> dict[str, Callable[[], Step]]:
        case, flags = RETRAININGS[name], self.retrain_flags(RETRAININGS[name])
        retrain_step.prepare(folder, case.genotype, flags | {"device": "cpu"})
        ours = {variant.name: partial(self.our_training, folder, case, flags, variant) for variant in self.variants}
        return {"direct": partial(self.direct_training, folder, case, flags), **ours}

    def direct_search(self, folder: Path, flags: dict[str, Any]) -> Step:
        settings = load_settings(SearchSettings, flags=flags)
        tensors = {name: tensor.to(self.device) for name, tensor in load_tensors(folder / "start.safetensors").items()}
        model = direct.search_model(paired.part(tensors, "model."), settings.ops).to(self.device)
        alphas = {kind: tensors[f"alphas.{kind}"].clone().requires_grad_() for kind in ("normal", "reduce")}
        search = steps.DirectSearch(model, alphas, settings.relax.name, settings.order)
        batches = [paired.read_batch(tensors, f"batch.0.{half}") for half in ("train", "val")]
        return lambda number: search.step(*batches, settings.lr)

    def our_search(self, folder: Path, flags: dict[str, Any], variant: Variant) -> Step:
        with layout_of(variant):
            phase = search_step.make_phase(folder, flags | {"precision": variant.precision, "compile": variant.compile})
            tensors = load_tensors(folder / "start.safetensors")
            load_module("model", phase.model, tensors)
            halves = [phase.device.move(paired.read_batch(tensors, f"batch.0.{half}")) for half in ("train", "val")]
        batch = search_step.SearchBatch(*halves, None)
        return lambda number: phase.step(0, number, batch)

    def direct_training(self, folder: Path, case: retrain_step.Case, flags: dict[str, Any]) -> Step:
        tensors = load_tensors(folder / "start.safetensors")
        model = retrain_step.direct_model(case.genotype, tensors, flags["channels"], flags["layers"])
        training = steps.DirectTraining(model.to(self.device), 0.4)
        batch = paired.read_batch(tensors, "batch.0")
        images, labels = (tensor.to(self.device) for tensor in (batch.views[0], batch.labels))
        return lambda number: training.step(images, labels, 0.01, 0.1)

    def our_training(self, folder: Path, case: retrain_step.Case, flags: dict[str, Any], variant: Variant) -> Step:
        with layout_of(variant):
            flags = flags | {"precision": variant.precision, "compile": variant.compile}
            phase = retrain_step.make_phase(folder, case.genotype, flags)
            tensors = load_tensors(folder / "start.safetensors")
            load_module("model", phase.model, tensors)
            batch = phase.device.move(paired.read_batch(tensors, "batch.0"))
        return lambda number: phase.step(retrain_step.EPOCH, number, batch)

    # Measurements

    def measure(self, build: Callable[[], Step]) -> tuple[float, float]:
        """Milliseconds a step (the median), and the most GB of memory."""
        step, (warm, num) = build(), (1, 1) if self.tiny else (WARM_UP, STEPS)
        for number in range(warm):
            step(number)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        times = [self._milliseconds(step, number) for number in range(num)]
        peak = torch.cuda.max_memory_allocated(self.device) / 1e9 if self.device.type == "cuda" else 0.0
        return statistics.median(times), peak

    def free(self) -> None:
        """Give back the memory of a side that is not needed any more."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _milliseconds(self, step: Step, number: int) -> float:
        if self.device.type != "cuda":
            began = time.perf_counter()
            step(number)
            return 1e3 * (time.perf_counter() - began)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        step(number)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    def rows(self, case: str, builds: dict[str, Callable[[], Step]]) -> list[list[str]]:
        """A row for each side, measured in turn."""
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in builds}
        for _ in range(1 if self.tiny else PASSES):
            for name, build in builds.items():
                found[name].append(self.measure(build))
                self.free()
        first = [milliseconds for milliseconds, _ in next(iter(found.values()))]
        rows = []
        for name, each in found.items():
            times = [milliseconds for milliseconds, _ in each]
            faster = report.spread([a / b for a, b in zip(first, times, strict=True)])
            rows.append([case, name, report.spread(times, 1), faster, f"{max(peak for _, peak in each):.2f}"])
        return rows


class layout_of:
    """Within this context our networks are built in the layout of a variant."""

    def __init__(self, variant: Variant):
        self.layout = torch.channels_last if variant.channels_last else torch.contiguous_format

    def __enter__(self) -> None:
        Device.layout = self.layout

    def __exit__(self, *error: object) -> None:
        Device.layout = torch.channels_last


def measure_all(bench: Bench, only: str | None) -> list[list[str]]:
    """The rows of all cases whose name contains `only`."""
    rows: list[list[str]] = []
    for name in (*SEARCHES, *RETRAININGS):
        if only is None or only in name:
            with tempfile.TemporaryDirectory() as folder:
                sides = bench.search_sides if name in SEARCHES else bench.training_sides
                rows += bench.rows(name, sides(Path(folder), name))
    return rows


def card(device: torch.device) -> str:
    """The card, its driver and the versions."""
    if device.type != "cuda":
        return report.machine()
    name = torch.cuda.get_device_name(device)
    return f"{name}, driver {_driver()}, CUDA {torch.version.cuda}, torch {torch.__version__}"


def _driver() -> str:
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def main() -> None:
    """Measure all cases and write the section."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--on", default="cuda", help="cuda, or cpu to see that it runs")
    parser.add_argument("--only", help="cases whose names contain this")
    options = parser.parse_args()
    if options.on != "cpu" and not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu.py: there is no GPU here")
    device = torch.device("cpu") if options.on == "cpu" else torch.device("cuda", torch.cuda.current_device())
    rows = measure_all(Bench(device), options.only)
    table = report.table(["case", "step", "milliseconds a step", "times faster", "peak GB"], rows)
    text = f"`python benchmarks/gpu.py`, {card(device)}. {PASSES} passes in turn, {STEPS} steps each.\n\n{table}"
    if options.on == "cpu" or options.only:
        print(text)
    else:
        report.write_section("gpu", text)


if __name__ == "__main__":
    main()
