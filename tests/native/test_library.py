"""Compiling, caching, and doing without a compiler."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ssfnas_cli.native import library

SOURCE = 'extern "C" int seven() { return 7; }\n'
CODE = "from ssfnas_cli.native import cells; print(cells.load() is None, cells.load() is None)"


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A source of its own beside a copy of the loader's module, and a cache of its own."""
    source = tmp_path / "native"
    source.mkdir()
    (source / "small.cpp").write_text(SOURCE)
    monkeypatch.setattr(library, "__file__", str(source / "library.py"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    library.load.cache_clear()
    library._say.cache_clear()
    yield source / "small.cpp"
    library.load.cache_clear()


@pytest.mark.skipif(library.compiler() is None, reason="no C++ compiler")
def test_a_source_is_compiled_once_and_again_when_it_changes(small, tmp_path):
    built = lambda: sorted((tmp_path / "cache" / "ssfnas" / "kernels").iterdir())
    assert library.load("small").seven() == 7
    (first,) = built()
    when = first.stat().st_mtime_ns
    library.load.cache_clear()
    assert library.load("small").seven() == 7 and built()[0].stat().st_mtime_ns == when
    small.write_text(SOURCE.replace("7", "8"))
    library.load.cache_clear()
    assert library.load("small").seven() == 8 and len(built()) == 2


@pytest.mark.skipif(library.compiler() is None, reason="no C++ compiler")
def test_a_source_that_does_not_compile_is_said_in_one_line(small, caplog):
    small.write_text("this is not C++\n")
    assert library.load("small") is None
    assert "the compiler failed" in caplog.text and "\n" not in caplog.messages[-1]


def test_without_a_compiler_it_says_so_once_and_goes_on(tmp_path):
    env = os.environ | {"CXX": "no-such-compiler", "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=env, capture_output=True, text=True, check=True, timeout=100
    )
    assert done.stdout.split() == ["True", "True"]
    assert done.stderr.count("no C++ compiler") == 1


def test_an_unwritable_cache_is_no_reason_to_stop(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    env = os.environ | {"XDG_CACHE_HOME": str(blocked)}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=env, capture_output=True, text=True, check=True, timeout=100
    )
    assert done.stdout.split() == ["True", "True"] and Path(blocked).read_text() == ""


def test_kernels_asked_for_by_name_and_without_a_compiler_a_search_is_done_by_torch(tmp_path):
    script = Path(sys.executable).with_name("ssfnas")
    small = ["--epochs", "1", "--channels", "2", "--layers", "3", "--threads", "1", "--set", "kernels=compiled"]
    env = os.environ | {"CXX": "no-such-compiler"}
    done = subprocess.run(
        [script, "search", *small, "--batch-size", "256", "-o", tmp_path / "run"],
        env=env,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no C++ compiler") == 1
    assert '"kernels": "torch' in (tmp_path / "run" / "config.json").read_text()
