"""What the machine lacks: one line that says what, and exit code 5."""

import json
import subprocess

import pytest


@pytest.fixture
def run_with(ssfnas, world, zygote, tmp_path, tmp_path_factory):
    """`run_with({fault: value}, flag, ...)`: how a search into `run` ends in a process with a fault of zygote.py."""
    argv = ["search", "--data", world / "data", *ssfnas.tiny, *ssfnas.ops, "-o", "run"]
    streams = tmp_path_factory.mktemp("streams")
    return lambda faults, *more: zygote.run([*argv, *more], tmp_path, faults, streams=streams)


def test_memory_that_runs_out_is_one_line_and_no_bug(run_with, tmp_path):
    """A convolution of 51 GB, under a limit of 9."""
    result = run_with({"memory_limit_mb": 9000}, "--channels", "65536", "-q")
    (line,) = result.err.splitlines()
    assert result.code == 5 and result.out == ""
    assert line.startswith("ssfnas: memory has run out (") and "MiB more were asked for" in line
    assert all(flag in line for flag in ("--batch-size", "--channels", "--layers", "--precision"))
    assert list(tmp_path.iterdir()) == []


def test_memory_that_does_not_even_hold_torch(ssfnas, world, tmp_path):
    result = ssfnas.installed.shell(f"ulimit -v 400000; ssfnas derive {world / 'search'}", tmp_path)
    assert result.code == 5 and result.err.startswith("ssfnas: memory has run out"), result.err
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize("size", ["4k", "40k"])
def test_shared_memory_that_is_full_is_one_line_and_the_run_goes_on(run_with, world, tmp_path, size):
    """A container's /dev/shm is small. Loader processes keep locks in it, and hand batches over."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("needs the right to mount (unshare -m)")
    flags = ["--epochs", "2", "--workers", "2"]
    result = run_with({"shared_memory": size}, *flags)
    last = result.err.splitlines()[-1]
    assert result.code == 5 and result.out == "" and "Traceback" not in result.err, result.err
    assert "--workers 2: shared memory is full (/dev/shm: " in last and "--workers 0" in last
    assert run_with({}, *flags).code == 0
    numbers = lambda run: [line["weight_loss"] for line in map(json.loads, (run / "metrics.jsonl").open())]
    assert numbers(tmp_path / "run") == numbers(world / "search")


def test_descriptors_that_run_out_are_one_line(run_with):
    result = run_with({"descriptors": 40}, "--workers", "16")
    last = result.err.splitlines()[-1]
    assert result.code == 5 and "Traceback" not in result.err, result.err
    assert "too many open files (the limit is 40)" in last and "ulimit -n" in last
