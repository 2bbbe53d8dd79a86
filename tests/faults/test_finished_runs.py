"""The command of a finished run again: it names the folder as it is called now, and mends what was lost of it."""

import shutil
from pathlib import Path

import pytest
from faults_support import RETRAIN, SEARCH, assert_same_end

COMMANDS = {"search": SEARCH, "retrain": RETRAIN}


@pytest.fixture
def copy_of(world, place):
    """`copy_of("search")` is a copy of that finished run in the test's folder."""
    return lambda name: shutil.copytree(world / name, place / f"other {name}")


def files(folder: Path):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "status.json"}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_run_that_was_moved_is_named_by_where_it_is_now(zygote, place, copy_of, name):
    folder = copy_of(name)
    result = zygote.run([*COMMANDS[name], "-o", folder.name], place)
    assert result.code == 0 and "is done; nothing to do" in result.err
    assert result.json["path"] == folder.name and f"'{folder.name}" in result.err.splitlines()[-1]


LOST = [
    ("search", "alphas.safetensors"),
    ("search", "genotype.json"),
    ("retrain", "model.safetensors"),
    ("retrain", "genotype.json"),
]


@pytest.mark.parametrize("damage", ["gone", "cut off"])
@pytest.mark.parametrize(("name", "lost"), LOST)
def test_a_lost_file_is_written_again_from_the_last_checkpoint(zygote, world, place, copy_of, name, lost, damage):
    folder = copy_of(name)
    before = files(folder)
    if damage == "gone":
        (folder / lost).unlink()
    else:
        (folder / lost).write_bytes(before[lost][:100])
    result = zygote.run([*COMMANDS[name], "-o", folder.name], place)
    assert result.code == 0 and f"{lost}: is gone or damaged, and is written again" in result.err
    after = files(folder)
    assert after.keys() == before.keys()
    assert all(after[one] == before[one] for one in before if one.endswith(".safetensors"))
    assert_same_end(folder, world / name)
    assert "nothing to do" in zygote.run([*COMMANDS[name], "-o", folder.name], place).err


def test_a_genotype_that_was_derived_there_anew_is_left_alone(zygote, place, copy_of):
    folder = copy_of("search")
    other = place / "genotype.json"
    (folder / "genotype.json").write_bytes(other.read_bytes())
    result = zygote.run([*SEARCH, "-o", folder.name], place)
    assert result.code == 0 and "nothing to do" in result.err
    assert (folder / "genotype.json").read_bytes() == other.read_bytes()


def test_a_lost_file_without_a_checkpoint_is_exit_3_that_names_force(zygote, place, copy_of):
    folder = copy_of("search")
    shutil.rmtree(folder / "checkpoints")
    assert zygote.run([*SEARCH, "-o", folder.name], place).code == 0, "a finished run needs no checkpoint"
    (folder / "alphas.safetensors").unlink()
    result = zygote.run([*SEARCH, "-o", folder.name], place)
    assert result.code == 3 and "alphas.safetensors: is gone or damaged" in result.err and "--force" in result.err
