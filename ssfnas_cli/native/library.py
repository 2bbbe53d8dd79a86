"""From `.cpp` files beside this file to a loaded library: compiled for this processor, cached by what it depends on.

The sources include no torch header, so they compile in seconds and fit every torch; tensors are passed as pointers.
A library's name holds a hash of its source, the headers, the compiler, the C library and the processor: a cold and a
warm start run the same machine code. A library runs as this program, so it is loaded only from folders that nobody else
can write, and only if it has the sha256 that was written beside it: half a library would end the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from ssfnas_cli.artifacts.cache import cache_folder, make_private_folder, temporary_folder, why_untrusted
from ssfnas_cli.artifacts.files import atomic_path, read_bytes, sha256_file, umask_mode, write_bytes
from ssfnas_cli.console import log
from ssfnas_cli.errors import SsfnasError

FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-strict-aliasing",
    "-fPIC",
    "-fopenmp",
)
# What a library is compiled from if not from the file of its name alone, and flags of single files.
PARTS = {"cells": ("cells.cpp", "passes.cpp")}
FLAGS_OF = {"passes.cpp": ("-ffp-contract=off",)}
COMPILERS = ("c++", "g++", "clang++")
SECONDS = 300  # a compiler that takes longer hangs


class Recipe(NamedTuple):
    """What a library is compiled from, and how: the compiler and its first arguments, and further ones."""

    sources: Sequence[Path]
    compiler: Sequence[str]
    defines: Sequence[str] = ()

    def command(self, source: Path) -> list[str]:
        """The command that compiles a source, but for what it is to make."""
        return [*self.compiler, *FLAGS, *FLAGS_OF.get(source.name, ()), *self.defines, str(source)]


@functools.cache
def load(name: str, *defines: str) -> ctypes.CDLL | None:
    """The library `name`; None, said once, where there is no compiler or it does not get on with the source.

    Args:
        name: of the `.cpp` file, if PARTS does not say otherwise.
        defines: further arguments of the compiler, such as `-DREAL=float`.
    """
    try:
        words = compiler()
        if words is None:
            raise FileNotFoundError("no C++ compiler: install g++ or clang++, or name one in CXX")
        sources = [Path(__file__).with_name(part) for part in PARTS.get(name, (f"{name}.cpp",))]
        recipe = Recipe(sources, words, defines)
        target = _folder(cache_folder()) / f"{name}-{_key(recipe)}.so"
        return _cached(target) or _compiled(recipe, target)
    except (OSError, subprocess.SubprocessError, SsfnasError) as error:
        _say(_reason(error))
        return None


def prepare(*libraries: tuple[str, ...]) -> None:
    """Load libraries, each given as the arguments of `load`. Those that are new are compiled at the same time."""
    with ThreadPoolExecutor(len(libraries)) as pool:
        list(pool.map(lambda arguments: load(*arguments), libraries))


@functools.cache
def _say(reason: str) -> None:  # once, not once a library
    log.warning("the fast kernels are not here (%s): torch's own are used, which are slower", reason)


def compiler() -> list[str] | None:
    """The C++ compiler and its first arguments: `$CXX` (such as `ccache g++`), else the first that is installed."""
    chosen = os.environ.get("CXX")
    if not chosen:
        return next(([path] for path in map(shutil.which, COMPILERS) if path), None)
    try:
        words = [chosen] if shutil.which(chosen) else shlex.split(chosen)
    except ValueError:  # a quote is not closed
        return None
    program = shutil.which(words[0]) if words else None
    return [program, *words[1:]] if program else None


def _key(recipe: Recipe) -> str:
    """A hash of everything that the machine code depends on."""
    headers = sorted(recipe.sources[0].parent.glob("*.h"))
    version = subprocess.run([*recipe.compiler, "--version"], capture_output=True, timeout=SECONDS, check=True).stdout
    parts = [file.read_bytes() for file in (*recipe.sources, *headers)]
    parts += [shlex.join(recipe.command(Path(source.name))).encode() for source in recipe.sources]
    parts += [version, _c_library(), _processor()]
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]


@functools.cache
def _folder(cache: Path) -> Path:
    """Where the libraries are: in the cache, unless others could put theirs there."""
    folder = cache / "kernels"
    make_private_folder(folder)
    if why_untrusted(folder) is not None:
        with contextlib.suppress(OSError):
            folder.chmod(0o700)  # one of ours from before, when folders got the permissions of the umask
    if (why := why_untrusted(folder)) is None:
        return folder
    private = temporary_folder() / "kernels"
    make_private_folder(private)
    log.warning("compiled kernels are kept in %s: %s, which could put other code there", private, why)
    return private


def _cached(target: Path) -> ctypes.CDLL | None:
    """The library if it has been compiled before and is what was compiled; else None, and why is said."""
    if not os.path.lexists(target):
        return None
    try:
        if not stat.S_ISREG(target.lstat().st_mode) or why_untrusted(target) is not None:
            raise OSError("it could be somebody else's")
        if read_bytes(_digest_file(target)) != sha256_file(target).encode():
            raise OSError("it has not the sha256 that it was compiled with")
        return ctypes.CDLL(str(target))
    except (OSError, SsfnasError) as error:
        log.info("%s is compiled again: %s", target, error)
        return None


def _compiled(recipe: Recipe, target: Path) -> ctypes.CDLL:
    """Compile the library, keep it, and load it. Another process that compiles it too puts the same in its place."""
    names = " and ".join(source.name for source in recipe.sources)
    log.info("compiling %s for this processor (once; kept in %s)", names, target.parent)
    for path in (target, _digest_file(target)):
        if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
            path.unlink()
    with atomic_path(target) as scratch:
        _build(recipe, scratch)
        digest = sha256_file(scratch)
    target.chmod(umask_mode() & ~0o022)
    write_bytes(_digest_file(target), digest.encode())
    return ctypes.CDLL(str(target))


def _build(recipe: Recipe, library: Path) -> None:
    """Compile the sources, several at the same time, and link them."""
    if len(recipe.sources) == 1:
        return _run([*recipe.command(recipe.sources[0]), "-shared", "-o", str(library)])
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(recipe.sources)) as pool:
        objects = [f"{folder}/{source.stem}.o" for source in recipe.sources]
        commands = [
            [*recipe.command(source), "-c", "-o", made] for source, made in zip(recipe.sources, objects, strict=True)
        ]
        list(pool.map(_run, commands))
        _run([*recipe.compiler, *FLAGS, "-shared", *objects, "-o", str(library)])


def _run(command: list[str]) -> None:
    subprocess.run(command, capture_output=True, timeout=SECONDS, check=True, text=True)


def _digest_file(target: Path) -> Path:
    return target.with_name(target.name + ".sha256")


def _c_library() -> bytes:
    """The C library that this process runs on."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return str(os.confstr("CS_GNU_LIBC_VERSION")).encode()
    return " ".join(platform.libc_ver()).encode()


def _processor() -> bytes:
    """What `-march=native` looks at: the kind of processor and its features."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        wanted = ("model name", "flags", "Features", "CPU part", "cpu family", "model\t")
        first = {line.split(":")[0]: line for line in reversed(lines) if line.startswith(wanted)}
        return "\n".join(sorted(first.values())).encode()
    return " ".join(platform.uname()[4:]).encode()


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        told = [line for line in str(error.stderr).splitlines() if "error" in line] or ["no reason given"]
        return f"the compiler failed: {told[0]}"
    return str(error)
