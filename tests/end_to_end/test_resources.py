"""What the machine lacks: one line that says what, and exit code 5."""

import json
import subprocess

import pytest


def test_memory_that_runs_out_is_one_line_and_no_bug(ssfnas, world, tmp_path):
    """A convolution of 51 GB, under a limit of 12."""
    flags = " ".join([*ssfnas.tiny, *ssfnas.ops])
    command = f"ssfnas search --data {world / 'data'} {flags} --channels 65536 -q -o run"
    result = ssfnas.shell(f"ulimit -v 12000000; {command}", tmp_path)
    (line,) = result.err.splitlines()
    assert result.code == 5 and result.out == b""
    assert line.startswith("ssfnas: memory has run out (") and "MiB more were asked for" in line
    assert all(flag in line for flag in ("--batch-size", "--channels", "--layers", "--precision"))
    assert list(tmp_path.iterdir()) == []


def test_memory_that_does_not_even_hold_torch(ssfnas, world, tmp_path):
    result = ssfnas.shell(f"ulimit -v 400000; ssfnas derive {world / 'search'}", tmp_path)
    assert result.code == 5 and result.err.startswith("ssfnas: memory has run out"), result.err
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize("size", ["4k", "40k"])
def test_shared_memory_that_is_full_is_one_line_and_the_run_goes_on(ssfnas, world, tmp_path, size):
    """A container's /dev/shm is small. Loader processes keep locks in it, and hand batches over."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("needs the right to mount (unshare -m)")
    argv = (
        f"ssfnas search --data {world / 'data'} {' '.join([*ssfnas.tiny, *ssfnas.ops])} --epochs 2 --workers 2 -o run"
    )
    inner = f"mount -t tmpfs -o size={size} tmpfs /dev/shm && exec {argv}"
    result = ssfnas.shell(f'unshare -m bash -c "{inner}"', tmp_path)
    last = result.err.splitlines()[-1]
    assert result.code == 5 and result.out == b"" and "Traceback" not in result.err, result.err
    assert "--workers 2: shared memory is full (/dev/shm: " in last and "--workers 0" in last
    ssfnas.ok(*argv.split()[1:], cwd=tmp_path)
    numbers = lambda run: [line["weight_loss"] for line in map(json.loads, (run / "metrics.jsonl").open())]
    assert numbers(tmp_path / "run") == numbers(world / "search")


def test_descriptors_that_run_out_are_one_line(ssfnas, world, tmp_path):
    argv = f"ssfnas search --data {world / 'data'} {' '.join([*ssfnas.tiny, *ssfnas.ops])} --workers 16 -o run"
    result = ssfnas.shell(f"ulimit -n 40; {argv}", tmp_path)
    last = result.err.splitlines()[-1]
    assert result.code == 5 and "Traceback" not in result.err, result.err
    assert "too many open files (the limit is 40)" in last and "ulimit -n" in last
