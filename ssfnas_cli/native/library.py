"""From a `.cpp` beside this file to a loaded library: compiled for this processor, cached by what it depends on.

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
from pathlib import Path

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
    "-shared",
    "-fopenmp",
)
COMPILERS = ("c++", "g++", "clang++")
SECONDS = 300  # a compiler that takes longer hangs


@functools.cache
def load(name: str) -> ctypes.CDLL | None:
    """The library of `name`.cpp; None, said once, where there is no compiler or it does not get on with the source."""
    try:
        words = compiler()
        if words is None:
            raise FileNotFoundError("no C++ compiler: install g++ or clang++, or name one in CXX")
        source = Path(__file__).with_name(f"{name}.cpp")
        target = _folder(cache_folder()) / f"{name}-{_key(source, words)}.so"
        return _cached(target) or _compiled(source, words, target)
    except (OSError, subprocess.SubprocessError, SsfnasError) as error:
        _say(_reason(error))
        return None


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


def _key(source: Path, words: list[str]) -> str:
    """A hash of everything that the machine code depends on."""
    version = subprocess.run([*words, "--version"], capture_output=True, timeout=SECONDS, check=True).stdout
    sources = [source.read_bytes(), *(header.read_bytes() for header in sorted(source.parent.glob("*.h")))]
    parts = [*sources, version, shlex.join([*words, *FLAGS]).encode(), _c_library(), _processor()]
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


def _compiled(source: Path, words: list[str], target: Path) -> ctypes.CDLL:
    """Compile the library, keep it, and load it. Another process that compiles it too puts the same in its place."""
    log.info("compiling %s for this processor (once; kept in %s)", source.name, target.parent)
    for path in (target, _digest_file(target)):
        if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
            path.unlink()
    with atomic_path(target) as scratch:
        command = [*words, *FLAGS, str(source), "-o", str(scratch)]
        subprocess.run(command, capture_output=True, timeout=SECONDS, check=True, text=True)
        digest = sha256_file(scratch)
    target.chmod(umask_mode() & ~0o022)
    write_bytes(_digest_file(target), digest.encode())
    return ctypes.CDLL(str(target))


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
