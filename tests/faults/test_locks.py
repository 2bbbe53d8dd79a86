"""One writer at a time."""

import json
import os
import socket
import subprocess
import time

from faults_support import SEARCH, SHORT, assert_same_end, wait_for

from ssfnas_cli.artifacts.checkpoint import list_checkpoints


def write_lock(run, age=0.0, **content):
    path = run / "lock.json"
    path.write_text(json.dumps(content))
    os.utime(path, (time.time() - age,) * 2)
    return path


def own_lock(**changes):
    """What a process here would have written."""
    from ssfnas_cli.artifacts.lock import _pid_scope

    return {**_pid_scope(), "token": "theirs", **changes}


def half_done(zygote, place, argv=SEARCH):
    result = zygote.run([*argv, "-o", "run"], place, {"signal_at_step": [15, "search", 0, 3, 0]})
    assert result.code == 75
    return place / "run"


def test_a_second_process_on_a_folder_is_refused_and_the_first_goes_on(zygote, world, place):
    flag = place / "paused"
    first = zygote.start([*SEARCH, "-o", "run"], place, {"pause_at_step": [1, 1, str(flag)]})
    wait_for(flag.exists)
    second = zygote.run([*SEARCH, "-o", "run"], place)
    forced = zygote.run([*SEARCH, "-o", "run", "--force"], place)
    for result in (second, forced):
        assert result.code == 4
        assert f"process {first.pid} on {socket.gethostname()} is writing here" in result.err
        assert len(result.err.strip().splitlines()) == 1
    assert not list(place.glob("*.old-*"))
    flag.unlink()
    assert zygote.wait(first).code == 0
    assert_same_end(place / "run", world / "search")


def test_a_dead_process_of_this_host_is_taken_over_at_once_and_that_is_logged(zygote, world, place):
    run = half_done(zygote, place)
    dead = subprocess.Popen(["true"])
    dead.wait()
    write_lock(run, **own_lock(pid=dead.pid, started="1"))
    result = zygote.run([*SEARCH, "-o", "run"], place)
    assert result.code == 0
    assert f"took over the lock of process {dead.pid}" in result.err
    assert f"took over the lock of process {dead.pid}" in (run / "log.txt").read_text()
    assert_same_end(run, world / "search")


def test_a_pid_that_is_another_process_by_now_counts_as_dead(zygote, place):
    run = half_done(zygote, place, SHORT)
    write_lock(run, **own_lock(pid=os.getpid(), started="1"))
    assert zygote.run([*SHORT, "-o", "run"], place).code == 0


def test_another_host_is_waited_for_until_it_has_been_silent_for_long(zygote, place):
    run = half_done(zygote, place, SHORT)
    write_lock(run, age=60, host="elsewhere", pid=1, token="theirs")
    result = zygote.run([*SHORT, "-o", "run"], place)
    assert result.code == 4 and "process 1 on elsewhere" in result.err and "600 s" in result.err
    write_lock(run, age=6000, host="elsewhere", pid=1, token="theirs")
    result = zygote.run([*SHORT, "-o", "run"], place)
    assert result.code == 0 and "took over the lock of process 1 on elsewhere" in result.err


def test_a_process_whose_folder_was_taken_over_writes_nothing_more(zygote, place):
    run = place / "run"
    result = zygote.run([*SEARCH, "-o", "run"], place, {"steal_lock_at_step": [str(run), 0, 3]})
    assert result.code == 4 and "process 1 on elsewhere took this folder over" in result.err
    assert len(list_checkpoints(run / "checkpoints")) == 2
    assert json.loads((run / "status.json").read_text())["step"] == 3
    assert json.loads((run / "lock.json").read_text())["token"] == "theirs"  # not ours to remove


def test_a_process_that_diverges_after_it_was_taken_over_does_not_say_so_in_the_others_folder(zygote, place):
    run = place / "run"
    faults = {"steal_lock_at_step": [str(run), 0, 3], "poison": ["loss", 0, 3]}
    result = zygote.run([*SEARCH, "-o", "run"], place, faults)
    assert result.code == 4
    assert json.loads((run / "status.json").read_text())["state"] == "running"
