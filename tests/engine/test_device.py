"""What the settings make of the machine, and which networks get the compiled kernels."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

from ssfnas_cli.engine.device import Device
from ssfnas_cli.errors import UsageError
from ssfnas_cli.native import library
from ssfnas_cli.settings import RetrainSettings, SearchSettings, load_settings

needs_compiler = pytest.mark.skipif(library.compiler() is None, reason="no C++ compiler")


@needs_compiler
@pytest.mark.parametrize("kind", [SearchSettings, RetrainSettings])
@pytest.mark.parametrize("kernels", ["auto", "compiled"])
def test_the_shortest_run_uses_compiled_kernels_unless_torch_is_asked_for(kind, kernels):
    short = {"epochs": 1, "channels": 2, "layers": 3, "threads": 1, "device": "cpu"}
    device = Device.from_settings(load_settings(kind, flags={**short, "kernels": kernels}))
    assert device.cells is not None and device.compiled_views and device.facts()["kernels"].startswith("compiled")
    device = Device.from_settings(load_settings(kind, flags={**short, "kernels": "torch"}))
    assert device.cells is None and not device.compiled_views and device.facts()["kernels"].startswith("torch")


@needs_compiler
@pytest.mark.parametrize("multiplies", [True, False])
def test_kernels_compute_maps_of_bf16_if_asked_to_and_the_processor_multiplies_it(monkeypatch, multiplies):
    monkeypatch.setattr("ssfnas_cli.engine.device.multiplies_bf16", lambda: multiplies)
    flags = {"precision": "bf16", "threads": 1, "device": "cpu"}
    device = Device.from_settings(load_settings(SearchSettings, flags=flags))
    with device.autocast():
        assert device.cells.support(torch.zeros(1, 2, 3, 3)) and torch.is_autocast_enabled("cpu") is multiplies
    assert device.facts()["kernels"].startswith("compiled, bf16" if multiplies else "compiled, ")
    assert ("bf16" in device.facts()["kernels"]) is multiplies


@needs_compiler
def test_a_networks_encoder_is_given_the_devices_kernels():
    class Encoder(nn.Module):
        kernels = None

        def compile_with(self, kernels):
            self.kernels = kernels

    model = nn.Module()
    model.encoder = Encoder()
    device = Device("cpu", 1, compiled=True)
    assert device.place(model) is model and model.encoder.kernels is device.cells is not None
    Device("cpu", 1).place(model)
    assert model.encoder.kernels is None


def test_a_network_is_compiled_once_if_its_steps_compute_the_same_ops(monkeypatch, caplog):
    encoder, modes = nn.Identity(), []
    monkeypatch.setattr(encoder, "compile", lambda mode: modes.append(mode))
    Device("cpu", 1).compile(encoder)
    Device("cpu", 1, compile_mode="reduce-overhead").compile(encoder)
    with caplog.at_level("INFO", "ssfnas"):
        Device("cpu", 1, compile_mode="default").compile(encoder, ops_change=True)
    assert modes == ["reduce-overhead"] and "each step computes other ops" in caplog.text
    assert Device("cpu", 1, compile_mode="default").facts()["kernels"].startswith("torch.compile default")


@pytest.mark.parametrize("multiplies", [True, False])
def test_bf16_without_a_processor_for_it_is_float32(monkeypatch, caplog, multiplies):
    monkeypatch.setattr("ssfnas_cli.engine.device.multiplies_bf16", lambda: multiplies)
    with caplog.at_level("WARNING", "ssfnas"):
        device = Device.for_evaluation("cpu", 1, "bf16")
    assert device.reduces() is multiplies and device.precision == ("bf16" if multiplies else "fp32")
    assert ("does not multiply bf16" in caplog.text) is not multiplies
    with pytest.raises(UsageError, match="--precision half: should be fp32 or bf16"):
        Device.for_evaluation("cpu", 1, "half")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_large_maps_get_the_memory_of_those_before_them():
    program = (
        "import resource, torch; from ssfnas_cli.engine.device import Device; Device('cpu', 1)\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "before = faults()\n"
        "for _ in range(20): torch.ones(25_000_000).sum()\n"
        "print(faults() - before)"
    )
    asked = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(asked.stdout) < 10 * 24_414, "a map has 24,414 pages; some of the first ones may not find a place"
