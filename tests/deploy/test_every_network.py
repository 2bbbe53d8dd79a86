"""The proof that networks of the registry can be exported, on one of them; the benchmark does all of them."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v3_small"])
def test_a_network_is_exported_with_logits_of_real_magnitude(name, zygote, tmp_path):
    out = tmp_path / "found.jsonl"
    page = (ROOT / "docs" / "use.md").read_bytes()
    script = {"script": str(ROOT / "benchmarks" / "export_networks.py")}
    done = zygote.run([name, "--out", out], tmp_path, script, environ={"PYTHONPATH": str(ROOT)})
    assert done.code == 0, done.err
    (found,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert found["name"] == name and found["side"] == 32 and 2 < found["deviation"] < 10
    for suffix in (".onnx", ".pt2"):
        assert isinstance(found[suffix], float) and 0 < found[suffix] < 1e-4, found[suffix]
    assert (ROOT / "docs" / "use.md").read_bytes() == page, "only the whole is written down"
