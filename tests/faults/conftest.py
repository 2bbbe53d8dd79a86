"""Tiny undisturbed runs, and a place for each test."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults_support import DATASET, RETRAIN, SEARCH, Zygote
from ranks_support import SEARCH_ON_RANKS, ranks, said


@pytest.fixture(scope="session")
def memory_folder() -> Iterator[Path]:
    """A folder in memory where there is room: the tests save at every step, and a disk's flush takes longer."""
    roomy = os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 2**28
    with tempfile.TemporaryDirectory(dir="/dev/shm" if roomy else None, prefix="ssfnas-tests-") as name:
        Path(name).chmod(0o755)  # some tests become another user
        yield Path(name)


@pytest.fixture(scope="session")
def stand_in(zygote: Zygote, memory_folder: Path) -> Path:
    """The program `ssfnas` for shells and scripts, whose processes are forks (see door.py)."""
    folder = memory_folder / "bin"
    folder.mkdir()
    return zygote.open_door(folder)


@pytest.fixture(scope="session")
def world(zygote: Zygote, memory_folder: Path) -> Path:
    """A folder with a data set `data`, an undisturbed search `search`, its `genotype.json`, and a `retrain`."""
    folder = memory_folder / "world"
    folder.mkdir()
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
def place(world: Path, memory_folder: Path) -> Iterator[Path]:
    """A folder for one test, with the world's `data` and `genotype.json`."""
    folder = Path(tempfile.mkdtemp(dir=memory_folder))
    folder.chmod(0o755)
    (folder / "data").symlink_to(world / "data")
    (folder / "genotype.json").symlink_to(world / "genotype.json")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def stopped(zygote: Zygote, world: Path, memory_folder: Path) -> Path:
    """A search that was stopped in its second epoch, with two checkpoints. Tests copy it and do not change it."""
    folder = memory_folder / "stopped"
    folder.mkdir()
    (folder / "data").symlink_to(world / "data")
    assert zygote.run([*SEARCH, "-o", "run"], folder, {"signal_at_step": [15, "search", 1, 3, 0]}).code == 75
    return folder / "run"


@pytest.fixture
def run(stopped: Path, place: Path) -> Path:
    """A copy of the stopped search in the folder of a test."""
    return shutil.copytree(stopped, place / "run")


@pytest.fixture(scope="session")
def undisturbed(zygote: Zygote, world: Path, memory_folder: Path) -> Path:
    """An undisturbed search on two ranks."""
    folder = memory_folder / "on-two-ranks"
    folder.mkdir()
    (folder / "data").symlink_to(world / "data")
    said(ranks(zygote, SEARCH_ON_RANKS, folder), 0)
    return folder / "run"
