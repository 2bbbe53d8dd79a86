"""`ssfnas import-genotype`: the genotypes that the DARTS and FairDARTS repositories print, as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ssfnas_cli.artifacts.files import read_bytes
from ssfnas_cli.artifacts.genotype import MAX_GENOTYPE_BYTES, parse_published
from ssfnas_cli.commands import common, references
from ssfnas_cli.console import is_stream, read_stdin, set_verbosity
from ssfnas_cli.errors import InputError


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
    data = read_stdin("a genotype's text") if is_stream(file) else read_bytes(Path(file), MAX_GENOTYPE_BYTES)
    where = "standard input" if is_stream(file) else file
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{where}: is not text") from None
    references.refuse_existing(output, force)
    genotype = parse_published(text, where, name)
    references.write_output(output, genotype.to_json(), force)
