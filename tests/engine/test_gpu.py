"""What is promised of a GPU: nothing in a step waits for it, and steps give what they give on a CPU."""

import json
import math
from pathlib import Path

import gpu_cases
import pytest
from torch.utils import backend_registration

from registry import LOSSES
from ssfnas_cli.engine.device import Device

ROOT = Path(__file__).parents[2]
OTHERS = [*(f"loss {name}" for name in LOSSES.names()), "cost"]
# Which ops a path of `gumbel` has is read for each cell type in both forward passes: it says what is to be computed.
READS = {"gumbel": 4 * ["a copy to the host"]}
DRAWN_THERE = {"dirichlet", "retrain, everything"}  # by the generator of the device


@pytest.fixture(scope="module")
def pretended(zygote, tmp_path_factory):
    """What each case waited for and gave on the pretended GPU."""
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch cannot pretend a device")
    script = {"script": str(Path(__file__).with_name("pretended_gpu.py"))}
    done = zygote.run([], tmp_path_factory.mktemp("pretended"), script, environ={"PYTHONPATH": str(ROOT)})
    assert done.code == 0, done.err[-2000:]
    return {line["case"]: line for line in map(json.loads, done.out.splitlines())}


@pytest.mark.parametrize("name", [*gpu_cases.CASES, *OTHERS])
def test_no_step_waits_for_a_gpu(pretended, name):
    assert pretended[name]["waits"] == READS.get(name, [])


@pytest.mark.parametrize("name", [*gpu_cases.CASES, *OTHERS])
def test_a_step_gives_what_it_gives_on_a_cpu(pretended, name):
    assert pretended[name]["gpu"] == pytest.approx(pretended[name]["cpu"], rel=1e-4, abs=1e-5)


def test_the_pretended_gpu_sees_what_waits(pretended):
    kinds = [wait.split(" by ")[0] for wait in pretended["a program that waits"]["waits"]]
    copies = ["a copy to the host", "a copy in place between the host and the GPU"]
    assert kinds == ["a copy to the GPU that waits", "a read", "a read", *copies]


@pytest.mark.gpu
@pytest.mark.parametrize("name", gpu_cases.CASES)
def test_a_step_gives_on_a_gpu_what_it_gives_on_a_cpu(tiny_digits, name):
    device = Device("cuda", 1)
    with device.full_precision():
        found = gpu_cases.take_step(name, tiny_digits, device)
    expected = gpu_cases.take_step(name, tiny_digits, Device("cpu", 1))
    assert found.keys() == expected.keys() and all(map(math.isfinite, found.values()))
    if name not in DRAWN_THERE:
        assert found == pytest.approx(expected, rel=1e-2, abs=1e-3)
