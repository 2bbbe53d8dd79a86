"""Layout and precision of what torch computes, where the kernels do not: that of GPUs, looked at on a CPU.

Steps in bf16 are looked at with the kernels, too.
"""

import gpu_cases
import pytest
import torch

from ssfnas_cli.engine.device import Device
from ssfnas_cli.machine import multiplies_bf16

CASES = ["softmax", "partial channels, a self-supervised loss beside", "retrain, everything"]


@pytest.mark.parametrize("name", CASES)
def test_every_map_has_its_channels_last(tiny_digits, name):
    phase = gpu_cases.build(name, tiny_digits, Device("cpu", 1))
    looked_at, others = [], []

    def look(module, given, result):
        for x in (*given, *(result if isinstance(result, tuple) else (result,))):
            if isinstance(x, torch.Tensor) and x.ndim == 4 and x.shape[1] > 1 and x.shape[2] > 1:
                looked_at.append(x)
                if x.stride(1) != 1:  # parts of a map have other strides, but channels side by side
                    others.append((type(module).__name__, tuple(x.shape), x.stride()))

    stem = set(phase.model.encoder.stem.modules())  # whose BN computes in the other layout on a CPU
    for module in set(phase.model.encoder.modules()) - stem:
        module.register_forward_hook(look)
    gpu_cases.run(phase)
    assert len(looked_at) > 50 and not others


@pytest.mark.skipif(not multiplies_bf16(), reason="this processor does not multiply bf16")
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_a_step_in_bf16_is_near_that_in_float32(tiny_digits, name, compiled):
    found, wanted = (
        gpu_cases.take_step(name, tiny_digits, Device("cpu", 1, precision, compiled)) for precision in ("bf16", "fp32")
    )
    for key in [key for key in wanted if "loss" in key]:
        assert found[key] == pytest.approx(wanted[key], rel=0.05) and found[key] != wanted[key]
