"""Facts about the machine: its processor, its memory and its free cores."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import resource
import sys
import time
from pathlib import Path
from typing import Any


def environment() -> dict[str, Any]:
    """The environment of a run. Bit-equal results depend on the processor, torch, the threads and the kernels."""
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


def multiplies_bf16() -> bool:
    """Whether the processor has instructions that multiply bf16; others are slower with it than in float32."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(line.split()))
    return False


def usable_cores() -> int:
    """How many cores this process may use, and a container's limit (`docker --cpus`) lets it have."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, cpu_quota())))


def cpu_quota(root: Path = Path("/")) -> float:
    """The cores' time that the control groups of this process allow, in cores; infinite if they set no limit.

    Args:
        root: where `proc` and `sys` lie.
    """
    quota = math.inf
    with contextlib.suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            second = not controllers  # the second version has one hierarchy, the first one for each controller
            if not second and "cpu" not in controllers.split(","):
                continue
            mounted = root / "sys/fs/cgroup" / ("" if second else controllers)
            inside = mounted / group.lstrip("/")
            for folder in (inside, *inside.parents):
                if folder == mounted.parent:
                    break
                with contextlib.suppress(OSError, ValueError):
                    quota = min(quota, _quota_of(folder, second))
    return quota


def _quota_of(folder: Path, second: bool) -> float:
    """What one control group allows."""
    if second:
        limit, period = (folder / "cpu.max").read_text().split()
    else:
        limit, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
    return math.inf if limit in ("max", "-1") else int(limit) / int(period)


def free_cores(seconds: float = 0.2) -> float | None:
    """How many cores are idle, measured over `seconds`; None if the system does not report it."""
    try:
        before = _processor_times()
        time.sleep(seconds)
        after = _processor_times()
        spent = [late - early for early, late in zip(before, after, strict=True)]
        return usable_cores() * (spent[3] + spent[4]) / sum(spent)  # idle and iowait
    except (OSError, ValueError, IndexError, ArithmeticError, AttributeError):
        return None


def _processor_times() -> list[int]:
    """The first line of /proc/stat: time that all cores spent since boot in user, nice, system, idle, iowait, ..."""
    return [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]


def memory_bytes() -> int | None:
    """The resident memory of this process; None if the system does not report it."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return None


def peak_memory_bytes() -> int:
    """The peak resident memory of this process, without its loader processes."""
    with contextlib.suppress(OSError, StopIteration):  # ru_maxrss includes the peak of the parent process
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
