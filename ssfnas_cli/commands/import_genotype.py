"""`ssfnas import-genotype`: the genotypes that the DARTS and FairDARTS repositories print, as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ssfnas_cli.artifacts.files import read_bytes
from ssfnas_cli.artifacts.published import parse_published
from ssfnas_cli.commands import common, outputs
from ssfnas_cli.console import decode_text, is_stream, read_stdin, set_verbosity
from ssfnas_cli.errors import InputError

MAX_TEXT_BYTES = 16 * 2**20  # of a log


def command(
    file: Annotated[str, typer.Argument(help="A file with Genotype(normal=[...], ...), or - for a pipe.")],
    name: Annotated[
        str | None,
        typer.Option(help="Which one of a file that assigns several; also its name.", show_default="the last"),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Genotype file; default: stdout.")] = None,
    force: common.Force = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
) -> None:
    """Import a published genotype. The text is parsed, never evaluated."""
    set_verbosity(quiet, verbose)
    data = read_stdin("a genotype's text") if is_stream(file) else read_bytes(Path(file), MAX_TEXT_BYTES)
    where = "standard input" if is_stream(file) else file
    try:
        text = decode_text(data)
    except UnicodeDecodeError:
        raise InputError(f"{where}: is not text") from None
    outputs.refuse_existing(output, force)
    genotype = parse_published(text, where, name)
    outputs.write_output(output, genotype.to_json(), force)
