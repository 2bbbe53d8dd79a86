"""Where the cache is, and what is done if it cannot be there."""

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ssfnas_cli.artifacts import cache

NOBODY = 54321  # a number that no user has
AS_NOBODY = f"""
import grp, os, pwd
from ssfnas_cli.artifacts.cache import cache_folder

if os.geteuid() == 0:
    os.setgid({NOBODY})
    os.setuid({NOBODY})
print(cache_folder())
print(cache_folder())
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """Nothing known from before, and a temporary folder of the test's own."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for function in (cache._cache_folder, cache.temporary_folder):
        function.cache_clear()
    yield
    for function in (cache._cache_folder, cache.temporary_folder):
        function.cache_clear()


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_folders_are_made_for_this_user_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a" / "b"))
    assert cache.cache_folder() == tmp_path / "a" / "b" / "ssfnas"
    assert [mode(tmp_path / name) for name in ("a", "a/b", "a/b/ssfnas")] == [0o700] * 3


@pytest.mark.parametrize("named", ["cache", "./cache", "../cache", ""])
def test_a_relative_name_is_ignored(monkeypatch, tmp_path, named):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", named)
    assert cache.cache_folder() == tmp_path / "home" / ".cache" / "ssfnas"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "tmp"]


def no_home(monkeypatch, tmp_path):
    """As in a container that is run under a number that no user has."""

    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    return "no home folder"


def a_file_as_home(monkeypatch, tmp_path):
    (tmp_path / "home").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return str(tmp_path / "home")


def read_only(monkeypatch, tmp_path):
    (tmp_path / "ssfnas").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    return "cannot be written"


@pytest.mark.parametrize("prepare", [no_home, a_file_as_home, read_only])
def test_where_the_cache_cannot_be_it_is_in_a_temporary_folder_and_that_is_said_once(
    monkeypatch, tmp_path, caplog, prepare
):
    words = prepare(monkeypatch, tmp_path)
    folder = cache.cache_folder()
    assert cache.cache_folder() == folder == tmp_path / "tmp" / f"ssfnas-cache-{os.getuid()}"
    assert mode(folder) == 0o700 and cache.why_untrusted(folder) is None
    (message,) = caplog.messages
    assert words in message and "XDG_CACHE_HOME" in message and str(folder) in message


@pytest.mark.parametrize("kind", ["link", "open", "file"])
def test_a_temporary_folder_that_somebody_else_made_is_not_used(monkeypatch, tmp_path, kind):
    planted = tmp_path / "tmp" / f"ssfnas-cache-{os.getuid()}"
    (tmp_path / "theirs").mkdir()
    if kind == "link":
        planted.symlink_to(tmp_path / "theirs")
    elif kind == "open":
        planted.mkdir()
        planted.chmod(0o777)
    else:
        planted.write_text("")
    folder = cache.temporary_folder()
    assert folder != planted and folder.parent == tmp_path / "tmp" and mode(folder) == 0o700
    assert cache.temporary_folder() == folder
    assert not list((tmp_path / "theirs").iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_user_without_a_name_and_a_home_is_served():
    environ = {key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_CACHE_HOME", "TMPDIR")}
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o1777)
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY], env=environ | {"TMPDIR": folder}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [f"{folder}/ssfnas-cache-{NOBODY}"] * 2
        assert done.stderr.count("XDG_CACHE_HOME") == 1
    assert "no home folder" in done.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path.chmod(0o777), "others can write"),
        (lambda path: path.chmod(0o770), "others can write"),
        (lambda path: path.parent.chmod(0o777), "others can write"),
        (lambda path: path.parent.chmod(0o1777), None),
        (lambda path: path.parent.chmod(0o755), None),
    ],
)
def test_who_could_put_something_there(tmp_path, change, words):
    path = tmp_path / "above" / "folder"
    path.mkdir(parents=True)
    change(path)
    why = cache.why_untrusted(path)
    assert (why is None) == (words is None) and (words is None or words in why)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give things away")
def test_what_another_user_owns_is_not_ours(tmp_path):
    path = tmp_path / "above" / "folder"
    path.mkdir(parents=True)
    os.chown(path.parent, 65534, -1)
    assert cache.why_untrusted(path) == f"{path.parent} is another user's"
    os.chown(path, 65534, -1)
    assert cache.why_untrusted(path) == f"{path} is another user's"
