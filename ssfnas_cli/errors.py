"""Errors that are the user's to mend, each with its exit code. Anything else that escapes is a bug (exit 1)."""


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


class DiskError(SsfnasError):
    """Reading or writing failed."""

    exit_code = 5


class Stopped(SsfnasError):
    """Stopped on request; the same command goes on. 75, or 130 after an interrupt."""

    exit_code = 75

    def __init__(self, message: str, interrupted: bool = False):
        super().__init__(message)
        if interrupted:
            self.exit_code = 130
