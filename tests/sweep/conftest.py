"""Plans from TOML that a test writes; `results_support` can be imported."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "results"))

from ssfnas_cli.sweep.cells import Cell
from ssfnas_cli.sweep.grid import build_cells
from ssfnas_cli.sweep.plan_file import read_plan


@pytest.fixture
def cells_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Cell]]:
    """`cells_of(text, *sets)`: the cells of a file `sweep.toml`, in an empty current folder."""
    monkeypatch.chdir(tmp_path)

    def build(text: str, *sets: str) -> list[Cell]:
        Path("sweep.toml").write_text(text)
        return build_cells(read_plan(Path("sweep.toml"), sets))

    return build
