"""`ssfnas rank`: whether a supernet ranks genotypes as their retrained networks do."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssfnas_cli.commands import common, inputs, outputs
from ssfnas_cli.console import box_style, emit, is_stream, log, set_verbosity
from ssfnas_cli.errors import InputError, UsageError
from ssfnas_cli.plots.figure import FORMATS, to_bytes
from ssfnas_cli.results.splits import refuse_unknown_splits

if TYPE_CHECKING:
    from rich.console import Console

    from ssfnas_cli.artifacts.run import RunFolder
    from ssfnas_cli.results.facts import RunFacts
    from ssfnas_cli.results.retrained import Retrained

FIGURES = {"top1": "accuracy", "balanced_accuracy": "balanced_accuracy"}  # of a retraining, and of the supernet


def command(
    run: Annotated[str, typer.Argument(help="Search run folder, or - for what search printed.")],
    genotypes: Annotated[
        list[str],
        typer.Argument(
            metavar="GENOTYPE...",
            help="Evaluated retrain run folders, or folders of them; or genotypes (files or names such as random-3), "
            "whose retrainings --nets names.",
        ),
    ],
    nets: Annotated[
        list[Path] | None,
        typer.Option(help="Where the retrainings of genotypes are: run folders, or folders of them; repeatable."),
    ] = None,
    figure: Annotated[
        str,
        typer.Option(
            help="top1 or balanced_accuracy, of the supernet and of the networks.",
            autocompletion=common.one_of(FIGURES),
        ),
    ] = "top1",
    split: Annotated[str, typer.Option(help="Of the evaluations: val, test or test_longtail.")] = "test",
    data: Annotated[str | None, typer.Option(help="Data set folder.", show_default="the run's")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="FILE.svg, .png or .pdf for the scatter; default: none.", show_default=False
        ),
    ] = None,
    device: common.DeviceName = None,
    threads: common.Threads = None,
    force: common.Force = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    json: common.Json = False,
) -> None:
    """Rank genotypes by a search's supernet and by their retrained networks: Kendall's tau and Spearman's rho.

    The supernet's accuracy is that on the alpha half, with a genotype's ops alone.
    """
    set_verbosity(quiet, verbose)
    refuse_unknown_splits([split])
    if figure not in FIGURES:
        raise UsageError(f"--figure {figure}: should be one of {', '.join(FIGURES)}")
    suffix = "" if output is None else outputs.picture_format(output, FORMATS)
    if output is not None and is_stream(output):
        raise UsageError("--output -: stdout gets the figures: name a file for the picture")
    outputs.refuse_existing(output, force)
    folder = inputs.open_run(run, "search")
    entries = _collect(genotypes, nets or [], str(folder.config["data"]["sha256"]))
    execution = {"device": device, "threads": threads}
    given = {key: value for key, value in execution.items() if value is not None}
    facts = measure(folder, entries, figure, split, data or "", given)
    if output is not None:
        from ssfnas_cli.plots import rank_scatter

        outputs.write_output(output, to_bytes(partial(rank_scatter.draw, facts), suffix, chart=True), force)
        log.info("%s", output)
    emit(facts, json, lambda console: _show(console, facts))


def _collect(arguments: Sequence[str], nets: Sequence[Path], data_sha256: str) -> list[Retrained]:
    """The genotypes that are meant, each with its retrainings; a warning for what is left out or not comparable."""
    from ssfnas_cli.results.retrained import Retrained, by_genotype, cells_key, differing_settings

    folders = [Path(argument) for argument in arguments if not is_stream(argument) and Path(argument).is_dir()]
    found, left_out = by_genotype(_retrainings(folders), data_sha256)
    known, others = by_genotype(_retrainings(nets), data_sha256)
    entries = {cells_key(entry.genotype): entry for entry in found}
    retrained = {cells_key(entry.genotype): entry.runs for entry in known}
    for argument in arguments:
        if Path(argument) in folders:
            continue
        genotype, _ = inputs.read_network(argument)
        if genotype is None:
            raise UsageError(f"{argument}: is a plain network, which has no genotype")
        key = cells_key(genotype)
        entries.setdefault(key, Retrained(argument, genotype, retrained.get(key, [])))
    for one in (*left_out, *others):
        log.warning("left out: %s", one)
    runs = [run for entry in entries.values() for run in entry.runs]
    if different := differing_settings(runs):
        log.warning("the retrainings differ in %s: their accuracies do not tell genotypes alone", ", ".join(different))
    return with_own_names(list(entries.values()))


def measure(
    run: RunFolder, entries: Sequence[Retrained], figure: str, split: str, data: str, execution: dict[str, Any]
) -> dict[str, Any]:
    """What `rank` prints of a search and genotypes.

    Args:
        run: the search.
        entries: the genotypes, each with its retrainings and a name of its own (`with_own_names`).
        figure: one of FIGURES.
        split: of the evaluations.
        data: the data set folder; empty: the run's.
        execution: settings of how to compute, in place of the run's.

    Raises:
        InputError: a retraining is not evaluated on the split, or the supernet cannot be asked.
    """
    values = {entry.name: _values(entry, split, figure) for entry in entries}  # first, because the supernet takes time
    from ssfnas_cli.engine.rank_run import supernet_accuracies
    from ssfnas_cli.results.rank_agreement import kendall, spearman

    asked = supernet_accuracies(run, {entry.name: entry.genotype for entry in entries}, data, execution)
    rows: list[dict[str, Any]] = [
        {
            "name": entry.name,
            "supernet": asked[entry.name][FIGURES[figure]],
            "retrained": sum(found) / len(found) if (found := values[entry.name]) else None,
            "retrained_values": found,
            "runs": [str(one.path) for one in entry.runs],
        }
        for entry in entries
    ]
    pairs = [row for row in rows if row["retrained"] is not None]
    sides = [row["supernet"] for row in pairs], [row["retrained"] for row in pairs]
    return {
        "kind": "rank",
        "run": str(run.path),
        "figure": figure,
        "split": split,
        "num_pairs": len(pairs),
        "kendall_tau": kendall(*sides)._asdict(),
        "spearman_rho": spearman(*sides)._asdict(),
        "genotypes": rows,
    }


def _retrainings(paths: Sequence[Path]) -> list[RunFacts]:
    from ssfnas_cli.results.selection import select_runs

    if not paths:
        return []
    selection = select_runs(paths, "evaluation", "retrain")
    for one in selection.left_out:
        log.warning("left out: %s", one)
    return selection.runs


def with_own_names(entries: Sequence[Retrained]) -> list[Retrained]:
    """The entries, a number behind a name that an earlier one has, too."""
    taken: dict[str, int] = {}
    named = []
    for entry in entries:
        taken[entry.name] = taken.get(entry.name, 0) + 1
        again = taken[entry.name]
        named.append(entry if again == 1 else replace(entry, name=f"{entry.name} ({again})"))
    return named


def _values(entry: Retrained, split: str, figure: str) -> list[float]:
    """A figure of every retraining of a genotype.

    Raises:
        InputError: one is not evaluated on that split.
    """
    values = []
    for run in entry.runs:
        found = (run.evaluation or {}).get("splits", {}).get(split)
        if found is None:
            command = shlex.join(["ssfnas", "evaluate", str(run.path), "--split", split])
            raise InputError(f"--split {split}: {run.path} is not evaluated on it: {command}")
        values.append(found[figure])
    return values


def _show(console: Console, facts: dict[str, Any]) -> None:
    from rich.table import Table

    from ssfnas_cli.results.rank_agreement import described

    table = Table(box=box_style())
    for column in ("genotype", f"supernet, {facts['figure']}", f"retrained, {facts['split']}", "seeds"):
        table.add_column(column, overflow="fold", justify="left" if column == "genotype" else "right")
    for row in sorted(facts["genotypes"], key=lambda row: -row["supernet"]):
        retrained = "" if row["retrained"] is None else f"{row['retrained']:.2f}"
        table.add_row(row["name"], f"{row['supernet']:.2f}", retrained, str(len(row["runs"])))
    console.print(table)
    for key, title in (("kendall_tau", "Kendall's tau"), ("spearman_rho", "Spearman's rho")):
        console.print(f"{title}: {described(facts[key], facts['num_pairs'])}")
