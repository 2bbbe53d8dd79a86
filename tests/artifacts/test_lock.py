import json
import os
import subprocess
import sys
import threading
import time

import pytest

from ssfnas_cli.artifacts import lock as module
from ssfnas_cli.artifacts.lock import FolderLock, is_held
from ssfnas_cli.errors import DiskError, InputError, OutputExistsError


def write(folder, age=0.0, **changes):
    mine = {"pid": os.getpid(), "started": module.process_start(os.getpid()), "token": "theirs"}
    content = {**module._pid_scope(), **mine}
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
    zombie = subprocess.Popen(["sleep", "infinity"])
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
        ({"started": "1"}, False),  # the pid is another process by now
        ({"started": None}, True),  # or may be
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
    assert not held_by_another(tmp_path)  # silence ends the claim of whoever is not known to be alive


@pytest.mark.parametrize("age", [0, 1e6, -1e6], ids=["now", "long ago", "in the future"])
def test_a_process_that_is_alive_here_keeps_its_lock_however_long_it_is_silent(tmp_path, age):
    """A laptop that slept, a process that was stopped."""
    write(tmp_path, age=age)
    assert is_held(tmp_path)
    with pytest.raises(OutputExistsError, match=f"process {os.getpid()} on .* is writing here .it is alive"):
        FolderLock(tmp_path).acquire()
    assert (tmp_path / "lock.json").exists() and len(list(tmp_path.iterdir())) == 1


def test_a_lock_from_the_future_is_said_with_what_to_do(tmp_path):
    write(tmp_path, age=-1e6, host="elsewhere")
    with pytest.raises(OutputExistsError, match=r"lies \d+ s ahead of .*: if nobody does, remove .*lock\.json"):
        FolderLock(tmp_path).acquire()


@pytest.mark.parametrize("kind", ["dangling", "link", "folder", "pipe"])
def test_what_stands_in_place_of_a_lock_is_said_and_left_alone(tmp_path, kind):
    path = tmp_path / "run" / "lock.json"
    path.parent.mkdir()
    (tmp_path / "other").write_text("{}")
    {
        "dangling": lambda: path.symlink_to("nowhere"),
        "link": lambda: path.symlink_to(tmp_path / "other"),
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
    }[kind]()
    os.utime(path, (0, 0), follow_symlinks=False)
    with pytest.raises(InputError, match=r"lock\.json: is a link, a folder or a pipe, not a lock: remove it"):
        FolderLock(path.parent).acquire()
    assert os.path.lexists(path) and (tmp_path / "other").read_text() == "{}"
    assert [found.name for found in path.parent.iterdir()] == ["lock.json"]


def test_of_many_processes_that_find_a_dead_ones_lock_one_gets_it(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    code = (
        "import sys; from pathlib import Path; from ssfnas_cli.artifacts.lock import FolderLock\n"
        "lock = FolderLock(Path(sys.argv[1])); print('ready', flush=True); sys.stdin.readline()\n"
        "try:\n    lock.acquire()\nexcept Exception as error: print(type(error).__name__, flush=True)\n"
        "else: print('got it', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    many = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], **streams) for _ in range(12)]
    for process in many:
        assert process.stdout.readline() == "ready\n"
    write(tmp_path, pid=gone.pid)
    for process in many:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = sorted(process.stdout.readline() for process in many)
    for process in many:
        process.communicate("end\n")
    assert said == ["OutputExistsError\n"] * 11 + ["got it\n"]


def test_sweeping_takes_the_half_written_locks_of_the_dead_only(tmp_path):
    write(tmp_path)
    living = (tmp_path / "lock.json").rename(tmp_path / f".lock.{'a' * 32}.tmp")
    write(tmp_path, pid=2**22 + 1)
    (tmp_path / "lock.json").rename(tmp_path / f".lock.{'b' * 32}.stale.tmp")
    (tmp_path / ".lock.mine.tmp").write_text("{}")
    module.delete_lock_temporaries(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [living.name, ".lock.mine.tmp"]


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
    while (tmp_path / "lock.json").stat().st_mtime < 1:
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
