import json
import os
import subprocess
import threading
import time

import pytest

from ssfnas_cli.artifacts import lock as module
from ssfnas_cli.artifacts.lock import FolderLock, is_held
from ssfnas_cli.errors import DiskError, OutputExistsError


def write(folder, age=0.0, **changes):
    content = {**module._place(), "pid": os.getpid(), "started": module.process_start(os.getpid()), "token": "theirs"}
    path = folder / "lock.json"
    path.write_text(json.dumps({**content, **changes}))
    os.utime(path, (time.time() - age,) * 2)


def held_by_another(folder):
    try:
        lock = FolderLock(folder)
        lock.acquire()
    except OutputExistsError:
        return True
    lock.release()
    return False


def test_a_lock_is_held_from_acquire_to_release(tmp_path):
    lock = FolderLock(tmp_path)
    assert not is_held(tmp_path)
    lock.acquire()
    lock.check()
    assert is_held(tmp_path) and held_by_another(tmp_path)
    lock.release()
    assert not is_held(tmp_path) and not list(tmp_path.iterdir())


def test_of_many_who_try_at_once_one_gets_it(tmp_path):
    got, start = [], threading.Barrier(8)

    def attempt():
        lock = FolderLock(tmp_path)
        start.wait()
        try:
            lock.acquire()
        except OutputExistsError:
            return
        got.append(lock)

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    got[0].check()
    got[0].release()


def test_a_dead_pid_here_is_stale_at_once(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    write(tmp_path, pid=gone.pid)
    lock = FolderLock(tmp_path)
    lock.acquire()
    assert f"process {gone.pid}" in lock.taken_over
    lock.release()


def test_a_killed_process_that_nobody_has_asked_after_is_dead(tmp_path):
    zombie = subprocess.Popen(["sleep", "60"])
    started = module.process_start(zombie.pid)
    write(tmp_path, pid=zombie.pid, started=started)
    assert held_by_another(tmp_path)
    zombie.kill()
    while module._process_fields(zombie.pid)[:1] != ["Z"]:
        time.sleep(0.01)
    assert not held_by_another(tmp_path)
    zombie.wait()


@pytest.mark.parametrize(
    ("changes", "held"),
    [
        ({}, True),
        ({"started": "1"}, False),  # the pid is another process by now
        ({"host": "elsewhere"}, True),
        ({"host": "elsewhere", "pid": 2**22 + 1}, True),  # a pid of another host tells nothing
        ({"boot": "another", "pid": 2**22 + 1}, True),  # hosts may share a name
        ({"pid_namespace": "another", "pid": 2**22 + 1}, True),  # containers may share a host's name
        ({"pid": 2**22 + 1}, False),
        ({"pid": 2**80}, False),
        ({"pid": -1}, True),
        ({"pid": "7"}, True),
    ],
)
def test_who_counts_as_dead(tmp_path, changes, held):
    write(tmp_path, **changes)
    assert is_held(tmp_path) == held
    assert held_by_another(tmp_path) == held
    write(tmp_path, age=module.SILENCE_SECONDS + 1, **changes)
    assert not held_by_another(tmp_path)  # silence ends every claim


def test_a_lock_that_cannot_be_read_counts_until_it_has_been_silent(tmp_path):
    for content in (b"", b"\xff", b"[]", b"{" * 100_000):
        (tmp_path / "lock.json").write_bytes(content)
        assert held_by_another(tmp_path)
        os.utime(tmp_path / "lock.json", (0, 0))
        assert not held_by_another(tmp_path)


def test_a_heartbeat_keeps_a_lock_fresh(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.02)
    lock = FolderLock(tmp_path)
    lock.acquire()
    os.utime(tmp_path / "lock.json", (0, 0))
    end = time.monotonic() + 10
    while (tmp_path / "lock.json").stat().st_mtime < 1 and time.monotonic() < end:
        time.sleep(0.01)
    assert is_held(tmp_path)
    lock.release()


def test_whoever_lost_the_lock_finds_out_and_leaves_it_alone(tmp_path):
    lock = FolderLock(tmp_path)
    lock.acquire()
    write(tmp_path, host="elsewhere", pid=9)
    with pytest.raises(OutputExistsError, match="process 9 on elsewhere took this folder over"):
        lock.check()
    lock.release()
    assert (tmp_path / "lock.json").exists()
    (tmp_path / "lock.json").unlink()
    with pytest.raises(OutputExistsError, match="is gone"):
        lock.check()


def test_where_links_are_not_supported_the_lock_still_excludes(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    lock = FolderLock(tmp_path)
    lock.acquire()
    assert held_by_another(tmp_path)
    lock.release()


def test_a_link_whose_answer_was_lost_counts_as_made(tmp_path, monkeypatch):
    link = os.link

    def forgetful(source, target):
        link(source, target)
        raise FileExistsError(17, "File exists")

    monkeypatch.setattr(os, "link", forgetful)
    lock = FolderLock(tmp_path)
    lock.acquire()
    lock.check()
    lock.release()


def test_a_folder_that_is_not_there_is_a_disk_error(tmp_path):
    with pytest.raises(DiskError, match="nowhere"):
        FolderLock(tmp_path / "nowhere").acquire()
