"""The rule that no code of ours loads what runs: pickle, torch.load, torch.save, allow_pickle."""

import ast
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ssfnas_cli.data.sources.base import open_source
from ssfnas_cli.errors import InputError
from ssfnas_cli.settings import MakeDatasetSettings

ROOT = Path(__file__).parents[2]

FORBIDDEN = {
    "import pickle": "TID251",
    "from pickle import loads": "TID251",
    "import torch\n\ntorch.load('x')": "TID251",
    "from torch import load": "TID251",
    "import torch\n\ntorch.save({}, 'x')": "TID251",
    "import joblib": "TID251",
    "import dill": "TID251",
    "import shelve": "TID251",
    "import marshal": "TID251",
}


@pytest.mark.parametrize("code", FORBIDDEN)
def test_ruff_refuses_what_unpickles(code):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "--stdin-filename", "ssfnas_cli/new.py", "-"],
        input=code + "\n",
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and FORBIDDEN[code] in done.stdout, done.stdout


def allow_pickle_of(code, name="code"):
    """Lines that pass `allow_pickle` anything but a plain False."""
    return [
        f"{name}:{node.lineno}"
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.keyword)
        and node.arg == "allow_pickle"
        and not (isinstance(node.value, ast.Constant) and node.value.value is False)
    ]


def test_the_check_for_allow_pickle_sees_it():
    assert allow_pickle_of("np.load(p, allow_pickle=True)") == ["code:1"]
    assert allow_pickle_of("np.load(p, allow_pickle=flag)") == ["code:1"]
    assert allow_pickle_of("np.load(p, allow_pickle=False)") == []


def test_no_code_of_ours_allows_pickles_in_numpy_files():
    folders = ("ssfnas_cli", "registry", "examples", "benchmarks")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    assert len(files) > 50
    found = [line for file in files for line in allow_pickle_of(file.read_text(), str(file.relative_to(ROOT)))]
    assert found == []


def test_an_npz_that_holds_a_pickle_does_not_run_it(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": (4,)})
    payload = header.getvalue() + f"cos\nsystem\n(S'touch {tmp_path}/ran'\ntR.".encode()
    with zipfile.ZipFile(tmp_path / "evil.npz", "w") as archive:
        for name in ("train_images", "train_labels", "test_images", "test_labels"):
            archive.writestr(f"{name}.npy", payload)
    with pytest.raises(InputError, match=r"evil\.npz"):
        open_source(MakeDatasetSettings(source="npz", root=str(tmp_path / "evil.npz")))
    assert not (tmp_path / "ran").exists()
