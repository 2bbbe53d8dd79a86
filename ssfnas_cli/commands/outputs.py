"""Writing the output of a command to stdout or to a file."""

from __future__ import annotations

from pathlib import Path

from ssfnas_cli.artifacts.files import set_aside, write_bytes
from ssfnas_cli.console import is_stream, log
from ssfnas_cli.console import write_bytes as write_stdout
from ssfnas_cli.errors import OutputExistsError


def refuse_existing(output: Path | None, force: bool) -> None:
    """Check the output file before the work begins. Only --force may replace an existing file.

    Raises:
        OutputExistsError: the file exists. The message says what to do.
    """
    if output is None or is_stream(output) or not output.exists():
        return
    if output.is_dir():
        raise OutputExistsError(f"--output {output}: is a folder; name a file")
    if not force:
        raise OutputExistsError(f"--output {output}: is there already: choose another name, or --force")


def write_output(output: Path | None, data: bytes, force: bool) -> None:
    """Write the output to stdout or to a file.

    With --force, an old file is moved aside here, after the work, so that a command that fails moves none.
    """
    if output is None or is_stream(output):
        write_stdout(data)
        return
    refuse_existing(output, force)
    if output.exists():
        log.warning("--force: what was %s is now %s", output, set_aside(output))
    write_bytes(output, data)
