"""Errors that are the user's to mend, each with its exit code. Anything else that escapes is a bug (exit 1)."""

from __future__ import annotations

import errno
import re


class SsfnasError(ValueError):
    """Base: a message of one line that says what, which file or flag, and the mend."""

    exit_code = 1


class UsageError(SsfnasError):
    """A wrong flag, value or plugin name."""

    exit_code = 2


class InputError(SsfnasError):
    """A bad input or artifact, or a run that has diverged."""

    exit_code = 3


class OutputExistsError(SsfnasError):
    """The output is there and differs, or somebody else is writing it."""

    exit_code = 4


class ResourceError(SsfnasError):
    """The machine lacks something: disk, memory, shared memory, descriptors; or its input and output fail."""

    exit_code = 5


class DiskError(ResourceError):
    """Reading or writing failed."""


class Stopped(SsfnasError):
    """Stopped on request; the same command goes on. 75, or 130 after an interrupt."""

    exit_code = 75

    def __init__(self, message: str, interrupted: bool = False):
        super().__init__(message)
        if interrupted:
            self.exit_code = 130


# How torch on a processor and on a GPU, numpy, C++ and the operating system say that memory has run out
_OUT_OF_MEMORY = re.compile(
    r"out of memory|can(no|')t allocate memory|not enough memory|_ALLOC_FAILED|bad_alloc|failed to map segment",
    re.IGNORECASE,
)
_AMOUNT = re.compile(r"(?:tried to allocate|unable to allocate) ([\d.]+ ?(?:bytes|[KMGTPE]i?B))", re.IGNORECASE)


def out_of_memory(error: BaseException, mend: str) -> ResourceError | None:
    """The error to show instead of `error` if that says that memory has run out, else None.

    Args:
        error: whatever a library raised; torch need not have been imported.
        mend: what would help.
    """
    told = isinstance(error, RuntimeError | OSError | ImportError) and _OUT_OF_MEMORY.search(str(error))
    if not (told or isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM):
        return None
    found = _AMOUNT.search(str(error))
    asked = f" ({_readable(found[1])} more were asked for)" if found else ""
    return ResourceError(f"memory has run out{asked}: {mend}")


def _readable(amount: str) -> str:
    """`1,234 MiB` for a number of bytes; other amounts as they are."""
    number, _, unit = amount.partition(" ")
    return f"{int(number) / 2**20:,.1f} MiB" if unit == "bytes" and number.isdigit() else amount
