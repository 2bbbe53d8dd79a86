"""`ssfnas compare`: one table of several runs, over seeds, and whether they can be compared at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ssfnas_cli.commands import common, inputs, outputs
from ssfnas_cli.console import is_stream, log, set_verbosity, stdout
from ssfnas_cli.errors import UsageError
from ssfnas_cli.results.splits import refuse_unknown_splits

if TYPE_CHECKING:
    from ssfnas_cli.results.selection import Selection

FORMATS = {"text": "txt", "json": "json", "csv": "csv", "markdown": "md", "latex": "tex"}
KINDS = ("search", "retrain")


def command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders of them.")],
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            help="A group's label (or how it begins) or one of its runs: the differences from it, paired by seed, with "
            "a 95 % t interval and an exact permutation test. With --sweep the name of an arm, too: each group is then "
            "compared with its like of that arm, and so is the mean over each arm. Repeatable.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(
            help="val, test or test_longtail; repeatable.", show_default="test, or else the first that was evaluated"
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help="search or retrain.",
            autocompletion=common.one_of(KINDS),
            show_default="retrain in a folder that has both",
        ),
    ] = None,
    figure: Annotated[
        list[str] | None,
        typer.Option(
            help="A column to show, by its name in CSV and JSON, such as top1 or num_params; repeatable.",
            show_default="all",
        ),
    ] = None,
    sweep: common.SweepFile = None,
    format_name: Annotated[
        str | None,
        typer.Option(
            "--format",
            help=f"{', '.join(FORMATS)}.",
            autocompletion=common.one_of(FORMATS),
            show_default="by the suffix of -o; text on a terminal, else json",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="FILE.txt, .json, .csv, .md or .tex; default: stdout.")
    ] = None,
    force: common.Force = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    json: common.Json = False,
) -> None:
    """Compare runs: accuracy and cost, mean and standard deviation over seeds, and what is unfair about it.

    Runs that differ only in their seeds are one line, named by the settings in which the lines differ.
    """
    set_verbosity(quiet, verbose)
    chosen = _format(format_name, output, json)
    if kind is not None and kind not in KINDS:
        raise UsageError(f"--kind {kind}: should be one of {', '.join(KINDS)}")
    refuse_unknown_splits(split or [])
    outputs.refuse_existing(output, force)
    from ssfnas_cli.commands import compare_table
    from ssfnas_cli.results.comparison import compare
    from ssfnas_cli.results.selection import select_runs

    selection = inputs.name_by_sweep(select_runs(runs, "evaluation", kind), sweep)
    comparison = compare(with_counts(selection), split or [], baseline or [], figure or [])
    to_file = output is not None and not is_stream(output)
    if to_file or chosen not in ("text", "markdown"):  # those two say it below their tables
        for remark in comparison.remarks:
            log.warning("%s", remark.sentence)
    if chosen == "text" and not to_file and stdout().isatty():
        compare_table.show(comparison)
        return
    outputs.write_output(output, compare_table.write(comparison, chosen), force)
    if to_file:
        log.info("%s", output)


def _format(named: str | None, output: Path | None, json: bool) -> str:
    """The format that is asked for, in words or by a file's suffix."""
    if named is not None:
        named = {suffix: name for name, suffix in FORMATS.items()}.get(named, named)
        if named not in FORMATS:
            raise UsageError(f"--format {named}: should be one of {', '.join(FORMATS)}")
        return named
    if json:
        return "json"
    if output is None or is_stream(output):
        return "text" if stdout().isatty() else "json"
    by_suffix = {f".{suffix}": name for name, suffix in FORMATS.items()}
    if output.suffix.lower() not in by_suffix:
        raise UsageError(f"--output {output}: should end in one of {', '.join(by_suffix)}, or say --format")
    return by_suffix[output.suffix.lower()]


def with_counts(selection: Selection) -> Selection:
    """The selection; the costs of retrainings of an earlier ssfnas, which did not record them, are counted."""
    needed = ("num_params", "num_macs", "steps")
    lacking = [run for run in selection.runs if run.run.kind == "retrain" and None in map(run.cost.get, needed)]
    if not lacking:
        return selection
    from ssfnas_cli.engine.count_run import count_run

    runs = []
    for run in selection.runs:
        counted = count_run(run.run) if run in lacking else {}
        filled = {key: counted.get(key) if value is None else value for key, value in run.cost.items()}
        runs.append(replace(run, cost=filled))
    return replace(selection, runs=runs)
