"""What the machine is and what it is doing: processor, memory, free cores."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import sys
import time
from pathlib import Path
from typing import Any


def environment() -> dict[str, Any]:
    """What bit-equality depends on (processor, torch, threads, kernels), and the versions for the record."""
    import torch

    import ssfnas_cli

    return {
        "processor": _processor_name() or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "python": ".".join(str(part) for part in sys.version_info[:3]),
        "ssfnas": ssfnas_cli.__version__,
    }


def _processor_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return ""


def free_cores(seconds: float = 0.2) -> float | None:
    """How many cores are idle, measured over that time; None if the system does not tell."""
    try:
        before = _processor_times()
        time.sleep(seconds)
        after = _processor_times()
        spent = [late - early for early, late in zip(before, after, strict=True)]
        return len(os.sched_getaffinity(0)) * (spent[3] + spent[4]) / sum(spent)  # idle, and waiting for a disk
    except (OSError, ValueError, IndexError, ArithmeticError, AttributeError):
        return None


def _processor_times() -> list[int]:
    """The first line of /proc/stat: user, nice, system, idle, waiting, ..., of all cores together since the start."""
    return [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]


def memory_bytes() -> int | None:
    """The memory that this process holds now; None if the system does not tell."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return None


def peak_memory_bytes() -> int:
    """The most memory that this process has held; its loader processes are not counted."""
    with contextlib.suppress(OSError, StopIteration):  # ru_maxrss begins at the peak of whoever started this process
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
