"""From a `.cpp` beside this file to a loaded library: compiled for this processor, cached by what it depends on.

The sources include no torch header, so they compile in seconds and fit every torch; tensors are passed as pointers.
A library's name holds a hash of its source, the headers, the compiler and the processor: a cold and a warm start run
the same machine code.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ssfnas_cli.artifacts.files import cache_folder
from ssfnas_cli.console import log

FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-strict-aliasing",
    "-fPIC",
    "-shared",
    "-fopenmp",
)
COMPILERS = ("c++", "g++", "clang++")
SECONDS = 300  # a compiler that takes longer hangs


@functools.cache
def load(name: str) -> ctypes.CDLL | None:
    """The library of `name`.cpp; None, said once, where there is no compiler or it does not get on with the source."""
    try:
        return ctypes.CDLL(str(_built(name)))
    except (OSError, subprocess.SubprocessError) as error:
        _say(_reason(error))
        return None


@functools.cache
def _say(reason: str) -> None:  # once, not once a library
    log.warning("the fast kernels are not here (%s): torch's own are used, which are slower", reason)


def compiler() -> str | None:
    """The C++ compiler: `$CXX`, else the first that is installed."""
    chosen = os.environ.get("CXX")
    return shutil.which(chosen) if chosen else next(filter(None, map(shutil.which, COMPILERS)), None)


def _built(name: str) -> Path:
    """The library file, compiled now unless it is cached."""
    program = compiler()
    if program is None:
        raise FileNotFoundError("no C++ compiler: install g++ or clang++, or name one in CXX")
    source = Path(__file__).with_name(f"{name}.cpp")
    version = subprocess.run([program, "--version"], capture_output=True, timeout=SECONDS, check=True).stdout
    sources = [source.read_bytes(), *(header.read_bytes() for header in sorted(source.parent.glob("*.h")))]
    parts = [*sources, version, " ".join(FLAGS).encode(), _processor()]
    key = hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]
    target = cache_folder() / "kernels" / f"{name}-{key}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        log.info("compiling %s for this processor (once; kept in %s)", source.name, target.parent)
        with _scratch(target) as scratch:
            command = [program, *FLAGS, str(source), "-o", str(scratch)]
            subprocess.run(command, capture_output=True, timeout=SECONDS, check=True, text=True)
            scratch.replace(target)  # whoever else compiles it puts the same in its place
    return target


@contextlib.contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=target.stem, suffix=".tmp")
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


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
