"""`ssfnas plot`: pictures of data sets, searches, trainings and evaluations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ssfnas_cli.commands import common, inputs, outputs
from ssfnas_cli.console import is_stream, log, set_verbosity
from ssfnas_cli.errors import InputError, UsageError
from ssfnas_cli.plots.figure import FORMATS, to_bytes
from ssfnas_cli.plots.tradeoff import COSTS
from ssfnas_cli.results.splits import choose_splits, refuse_unknown_splits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ssfnas_cli.artifacts.dataset import DataSet
    from ssfnas_cli.artifacts.run import RunFolder
    from ssfnas_cli.plots.distribution import Distribution
    from ssfnas_cli.results.grouping import Group
    from ssfnas_cli.results.selection import Need

KINDS = {
    "distribution": "images of each class, of data sets or of the data sets of runs",
    "curves": "accuracy over epochs, of searches or of retrainings",
    "alphas": "mixing weights over the epochs of one search",
    "classes": "accuracy of each class against its training images",
    "confusion": "which classes are taken for which",
    "calibration": "how often a network is right where it is so sure",
    "health": "whether searches decide or collapse",
    "tradeoff": "accuracy of networks against what they cost",
}
EVALUATED = ("classes", "confusion", "calibration", "tradeoff")
SEARCHED = ("alphas", "health")
RUN_KINDS = ("search", "retrain")


def command(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="; ".join(f"{name}: {what}" for name, what in KINDS.items()) + ".",
            autocompletion=common.one_of(KINDS),
        ),
    ],
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run folders or folders of them; data sets, too, for distribution."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="FILE.svg, .png or .pdf; - for SVG on stdout.", show_default="KIND.svg"),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Of the evaluations: val, test or test_longtail.",
            show_default="test, or else the first that was evaluated",
        ),
    ] = None,
    lines: Annotated[bool, typer.Option("--lines", help="Of alphas: lines in place of heat maps.")] = False,
    run_kind: Annotated[
        str | None,
        typer.Option(
            "--kind",
            help="Of curves, search or retrain.",
            autocompletion=common.one_of(RUN_KINDS),
            show_default="retrain in a folder that has both",
        ),
    ] = None,
    sweep: common.SweepFile = None,
    against: Annotated[
        str | None,
        typer.Option(
            help=f"Of tradeoff, the cost: {', '.join(COSTS)}.",
            show_default="weights",
            autocompletion=common.one_of(COSTS),
        ),
    ] = None,
    force: common.Force = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
) -> None:
    """Draw runs. Those that differ only in their seeds are one series, with a band from the least to the most.

    The same runs give the same file, byte for byte.
    """
    set_verbosity(quiet, verbose)
    if kind not in KINDS:
        raise UsageError(f"{kind}: is no kind of picture: name one of {', '.join(KINDS)}")
    if lines and kind != "alphas":
        raise UsageError(f"--lines: is of alphas, not of {kind}: leave it out")
    if split is not None and kind not in EVALUATED:
        raise UsageError(f"--split: is of {', '.join(EVALUATED)}, not of {kind}: leave it out")
    refuse_unknown_splits([] if split is None else [split])
    if run_kind is not None and (kind != "curves" or run_kind not in RUN_KINDS):
        raise UsageError(f"--kind {run_kind}: is of curves: {' or '.join(RUN_KINDS)}")
    if against is not None and kind != "tradeoff":
        raise UsageError(f"--against: is of tradeoff, not of {kind}: leave it out")
    if against is not None and against not in COSTS:
        raise UsageError(f"--against {against}: is no cost: name one of {', '.join(COSTS)}")
    output = Path(f"{kind}.svg") if output is None else output
    suffix = outputs.picture_format(output, FORMATS)
    outputs.refuse_existing(output, force)
    if kind == "alphas":
        draw = _alphas_drawer(runs, lines, sweep)
    elif kind == "distribution":
        draw = _distribution_drawer(runs, sweep)
    else:
        need: Need = "evaluation" if kind in EVALUATED else "epochs"
        groups = select_groups(runs, need, run_kind or _kind_of_run(kind), sweep)
        draw = _groups_drawer(kind, groups, split, against or "weights")
    outputs.write_output(output, to_bytes(draw, suffix, chart=True), force)
    if not is_stream(output):
        log.info("%s", output)


def _groups_drawer(kind: str, groups: Sequence[Group], asked: str | None, against: str) -> Callable[[], Figure]:
    """A function that draws a picture of groups of runs, on the split that is asked for or on the usual one."""
    from ssfnas_cli.plots import calibration, classes, confusion, curves, health, tradeoff

    runs = [run for group in groups for run in group.runs]
    split = choose_splits(runs, [asked] if asked else [])[0] if kind in EVALUATED else ""
    if kind == "curves" and not curves.is_tracked(groups):
        log.info("no test split was tracked; '--set track_test=true' in search or retrain tracks them")
    elif kind == "curves":
        for label in curves.untracked(groups):
            log.warning("%s: has no line: it tracked none of these splits ('--set track_test=true' tracks them)", label)
    drawers: dict[str, Callable[[], Figure]] = {
        "curves": partial(curves.draw, groups),
        "health": partial(health.draw, groups),
        "classes": partial(classes.draw, groups, split),
        "confusion": partial(confusion.draw, groups, split),
        "calibration": partial(calibration.draw, groups, split),
        "tradeoff": partial(tradeoff.draw, groups, split, against),
    }
    return drawers[kind]


def _kind_of_run(kind: str) -> str | None:
    """The kind of run that a kind of picture is drawn of; None if of both."""
    return "retrain" if kind in EVALUATED else "search" if kind in SEARCHED else None


def select_groups(paths: Sequence[Path], need: Need, kind: str | None, sweep: Path | None) -> list[Group]:
    """The groups of runs to draw, named by a sweep if there is one; a warning for each run that is left out."""
    from ssfnas_cli.results.grouping import group_runs
    from ssfnas_cli.results.selection import select_runs

    selection = inputs.name_by_sweep(select_runs(paths, need, kind), sweep)
    for one in selection.left_out:
        log.warning("left out: %s", one)
    return group_runs(selection.runs)


def _alphas_drawer(paths: Sequence[Path], lines: bool, sweep: Path | None) -> Callable[[], Figure]:
    groups = select_groups(paths, "epochs", "search", sweep)
    runs = [run for group in groups for run in group.runs]
    if len(runs) > 1:
        raise UsageError(f"alphas: draws one search, and these are {len(runs)}: name one, such as {runs[0].path}")
    from ssfnas_cli.engine.derive_run import weights_of_run
    from ssfnas_cli.plots.alphas import Record, draw_heat, draw_lines

    run = runs[0].run
    record = Record(f"{groups[0].label}, seed {runs[0].seeds[-1]}", run.config["settings"]["ops"], weights_of_run(run))
    return partial(draw_lines if lines else draw_heat, record)


def _distribution_drawer(paths: Sequence[Path], sweep: Path | None) -> Callable[[], Figure]:
    from ssfnas_cli.plots import distribution

    return partial(distribution.draw, _distributions(paths, sweep))


def _distributions(paths: Sequence[Path], sweep: Path | None) -> list[Distribution]:
    """The label distributions of data sets, each once, in the order of the arguments or, with a sweep, of its file."""
    from ssfnas_cli.artifacts.dataset import DataSet
    from ssfnas_cli.artifacts.run import RunFolder
    from ssfnas_cli.artifacts.run_list import find_runs
    from ssfnas_cli.plots.distribution import Distribution

    found: list[DataSet] = []
    for path in paths:
        if not path.is_dir() or (path / "manifest.json").exists() or (path / "config.json").exists():
            found.append(_data_of(RunFolder.open(path)) if (path / "config.json").exists() else DataSet.open(path))
            continue
        inside = [DataSet.open(one) for one in sorted(path.iterdir()) if (one / "manifest.json").is_file()]
        inside += [_data_of(run) for run in find_runs(path) if isinstance(run, RunFolder)]
        if not inside:
            raise InputError(f"{path}: is a folder without a data set or a run in it")
        found += inside
    unique = {data.sha256: data for data in reversed(found)}
    named = [(data.path.name, data) for data in reversed(unique.values())]
    if sweep is not None:
        from ssfnas_cli.sweep.arms import data_names

        names = data_names(sweep)
        of_name = {name.rpartition("-")[0]: data for name, data in named}
        named = [(title, of_name[name]) for name, title in names.items() if name in of_name] or named
    return [Distribution(title, data.class_names, data.counts("train")) for title, data in named]


def _data_of(run: RunFolder) -> DataSet:
    """The data set that a run was made with.

    Raises:
        InputError: it is not where it was. To make one under its name would make another one.
    """
    from ssfnas_cli.artifacts.dataset import DataSet

    recorded = run.config["data"]
    folder, mend = Path(recorded["path"]), "name the folder where it is now in place of the run"
    if not folder.exists():
        raise InputError(f"{run.path}: its data set {folder} is not there any more: {mend}")
    data = DataSet.open(folder)
    if data.sha256 != recorded["sha256"]:
        raise InputError(f"{run.path}: in the place of its data set, {folder}, there is another one now: {mend}")
    return data
