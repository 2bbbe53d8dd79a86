"""A full disk, places that cannot be written, and other people's folders."""

import os
import shutil
import stat
import subprocess

import pytest
from faults_support import RETRAIN, SEARCH, assert_same_end, script

from ssfnas_cli.artifacts.checkpoint import list_checkpoints, load_checkpoint

NOGROUP = 65534


def half_done(zygote, place):
    result = zygote.run([*SEARCH, "-o", "run"], place, {"signal_at_step": [15, "search", 1, 2, 0]})
    assert result.code == 75
    return place / "run"


@pytest.fixture
def small_disk(place):
    """A file system of 1 MB; skipped over where mounting is not allowed (see the limit on file sizes)."""
    folder = place / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True
    )
    if not mounted or mounted.returncode:
        yield None
        return
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_keeps_the_old_checkpoint_and_a_retry_goes_on(zygote, world, place, small_disk):
    if small_disk is None:
        return  # the next test is the same with a limit on file sizes
    argv = [*SEARCH, "-o", "disk/run"]
    assert zygote.run(argv, place, {"signal_at_step": [15, "search", 0, 3, 0]}).code == 75
    before = [path.name for path in list_checkpoints(small_disk / "run" / "checkpoints")]
    hog = small_disk / "hog"
    with pytest.raises(OSError), hog.open("wb") as stream:
        while True:
            stream.write(b"\0" * 4096)
            stream.flush()
    for _ in range(2):  # a retry while the disk is still full changes nothing
        result = zygote.run(argv, place)
        assert result.code == 5 and "No space left" in result.err
        assert "Traceback" not in result.err and "Logging error" not in result.err
        kept = list_checkpoints(small_disk / "run" / "checkpoints")
        assert [path.name for path in kept] == before
        load_checkpoint(kept[-1])
    hog.unlink()
    assert zygote.run(argv, place).code == 0
    assert_same_end(small_disk / "run", world / "search")


def test_a_limit_on_file_sizes_keeps_the_old_checkpoint_and_a_retry_goes_on(zygote, world, place):
    run = half_done(zygote, place)
    before = [path.name for path in list_checkpoints(run / "checkpoints")]
    size = (list_checkpoints(run / "checkpoints")[-1] / "tensors.safetensors").stat().st_size
    result = zygote.run([*SEARCH, "-o", "run"], place, {"file_size_limit": size // 2})
    assert result.code == 5 and "checkpoints/" in result.err, result.err
    assert "Traceback" not in result.err
    kept = list_checkpoints(run / "checkpoints")
    assert [path.name for path in kept] == before
    load_checkpoint(kept[-1])
    assert not [path for path in run.rglob(".*")]
    assert zygote.run([*SEARCH, "-o", "run"], place).code == 0
    assert_same_end(run, world / "search")


def test_a_file_where_the_output_folder_should_be_is_found_before_training(zygote, place):
    (place / "run").write_text("mine")
    result = zygote.run([*SEARCH, "-o", "run"], place)
    assert result.code == 4 and "run: is a file" in result.err and "epoch" not in result.err
    below = zygote.run([*SEARCH, "-o", "run/below"], place)
    assert below.code == 5 and "run/below" in below.err and "epoch" not in below.err
    assert (place / "run").read_text() == "mine"
    assert zygote.run([*SEARCH, "--epochs", "1", "-o", "run", "--force"], place).code == 0
    assert (place / "run.old-1").read_text() == "mine"


def test_an_output_that_cannot_be_written_is_found_before_training(zygote, place):
    (place / "others").mkdir()
    (place / "others").chmod(0o555)
    for argv in ([*SEARCH, "-o", "others/run"], [*RETRAIN, "-o", "others/run"]):
        result = zygote.run(argv, place, {"obey_permissions": True})
        assert result.code == 5, result
        assert "others/run" in result.err and "Permission denied" in result.err
        assert "epoch" not in result.err and "Traceback" not in result.err


def test_a_run_that_may_not_be_written_is_found_before_training(zygote, place):
    run = half_done(zygote, place)
    run.chmod(0o555)
    result = zygote.run([*SEARCH, "-o", "run"], place, {"obey_permissions": True})
    run.chmod(0o755)
    assert result.code == 5 and "cannot be written" in result.err and "Traceback" not in result.err


def test_a_folder_with_other_things_in_it_is_left_alone(zygote, place):
    (place / "thesis").mkdir()
    (place / "thesis" / "chapter.tex").write_text("mine")
    result = zygote.run([*SEARCH, "-o", "thesis"], place)
    assert result.code == 4 and "other things" in result.err
    assert [path.name for path in (place / "thesis").iterdir()] == ["chapter.tex"]


@pytest.mark.parametrize("argv", [SEARCH, RETRAIN], ids=["search", "retrain"])
def test_under_umask_027_a_shared_folder_stays_shared(zygote, place, argv):
    shared = place / "shared"
    shared.mkdir()
    group = NOGROUP if os.geteuid() == 0 else os.getgroups()[-1]
    os.chown(shared, -1, group)
    shared.chmod(0o2750)
    result = zygote.run([*argv, "--epochs", "1", "-o", "shared/run"], place, {"umask": 0o027})
    assert result.code == 0, result.err
    paths = [shared / "run", *(shared / "run").rglob("*")]
    assert len(paths) > 10
    for path in paths:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o2750 if path.is_dir() else 0o640), (path, oct(mode))
        assert path.stat().st_gid == group, path


def test_the_installed_script_reports_a_full_output_device(place):
    with open("/dev/full", "w") as full:  # noqa: PTH123
        process = script("runs", ".", cwd=place, stdout=full)
        _, err = process.communicate()
    assert process.returncode == 5 and "No space left" in err and "Traceback" not in err
