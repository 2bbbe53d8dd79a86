"""What the settings make of the machine, and which networks get the compiled kernels."""

from __future__ import annotations

import pytest
from torch import nn

from ssfnas_cli.engine.device import Device
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
def test_cells_in_bf16_are_left_to_torch():
    settings = load_settings(SearchSettings, flags={"precision": "bf16", "threads": 1, "device": "cpu"})
    assert Device.from_settings(settings).cells is None


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
