"""Errors that the user can fix, each with its exit code. Any other exception that escapes is a bug (exit code 1)."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator


class SsfnasError(ValueError):
    """Base class. Its message is one line that says what is wrong, with which file or flag, and how to fix it."""

    exit_code = 1


class UsageError(SsfnasError):
    """A flag, a value or the name of a plugin is wrong."""

    exit_code = 2


class InputError(SsfnasError):
    """An input or artifact is invalid, or the run has diverged."""

    exit_code = 3


class OutputExistsError(SsfnasError):
    """The output exists and differs, or another process is writing it."""

    exit_code = 4


class ResourceError(SsfnasError):
    """The machine lacks disk, memory, shared memory or file descriptors, or its input and output fail."""

    exit_code = 5


class DiskError(ResourceError):
    """Reading or writing failed."""


class Stopped(SsfnasError):
    """The run stopped on request, and the same command resumes it. The exit code is 75, or 130 after an interrupt."""

    exit_code = 75

    def __init__(self, message: str, interrupted: bool = False):
        super().__init__(message)
        if interrupted:
            self.exit_code = 130


@contextlib.contextmanager
def naming(flag: str) -> Iterator[None]:
    """Name the flag or setting in the error about a path that it gave."""
    try:
        yield
    except SsfnasError as error:
        raise type(error)(f"{flag} {error}") from None


# What torch (on a CPU and on a GPU), numpy, C++ and the operating system write when memory has run out
_OUT_OF_MEMORY = re.compile(
    r"out of memory|can(no|')t allocate memory|not enough memory|_ALLOC_FAILED|bad_alloc|failed to map segment",
    re.IGNORECASE,
)
_AMOUNT = re.compile(r"(?:tried to allocate|unable to allocate) ([\d.]+ ?(?:bytes|[KMGTPE]i?B))", re.IGNORECASE)


def out_of_memory(error: BaseException, advice: str) -> ResourceError | None:
    """The error to show instead of `error` if `error` means that memory has run out, else None.

    Args:
        error: whatever a library raised. Its class is not checked, because torch may not be imported.
        advice: what the user can do about it.
    """
    says_so = isinstance(error, RuntimeError | OSError | ImportError) and _OUT_OF_MEMORY.search(str(error))
    if not (says_so or isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM):
        return None
    amount = _AMOUNT.search(str(error))
    requested = f" ({_readable(amount[1])} more were asked for)" if amount else ""
    return ResourceError(f"memory has run out{requested}: {advice}")


def _readable(amount: str) -> str:
    """Convert `N bytes` to MiB, such as `1,234.5 MiB`. Other amounts are returned unchanged."""
    number, _, unit = amount.partition(" ")
    return f"{int(number) / 2**20:,.1f} MiB" if unit == "bytes" and number.isdigit() else amount
