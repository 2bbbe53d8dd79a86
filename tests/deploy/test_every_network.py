"""The proof that networks of the registry can be exported, on one of them; the benchmark does all of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v3_small"])
def test_a_network_is_exported_with_logits_of_real_magnitude(name, tmp_path):
    out = tmp_path / "found.jsonl"
    page = (ROOT / "docs" / "use.md").read_bytes()
    command = [sys.executable, str(ROOT / "benchmarks" / "export_networks.py"), name, "--out", str(out)]
    environ = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=280)
    assert done.returncode == 0, done.stderr
    (found,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert found["name"] == name and found["side"] == 32 and 2 < found["deviation"] < 10
    for suffix in (".onnx", ".pt2"):
        assert isinstance(found[suffix], float) and 0 < found[suffix] < 1e-4, found[suffix]
    assert (ROOT / "docs" / "use.md").read_bytes() == page, "only the whole is written down"
