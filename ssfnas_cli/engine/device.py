"""Where and how a network computes: device, threads, precision, memory layout, kernels."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import nn

from ssfnas_cli.data.batches import Batch
from ssfnas_cli.errors import UsageError
from ssfnas_cli.native import cells
from ssfnas_cli.settings import Training

Module = TypeVar("Module", bound=nn.Module)


class Device:
    """A torch device, set up as the settings ask. Networks are in the channels-last layout, which is faster on CPUs.

    Args:
        name: `auto`, or a device as torch names it; `auto` is the GPU if there is one, else the CPU.
        threads: for torch and the kernels; 0 leaves torch's own choice.
        precision: `fp32` or `bf16`.
        compiled: whether our own kernels compute what they support, if they can be compiled. They make the views of a
            batch for every device; they compute cells only on a CPU in float32.

    Raises:
        UsageError: there is no such device.
    """

    def __init__(self, name: str, threads: int, precision: str = "fp32", compiled: bool = False):
        if threads:
            torch.set_num_threads(threads)
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.torch = torch.device(name)
            torch.empty(0, device=self.torch)
        except (RuntimeError, AssertionError) as error:
            raise UsageError(f"--device {name}: is not here ({str(error).splitlines()[0]}): use auto or cpu") from None
        self.precision = precision
        self.cells = cells.load() if compiled and self.torch.type == "cpu" and precision == "fp32" else None
        self.compiled_views = compiled
        if self.torch.type == "cpu":
            _keep_freed_memory()

    @classmethod
    def of(cls, settings: Training) -> Device:
        """The device that training settings ask for."""
        return cls(settings.device, settings.threads, settings.precision, compiled=settings.kernels != "torch")

    def place(self, module: Module) -> Module:
        """Move a network here, and give its encoder this device's compiled kernels (None: torch's own operations)."""
        module.encoder.compile_with(self.cells)  # type: ignore[union-attr, operator]
        return module.to(self.torch).to(memory_format=torch.channels_last)

    def facts(self) -> dict[str, str]:
        """The device and what computes the cells, for the record of a run."""
        capability = torch.backends.cpu.get_cpu_capability()
        return {"device": str(self.torch), "kernels": f"{'compiled' if self.cells else 'torch'}, {capability}"}

    def move(self, batch: Batch) -> Batch:
        """Move a batch to this device."""
        views, beside = (
            tuple(view.to(self.torch, memory_format=torch.channels_last) for view in one)
            for one in (batch.views, batch.beside)
        )
        return Batch(views, batch.labels.to(self.torch), beside)

    @contextlib.contextmanager
    def exact(self) -> Iterator[None]:
        """Within: float32 throughout, without autocast and TF32. A finite difference of anything coarser is noise."""
        with torch.autocast(self.torch.type, enabled=False), torch.backends.cudnn.flags(allow_tf32=False):
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("highest")
            try:
                yield
            finally:
                torch.set_float32_matmul_precision(before)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """A context in which forward passes have the precision asked for."""
        if self.precision == "bf16":
            return torch.autocast(self.torch.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()


def _keep_freed_memory() -> None:
    """Have glibc keep the memory that a step frees for the next step: clearing fresh pages costs a tenth of a step."""
    trim_threshold, mmap_threshold = -1, -3
    with contextlib.suppress(OSError, AttributeError):  # another libc
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 32 * 2**20)  # the largest value that it accepts
        libc.mallopt(trim_threshold, 2**31 - 1)
