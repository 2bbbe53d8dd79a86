"""A GPU that is pretended: a device of which torch knows no kernels, whose tensors hold others of the CPU.

It computes what the CPU does, and behaves towards the host as a GPU: tensors of both cannot be mixed, and whatever asks
the device for a value, or copies to it without saying that nothing has to wait, is written down. A program that waits
for nothing here waits for nothing on a GPU either, if torch's own operations do not.

Torch starts its threads for the backward pass of each kind of device once, so this has to be a process of its own:

    python tests/engine/pretended_gpu.py   # JSON: what each case waited for and gave, and what the CPU gives
"""

import json
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

sys.path.insert(0, str(Path(__file__).parent))

import gpu_cases

from registry import LOSSES
from ssfnas_cli.engine.device import Device

aten = torch.ops.aten
READS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default, aten.bincount.default}


class _Backend(backend_registration._DummyBackendModule):
    @staticmethod
    def get_amp_supported_dtype():
        return [torch.bfloat16]


backend_registration._setup_privateuseone_for_python_backend("pretended", backend_module=_Backend())
HERE = torch.device("pretended", 0)


class Pretended(torch.Tensor):
    """A tensor of the pretended GPU."""

    @staticmethod
    def __new__(cls, inner):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=HERE,
        )
        made.inner = inner
        return made

    def __init__(self, inner):
        pass

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return GPU.compute(func, args, kwargs or {})


class PretendedGPU(TorchDispatchMode):
    """Within it `HERE` is a device; `waits` says what the host has waited for."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.compute(func, args, kwargs or {})

    def compute(self, func, args, kwargs):
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        mine = [tensor for tensor in tensors if isinstance(tensor, Pretended)]
        of_host = [tensor for tensor in tensors if not isinstance(tensor, Pretended) and tensor.ndim]
        to = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type == HERE.type
        at_once = kwargs.get("non_blocking") or (func is aten.copy_.default and len(args) > 2 and args[2])
        by_mask = func in (aten.index.Tensor, aten.index_put_.default) and any(
            isinstance(place, torch.Tensor) and place.dtype == torch.bool for place in args[1]
        )
        if mine and (func in READS or by_mask):
            self.waits.append(f"a read by {func}")
        if func is aten._to_copy.default and to is False and mine:
            self.waits.append("a copy to the host")
        if func is aten._to_copy.default and to and not mine and not at_once:
            self.waits.append("a copy to the GPU that waits")
        if func is aten.copy_.default and mine and of_host and not (args[0] is mine[0] and at_once):
            self.waits.append("a copy in place between the host and the GPU")
        if mine and of_host and func is not aten.copy_.default:
            raise AssertionError(f"{func} mixes the devices")
        if "device" in kwargs:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        found = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        is_here = bool(mine) if to is None else to
        known = {id(tensor.inner): tensor for tensor in mine}
        return tree_map(lambda x: _wrapped(x, known), found) if is_here else found


def _inner(x):
    return x.inner if isinstance(x, Pretended) else x


def _wrapped(x, known):
    if not isinstance(x, torch.Tensor):
        return x
    return known[id(x)] if id(x) in known else Pretended(x)


def _place(device, module):
    """`Device.place` for this device, whose tensors no module's can be changed into."""
    module.encoder.compile_with(None)
    for part in module.modules():
        for name, weight in [(name, weight) for name, weight in part._parameters.items() if weight is not None]:
            layout = torch.channels_last if weight.ndim == 4 else torch.preserve_format
            here = weight.detach().to(HERE, memory_format=layout)
            part._parameters[name] = nn.Parameter(here, requires_grad=weight.requires_grad)
        for name, value in [(name, value) for name, value in part._buffers.items() if value is not None]:
            part._buffers[name] = value.to(HERE)
    return module


GPU = PretendedGPU()


def main():
    with tempfile.TemporaryDirectory() as folder:
        data = gpu_cases.digits(Path(folder) / "digits")
        place = Device.place
        for name in gpu_cases.CASES:
            expected = gpu_cases.take_step(name, data, Device("cpu", 1))
            Device.place = _place
            with GPU:
                phase = gpu_cases.build(name, data, Device(str(HERE), 1))
            show(name, expected, lambda phase=phase: gpu_cases.run(phase))
            Device.place = place
    for name in LOSSES.names():
        act = partial(gpu_cases.loss_of, name)
        show(f"loss {name}", {"loss": float(act("cpu"))}, lambda act=act: {"loss": act(HERE)})
    show("a program that waits", {}, program_that_waits)
    show("cost", {"cost": float(gpu_cases.cost_of("cpu"))}, lambda: {"cost": gpu_cases.cost_of(HERE)})


def program_that_waits():
    """Everything that makes a program wait, so that it is seen that it is seen."""
    here = torch.ones(3).to(HERE)
    here[here > 0].sum().item()
    here.cpu()
    here.copy_(torch.zeros(3))
    return {}


def show(case, expected, act):
    """Print what `act` waits for and gives on the pretended GPU, beside what is expected."""
    with GPU:
        GPU.waits.clear()
        given = act()
        waits = list(GPU.waits)
        found = {key: float(value) for key, value in given.items()}
    print(json.dumps({"case": case, "waits": waits, "cpu": expected, "gpu": found}))


if __name__ == "__main__":
    main()
