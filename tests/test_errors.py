"""What a machine lacks, told from a bug."""

import errno

import numpy as np
import pytest
import torch

from ssfnas_cli.errors import DiskError, ResourceError, out_of_memory

CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
GPU = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 7.79 GiB of which 1 MiB is free."


@pytest.mark.parametrize(
    ("error", "amount"),
    [
        (RuntimeError(CPU + "17179869184 bytes. Error code 12 (Cannot allocate memory)"), "16,384.0 MiB"),
        (torch.OutOfMemoryError(GPU), "20.00 MiB"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), ""),
        (MemoryError("std::bad_alloc"), ""),
        (MemoryError(), ""),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), ""),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), ""),
    ],
)
def test_memory_that_has_run_out_is_told_in_one_line_whoever_says_so(error, amount):
    shown = out_of_memory(error, "take less")
    assert isinstance(shown, ResourceError) and shown.exit_code == 5
    asked = f" ({amount} more were asked for)" if amount else ""
    assert str(shown) == f"memory has run out{asked}: take less"


def test_what_numpy_and_torch_raise_here_is_known():
    for allocate, amount in (
        (lambda: np.empty(2**60, np.uint8), "1.00 EiB"),
        (lambda: torch.empty(2**60, dtype=torch.uint8), "1,099,511,627,776.0 MiB"),
    ):
        with pytest.raises((MemoryError, RuntimeError)) as raised:
            allocate()
        assert amount in str(out_of_memory(raised.value, ""))


@pytest.mark.parametrize(
    "error", [RuntimeError("shape '[2]' is invalid"), OSError(errno.EIO, "Input/output error"), ValueError("memory")]
)
def test_other_errors_are_not(error):
    assert out_of_memory(error, "take less") is None


def test_a_disk_is_a_resource():
    assert issubclass(DiskError, ResourceError) and DiskError("x").exit_code == 5
