"""Where and how networks are computed: the device, threads, precision, memory layout and kernels."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from registry import collective
from ssfnas_cli import world
from ssfnas_cli.console import log
from ssfnas_cli.data.batches import Batch
from ssfnas_cli.errors import UsageError
from ssfnas_cli.machine import multiplies_bf16, usable_cores
from ssfnas_cli.native import cells, library, views
from ssfnas_cli.settings import Training

Module = TypeVar("Module", bound=nn.Module)


class Device:
    """A torch device, configured by the settings.

    Attributes:
        layout: of images and networks: channels last, which is faster on CPUs, and on GPUs in bf16.

    Args:
        name: the name of a torch device, or `auto`, which means the GPU if there is one, else the CPU.
        threads: number of threads of torch and the kernels; 0 keeps torch's default.
        precision: `fp32` or `bf16`.
        compiled: whether to use the compiled kernels, if they can be compiled. They make the views of a batch for every
            device, but compute cells only on a CPU; in `bf16`, on maps of that type.
        compile_mode: of torch.compile, or `none`.
        own_process: whether the process is ours, so that its threads and how it keeps memory may be chosen for it.

    Raises:
        UsageError: the device does not exist.
    """

    layout = torch.channels_last

    def __init__(
        self,
        name: str,
        threads: int,
        precision: str = "fp32",
        compiled: bool = False,
        compile_mode: str = "none",
        own_process: bool = True,
    ):
        if threads:
            torch.set_num_threads(threads)
        elif own_process and "OMP_NUM_THREADS" not in os.environ and usable_cores() < torch.get_num_threads():
            torch.set_num_threads(usable_cores())
        self.torch = find_device(name)
        if precision == "bf16" and self.torch.type == "cpu" and not multiplies_bf16():
            log.warning("--precision bf16: this processor does not multiply bf16 (AMX, AVX512-BF16): float32 computes")
            precision = "fp32"
        self.precision = precision
        if compiled:
            library.prepare(*cells.libraries_for(torch.float32, self.reduces()), views.LIBRARY)
        self.cells = cells.load(reduced=self.reduces()) if compiled and self.torch.type == "cpu" else None
        self.compiled_views, self.compile_mode = compiled, compile_mode
        self._copies = torch.cuda.Stream(self.torch) if self.torch.type == "cuda" else None
        if self.torch.type == "cpu" and own_process:
            _keep_freed_memory()

    @classmethod
    def from_settings(cls, settings: Training) -> Device:
        """The device that the settings of a training describe."""
        collective.use_global_statistics(settings.batch_stats == "global" and not settings.is_federated)
        with world.first_goes_first():  # which compiles the kernels
            compiled = settings.kernels != "torch"
            device = cls(settings.device, settings.threads, settings.precision, compiled, settings.compile)
        device.be_deterministic(settings.deterministic)
        return device

    def be_deterministic(self, wanted: bool) -> None:
        """Have a GPU give the same bits every time, or choose the fastest algorithms; a CPU always gives the same."""
        if self.torch.type != "cuda":
            return
        torch.backends.cudnn.benchmark = not wanted
        torch.use_deterministic_algorithms(wanted)
        if wanted:  # cuBLAS reads it when it is first used
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

    def place(self, module: Module) -> Module:
        """Move a network to this device and let its encoder use the compiled kernels, if there are any."""
        module.encoder.compile_with(self.cells)  # type: ignore[union-attr, operator]
        return module.to(self.torch).to(memory_format=self.layout)

    def compile(self, encoder: nn.Module, ops_change: bool = False) -> None:
        """Let torch.compile compute a network, if the settings say so.

        Args:
            encoder: the network, in place.
            ops_change: whether each step computes other ops, for each of which it would be compiled anew.
        """
        if self.compile_mode == "none":
            return
        if self.cells is not None or ops_change:
            why = "each step computes other ops" if ops_change else "our kernels compute its cells"
            log.info("compile=%s: this network is not compiled, because %s", self.compile_mode, why)
        else:
            encoder.compile(mode=self.compile_mode)

    def facts(self) -> dict[str, str]:
        """The device and the kernels that compute the cells, to be recorded with a run."""
        by = (
            "compiled"
            if self.cells
            else "torch"
            if self.compile_mode == "none"
            else f"torch.compile {self.compile_mode}"
        )
        if self.reduces():
            by = f"{by}, bf16"
        if self.torch.type == "cuda":
            return {"device": f"{self.torch}, {torch.cuda.get_device_name(self.torch)}", "kernels": by}
        return {"device": str(self.torch), "kernels": f"{by}, {torch.backends.cpu.get_cpu_capability()}"}

    def advice(self) -> str:
        """What would make a long training faster here; nothing if there is nothing to say."""
        if self.torch.type != "cpu":
            return ""
        advice = []
        if world.size() > 1 and torch.get_num_threads() < (cores := usable_cores()):  # torchrun gives each one thread
            advice.append(
                f"each rank computes with {torch.get_num_threads()} of its {cores} cores: --threads {cores} takes all"
            )
        if multiplies_bf16() and not self.reduces():
            advice.append("this processor multiplies bf16: --precision bf16 takes less time and half the memory")
        return "; ".join(advice)

    def move(self, batch: Batch) -> Batch:
        """Move a batch to this device."""
        views, beside = (tuple(self._moved(view) for view in one) for one in (batch.views, batch.beside))
        mixed = batch.mixed and batch.mixed._replace(labels=self._moved(batch.mixed.labels))
        return Batch(views, self._moved(batch.labels), beside, mixed, batch.share)

    def _moved(self, x: Tensor) -> Tensor:
        """A tensor on this device, and images with channels last.

        A GPU copies it from pinned memory on a stream of its own, beside what it computes, and nothing waits but what
        reads it.
        """
        layout = self.layout if x.ndim == 4 else torch.preserve_format
        if self._copies is None:
            return x.to(self.torch, non_blocking=True, memory_format=layout)
        computes = torch.cuda.current_stream(self.torch)
        pinned = x.to(memory_format=layout).pin_memory()
        with torch.cuda.stream(self._copies):
            here = pinned.to(self.torch, non_blocking=True)
        computes.wait_stream(self._copies)
        here.record_stream(computes)  # its memory is not given to another tensor before the computation is done
        return here

    @contextlib.contextmanager
    def full_precision(self) -> Iterator[None]:
        """Compute in float32 without autocast and TF32. In a lower precision, a finite difference is mostly noise."""
        with torch.autocast(self.torch.type, enabled=False), torch.backends.cudnn.flags(allow_tf32=False):
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("highest")
            try:
                yield
            finally:
                torch.set_float32_matmul_precision(before)

    def reduces(self) -> bool:
        """Whether forward passes compute in bf16."""
        return self.precision == "bf16"

    @classmethod
    def for_evaluation(
        cls, name: str | None, threads: int | None, precision: str | None, own_process: bool = True
    ) -> Device:
        """The device of an evaluation by the flags of a command, None being the default of each.

        Raises:
            UsageError: there is no such device or precision.
        """
        if precision not in (None, "fp32", "bf16"):
            raise UsageError(f"--precision {precision}: should be fp32 or bf16")
        return cls(name or "auto", threads or 0, precision or "fp32", own_process=own_process)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """A context in which forward passes have the precision of the settings."""
        if self.reduces():
            return torch.autocast(self.torch.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()


def find_device(name: str) -> torch.device:
    """The torch device of a name; `auto` means the GPU if there is one, else the CPU.

    Raises:
        UsageError: there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and collective.size() > 1:
        name = f"cuda:{_gpu_of(world.local_rank())}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: is not here ({str(error).splitlines()[0]}): use auto or cpu") from None
    return device


def _gpu_of(local_rank: int) -> int:
    """The GPU of a rank of this machine. A queue may let each rank see its own GPU alone, which is then the first."""
    count = torch.cuda.device_count()
    if count > 1 and local_rank >= count:
        raise UsageError(
            f"--device cuda: rank {local_rank} of this machine has no GPU, it has {count}: start no more ranks than "
            "GPUs, or take --device cpu"
        )
    return local_rank if count > 1 else 0


def _keep_freed_memory() -> None:
    """Let glibc keep all freed memory for the next step, and take it from one heap, so that the second step has it.

    Fresh pages must be cleared, which takes a tenth of a step. Maps that are mapped by themselves, as glibc does with
    large ones, leave no room when they are freed, until the heap has grown to hold them, too.
    """
    trim_threshold, most_mappings = -1, -4
    with contextlib.suppress(OSError, AttributeError):  # the C library is not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, -1)  # never
        libc.mallopt(most_mappings, 0)
