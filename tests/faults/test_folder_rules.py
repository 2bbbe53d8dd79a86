"""What the same command, and another one, does to a folder that has a run in it already."""

import json
import shutil

import pytest
from faults_support import RETRAIN, SEARCH, SHORT, assert_same_end

from ssfnas_cli.artifacts.files import read_sealed_json, write_sealed_json


def stop_at(epoch, step):
    return {"signal_at_step": [15, "search", epoch, step, 0]}


def test_a_run_that_is_done_returns_at_once_with_the_same_output(zygote, place):
    first = zygote.run([*SEARCH, "--epochs", "1", "-o", "run"], place)
    before = {path: path.stat().st_mtime_ns for path in (place / "run").rglob("*")}
    again = zygote.run([*SEARCH, "--epochs", "1", "-o", "run"], place)
    assert (again.code, again.out) == (0, first.out) and first.out
    assert "done; nothing to do" in again.err
    assert {path: path.stat().st_mtime_ns for path in (place / "run").rglob("*")} == before


def test_moving_the_data_and_changing_how_it_is_run_is_no_difference(zygote, world, place):
    assert zygote.run([*SEARCH, "-o", "run"], place, stop_at(1, 1)).code == 75
    shutil.copytree(world / "data", place / "scratch" / "staged")
    (place / "data").unlink()
    moved = [*SEARCH, "--data", "scratch/staged", "--device", "cpu", "--workers", "1", "--max-time", "9:00:00"]
    moved += ["--set", "save_minutes=5", "--set", "keep_checkpoints=1", "--set", "log_seconds=1", "-o", "run"]
    result = zygote.run(moved, place)
    assert result.code == 0, result.err
    run = (place / "run").rename(place / "moved-itself")
    assert zygote.run([*moved[:-1], "moved-itself"], place).out.replace("moved-itself", "run") == result.out
    assert len(list((run / "checkpoints").iterdir())) == 1
    genotype = json.loads((run / "genotype.json").read_text())
    assert genotype["provenance"]["data_sha256"] == json.loads(result.out)["data_sha256"]


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        (["--seed", "1"], ["seed (0 there, 1 here)"]),
        (["--relax", "sigmoid"], ["relax.name (softmax there, sigmoid here)", "relax."]),
        (["--set", "lr=0.5", "--set", "loss.label_smoothing=0.1"], ["lr (0.025 there, 0.5 here)", "loss.label_smo"]),
    ],
)
def test_another_identity_is_exit_4_that_lists_the_keys(zygote, place, changes, keys):
    assert zygote.run([*SEARCH, "-o", "run"], place, stop_at(0, 1)).code == 75
    before = {path: path.read_bytes() for path in (place / "run").rglob("*") if path.is_file()}
    result = zygote.run([*SEARCH, *changes, "-o", "run"], place)
    assert result.code == 4 and len(result.err.splitlines()) == 1
    assert all(key in result.err for key in keys) and "--force" in result.err
    assert {path: path.read_bytes() for path in (place / "run").rglob("*") if path.is_file()} == before


def test_another_data_set_is_another_identity(zygote, place):
    assert zygote.run([*SEARCH, "-o", "run"], place, stop_at(0, 1)).code == 75
    zygote.run(["make-dataset", "--max-per-class", "8", "--mu", "0.5", "--seed", "7", "-o", "other"], place)
    result = zygote.run([*SEARCH, "--data", "other", "-o", "run"], place)
    assert result.code == 4 and "data_sha256" in result.err


def test_another_genotype_is_another_identity_in_one_short_line(zygote, place):
    assert zygote.run([*RETRAIN, "-o", "run"], place, {"signal_at_step": [15, "pretrain", 0, 0, 0]}).code == 75
    value = json.loads((place / "genotype.json").read_text())
    value["normal"]["edges"][0]["op"] = (
        "sep_conv_3x3" if value["normal"]["edges"][0]["op"] != "sep_conv_3x3" else "skip_connect"
    )
    (place / "genotype.json").unlink()
    (place / "genotype.json").write_text(json.dumps(value))
    result = zygote.run([*RETRAIN, "-o", "run"], place)
    assert result.code == 4 and "genotype" in result.err and len(result.err) < 400


def test_a_run_of_the_other_kind_is_named(zygote, world, place):
    shutil.copytree(world / "search", place / "run")
    result = zygote.run([*RETRAIN, "-o", "run"], place)
    assert result.code == 4 and "holds a search run" in result.err


def test_force_moves_the_old_run_aside_and_never_deletes(zygote, world, place):
    for number in (1, 2):
        assert zygote.run([*SEARCH, "-o", "run"], place, stop_at(0, number)).code == 75
        result = zygote.run([*SEARCH, "--seed", "3", "-o", "run", "--force"], place, stop_at(0, 0))
        assert result.code == 75 and f"run.old-{number}" in result.err
        assert not (place / f"run.old-{number}" / "lock.json").exists()
        shutil.rmtree(place / "run")
    assert zygote.run([*SEARCH, "-o", "run.old-2"], place).code == 0  # what was moved aside can be gone on with
    assert_same_end(place / "run.old-2", world / "search")


def test_force_on_the_current_folder_is_refused_in_one_line(zygote, place):
    for path in (".", ".."):
        result = zygote.run([*SEARCH, "-o", path, "--force"], place)
        assert result.code in (2, 5) and "Traceback" not in result.err, result
        assert len(result.err.splitlines()) == 1


def test_another_processor_torch_or_kernel_path_resumes_with_one_warning(zygote, place):
    assert zygote.run([*SHORT, "-o", "run"], place, stop_at(0, 1)).code == 75
    config = read_sealed_json(place / "run" / "config.json")
    assert config["environment"]["threads"] == 1
    config["environment"] |= {"processor": "Z80", "torch": "1.0", "threads": 3, "kernels": "SSE"}
    write_sealed_json(place / "run" / "config.json", config)
    result = zygote.run([*SHORT, "-o", "run"], place)
    assert result.code == 0
    (warning,) = [line for line in result.err.splitlines() if "warning" in line]
    assert "last bits may differ" in warning and "threads (3 then, 1 now)" in warning
    assert all(f"{key} (" in warning for key in ("processor", "torch", "kernels"))


def test_a_kill_before_the_config_is_written_leaves_a_folder_to_begin_in(zygote, place):
    killed = zygote.run([*SEARCH, "-o", "run"], place, {"signals_at_file_event": [9, 0, "config.json"]})
    assert killed.code == -9 and list((place / "run").iterdir())
    assert zygote.run([*SEARCH, "--epochs", "1", "-o", "run"], place).code == 0
