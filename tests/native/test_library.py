"""Compiling, caching, and doing without a compiler."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ssfnas_cli.artifacts.files import sha256_file
from ssfnas_cli.native import library

needs_compiler = pytest.mark.skipif(library.compiler() is None, reason="no C++ compiler")

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
    library._said.clear()
    yield source / "small.cpp"
    library.load.cache_clear()


@needs_compiler
def test_a_source_is_compiled_once_and_again_when_it_changes(small, tmp_path):
    built = lambda: sorted((tmp_path / "cache" / "ssfnas" / "kernels").glob("*.so"))
    assert library.load("small").seven() == 7
    (first,) = built()
    when = first.stat().st_mtime_ns
    library.load.cache_clear()
    assert library.load("small").seven() == 7 and built()[0].stat().st_mtime_ns == when
    small.write_text(SOURCE.replace("7", "8"))
    library.load.cache_clear()
    assert library.load("small").seven() == 8 and len(built()) == 2


@needs_compiler
def test_several_sources_become_one_library_and_its_name_depends_on_each_and_on_their_flags(
    small, tmp_path, monkeypatch
):
    product = small.with_name("product.cpp")
    product.write_text('extern "C" { int seven(); int product() { return FACTOR * seven(); } }\n')
    monkeypatch.setitem(library.PARTS, "both", ("small.cpp", "product.cpp"))
    library.load.cache_clear()
    two, three = (library.load("both", f"-DFACTOR={factor}") for factor in (2, 3))
    assert (two.product(), three.product(), two.seven()) == (14, 21, 7)
    assert len(list((tmp_path / "cache" / "ssfnas" / "kernels").glob("both-*.so"))) == 2
    recipe = library.Recipe([small, product], library.compiler())
    before = library._key(recipe)
    monkeypatch.setitem(library.FLAGS_OF, "product.cpp", ("-O1",))
    changed = library._key(recipe)
    product.write_text(product.read_text().replace("FACTOR *", "FACTOR +"))
    assert len({before, changed, library._key(recipe)}) == 3


@needs_compiler
def test_a_source_that_does_not_compile_is_said_in_one_line(small, caplog):
    small.write_text("this is not C++\n")
    assert library.load("small") is None
    assert "the compiler failed" in caplog.text and "\n" not in caplog.messages[-1]


def test_without_a_compiler_it_says_so_once_and_goes_on(tmp_path):
    env = os.environ | {"CXX": "no-such-compiler", "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", CODE], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]
    assert done.stderr.count("no C++ compiler") == 1


CODE_SMALL = """
import sys
from ssfnas_cli.console import set_verbosity
from ssfnas_cli.native import library

set_verbosity(quiet=False, verbose=False)
library.__file__ = sys.argv[1]
print(library.load("small").seven())
"""


def in_another_process(**environ):
    """What the small library gives there, and what is said."""
    done = subprocess.run(
        [sys.executable, "-c", CODE_SMALL, library.__file__], env=os.environ | environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done
    return int(done.stdout), done.stderr


def library_of(tmp_path):
    (found,) = (tmp_path / "cache" / "ssfnas" / "kernels").glob("*.so")
    return found


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@needs_compiler
def test_folders_are_private_and_a_library_has_the_permissions_of_the_umask(small, tmp_path):
    before = os.umask(0o002)
    try:
        assert library.load("small").seven() == 7
    finally:
        os.umask(before)
    assert [mode(tmp_path / name) for name in ("cache", "cache/ssfnas", "cache/ssfnas/kernels")] == [0o700] * 3
    assert mode(library_of(tmp_path)) == 0o644  # 0o664, but for writing by others
    assert not [path for path in (tmp_path / "cache").rglob(".*")]


def cut(path):
    path.write_bytes(path.read_bytes()[:4096])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def empty(path):
    path.write_bytes(b"")


def lose_sum(path):
    path.with_name(path.name + ".sha256").unlink()


def of_another_libc(path):
    """Sound by its sum, but it does not load."""
    path.write_bytes(b"\x7fELF of another C library")
    path.with_name(path.name + ".sha256").write_text(sha256_file(path))


def plant_link(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def make_pipe(path):
    path.unlink()
    os.mkfifo(path)


def open_to_others(path):
    path.chmod(0o666)


@needs_compiler
@pytest.mark.parametrize("damage", [cut, flip, empty, lose_sum, of_another_libc, plant_link, make_pipe, open_to_others])
def test_a_library_that_is_not_what_was_compiled_is_compiled_again(small, tmp_path, damage):
    """Half a library would end the process by SIGBUS, as soon as a page is touched that the file does not have."""
    assert in_another_process()[0] == 7
    path = library_of(tmp_path)
    damage(path)
    result, said = in_another_process()
    assert result == 7 and "is compiled again" in said
    assert in_another_process() == (7, ""), "it is sound again, and not compiled a third time"
    assert stat.S_ISREG(path.lstat().st_mode)


@needs_compiler
@pytest.mark.parametrize("where", ["cache", "cache/ssfnas", "cache/ssfnas/kernels"])
def test_a_library_is_not_loaded_from_a_folder_that_others_can_write(small, tmp_path, where):
    in_another_process()
    small_library = library_of(tmp_path)
    planted = tmp_path / "planted.cpp"
    planted.write_text(SOURCE.replace("7", "666"))
    subprocess.run([*library.compiler(), "-shared", "-fPIC", planted, "-o", small_library], check=True)
    small_library.with_name(small_library.name + ".sha256").write_text(sha256_file(small_library))
    if os.geteuid() == 0:
        os.chown(tmp_path / where, 65534, 65534)
    else:
        (tmp_path / "cache").chmod(0o777)
    result, said = in_another_process(TMPDIR=str(tmp_path))
    assert result == 7
    assert "compiled kernels are kept in" in said and "could put other code there" in said
    private = tmp_path / f"ssfnas-cache-{os.getuid()}"
    assert mode(private) == mode(private / "kernels") == 0o700 and len(list((private / "kernels").glob("*.so"))) == 1


@needs_compiler
def test_a_folder_of_ours_that_was_open_to_others_is_closed_and_what_others_put_there_is_not_loaded(small, tmp_path):
    folder = tmp_path / "cache" / "ssfnas" / "kernels"
    in_another_process()
    folder.chmod(0o777)
    if os.geteuid() == 0:
        os.chown(library_of(tmp_path), 65534, -1)
    inode = library_of(tmp_path).stat().st_ino
    assert in_another_process()[0] == 7 and mode(folder) == 0o700
    assert (library_of(tmp_path).stat().st_ino != inode) == (os.geteuid() == 0)


@needs_compiler
def test_arguments_of_the_compiler_are_passed_on(small, tmp_path, monkeypatch, caplog):
    wrapper, (program, *_) = tmp_path / "my ccache", library.compiler()
    wrapper.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\nexec "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("CXX", f"'{wrapper}' {program} -DX='a b'")
    assert in_another_process()[0] == 7
    calls = (tmp_path / "calls").read_text().splitlines()
    assert all(line.startswith(f"{program} -DX=a b ") for line in calls) and len(calls) == 2
    monkeypatch.setenv("CXX", str(wrapper))  # a path with a blank in it is one word
    assert library.compiler() == [str(wrapper)]
    for wrong in ("'", " ", "no-such-compiler -O2"):
        monkeypatch.setenv("CXX", wrong)
        assert library.compiler() is None


def test_the_name_of_a_library_depends_on_the_c_library(small, monkeypatch):
    if (words := library.compiler()) is None:
        pytest.skip("no C++ compiler")
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.41")
    one = library._key(library.Recipe([small], words))
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.36")
    assert library._key(library.Recipe([small], words)) != one


def test_kernels_asked_for_by_name_and_without_a_compiler_a_search_is_done_by_torch(tmp_path):
    script = Path(sys.executable).with_name("ssfnas")
    small = ["--epochs", "1", "--channels", "2", "--layers", "3", "--threads", "1", "--set", "kernels=compiled"]
    small += ["--set", "ops=none,max_pool_3x3,skip_connect,sep_conv_3x3"]
    env = os.environ | {"CXX": "no-such-compiler"}
    done = subprocess.run(
        [script, "search", *small, "--batch-size", "256", "-o", tmp_path / "run"],
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no C++ compiler") == 1
    assert '"kernels": "torch' in (tmp_path / "run" / "config.json").read_text()
