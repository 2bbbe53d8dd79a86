"""A server of cheap `ssfnas` processes, tiny undisturbed runs, and a place for each test."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from faults_support import DATASET, RETRAIN, SEARCH, Zygote  # noqa: E402


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """The server, one for all tests."""
    server = Zygote()
    yield server
    server.close()


@pytest.fixture(scope="session")
def world(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set `data`, an undisturbed search `search`, its `genotype.json`, and a `retrain`."""
    folder = tmp_path_factory.mktemp("world")
    for argv in (
        [*DATASET, "-o", "data"],
        [*SEARCH, "-o", "search"],
        ["derive", "search", "--rule", "darts", "-o", "genotype.json"],
        [*RETRAIN, "-o", "retrain"],
    ):
        result = zygote.run(argv, folder)
        assert result.code == 0, result.err
    return folder


@pytest.fixture
def place(world: Path, tmp_path: Path) -> Path:
    """A folder for one test, with the world's `data` and `genotype.json`."""
    (tmp_path / "data").symlink_to(world / "data")
    (tmp_path / "genotype.json").symlink_to(world / "genotype.json")
    return tmp_path
