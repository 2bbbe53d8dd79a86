"""`ssfnas predict`: from a retrained run and images to classes and probabilities."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ssfnas_cli import stop, world
from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.commands import common, inputs, outputs
from ssfnas_cli.console import expect_stdin, is_stream, log, set_verbosity, stdout
from ssfnas_cli.errors import InputError, UsageError

if TYPE_CHECKING:
    from ssfnas_cli.deploy.model import Model
    from ssfnas_cli.deploy.rows import Format
    from ssfnas_cli.deploy.stream import Stream

SUFFIXES: dict[str, Literal["csv", "json"]] = {".csv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json"}
PRIORS = ("uniform", "train")


def command(
    run: Annotated[str, typer.Argument(help="Retrain run folder, or - for what retrain printed.")],
    images: Annotated[
        list[str],
        typer.Argument(
            help="Files, folders (with all in them that is not hidden), or - for paths on stdin.", show_default=False
        ),
    ],
    top_k: Annotated[int, typer.Option(min=1, help="How many of the most probable classes to tell.")] = 3,
    prior: Annotated[
        str | None,
        typer.Option(
            metavar="uniform|train|FILE",
            help="Shift the probabilities to these shares of the classes; a file holds counts as JSON.",
            autocompletion=common.one_of(PRIORS),
            show_default="as the network was trained",
        ),
    ] = None,
    from_prior: Annotated[
        str | None,
        typer.Option(
            metavar="train|uniform|FILE",
            help="Of --prior: the class shares that the outputs hold.",
            autocompletion=common.one_of(PRIORS),
            show_default="as the run records",
        ),
    ] = None,
    on_bad: Annotated[
        str,
        typer.Option(
            help="Of an image that cannot be read: row (a row that says so, and exit code 3 at the end) or skip.",
            autocompletion=common.one_of(("row", "skip")),
        ),
    ] = "row",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="FILE.csv or .jsonl; default: stdout.", show_default=False)
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="CSV instead of JSON lines.")] = False,
    device: common.DeviceName = None,
    threads: common.Threads = None,
    precision: common.Precision = None,
    force: common.Force = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    json: common.Json = False,
) -> None:
    """Predict the classes of images: a table on a terminal, JSON lines in a pipe, a row each in the order given.

    Images are prepared as those of the data set were. A million of them need no more memory than a hundred.
    """
    stop.install_handlers()
    set_verbosity(quiet, verbose)
    kind = _choose_format(output, csv, json)
    if images.count("-") + is_stream(run) > 1:
        raise UsageError("standard input brings either the run or the paths of images: name one of them")
    if on_bad not in ("row", "skip"):
        raise UsageError(f"--on-bad {on_bad}: should be row or skip")
    if from_prior and not prior:
        raise UsageError("--from-prior: is for --prior: say which prior the probabilities are to hold")
    outputs.refuse_existing(output, force)
    with stop.interruptible("before the end; a file named by -o is not written"):
        folder = inputs.open_run(run, "retrain", ["ssfnas_cli.deploy.model"])
        if "-" in images and world.is_first():
            expect_stdin("paths of images")
        model = _load(folder, (device, threads, precision), prior, from_prior)
        from ssfnas_cli.deploy.paths import find_images
        from ssfnas_cli.deploy.stream import Stream

        stream = Stream(model, model.shift_to(prior, "--prior"), min(top_k, len(model.class_names)))
        header, write = _formats(kind, model, stream.num_top)
        named = find_images(images, sys.stdin.buffer if "-" in images else None)
        with outputs.open_output(output, force) if world.is_first() else _nowhere() as put:
            put(header)
            for rows in stream.rows(named):
                put(write([row for row in rows if not row.error or on_bad == "row"]))
    _close(stream, on_bad)


@contextlib.contextmanager
def _nowhere() -> Iterator[Callable[[str], object]]:
    """Where a rank writes that is not the first: as `open_output`."""
    yield lambda text: None


def _load(
    run: RunFolder, place: tuple[str | None, int | None, str | None], prior: str | None, from_prior: str | None
) -> Model:
    """The network of a run; `place` are the flags of the device, the threads and the precision.

    Raises:
        UsageError: another prior is asked for, and the one that the outputs hold is not known.
    """
    from ssfnas_cli.deploy.model import load_run
    from ssfnas_cli.engine.device import Device
    from ssfnas_cli.engine.ranks import agree_on_network

    model = load_run(run, Device.for_evaluation(*place), from_prior or "")
    agree_on_network(model.module)
    if prior and model.prior is None:
        raise UsageError(
            f"--prior {prior}: after the loss '{model.card.loss.name}' it is not known which prior the outputs of "
            f"{run.path} hold: name it with --from-prior train, uniform or a file of counts"
        )
    return model


def _choose_format(output: Path | None, csv: bool, json: bool) -> Literal["csv", "json", "columns"]:
    if csv and json:
        raise UsageError("--csv, --json: take one of them")
    if csv or json:
        return "csv" if csv else "json"
    if output is None or is_stream(output):
        return "columns" if stdout().isatty() else "json"
    if output.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--output {output}: should end in {', '.join(SUFFIXES)}; or say --csv or --json")
    return SUFFIXES[output.suffix.lower()]


def _formats(kind: Literal["csv", "json", "columns"], model: Model, num_top: int) -> tuple[str, Format]:
    from ssfnas_cli.deploy import rows

    if kind == "json":
        return "", rows.json_lines
    return rows.csv_format(num_top) if kind == "csv" else rows.columns(model.class_names, num_top)


def _close(stream: Stream, on_bad: str) -> None:
    """What is said at the end.

    Raises:
        InputError: an image could not be read, and is not to be skipped.
    """
    log.info("%s", stream.describe())
    if stream.num_others:
        log.info("passed over %d files in folders that are no images", stream.num_others)
    if stream.num_bad and on_bad == "row":
        total = stream.num_bad + stream.num_read
        raise InputError(f"{stream.num_bad} of {total} images could not be read; --on-bad skip leaves such out")
