"""The inputs of commands: runs, genotypes and networks, from a path, a name or a pipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from registry import NETWORKS
from registry.core import TORCHVISION_NAMES, did_you_mean
from ssfnas_cli.artifacts import genotype as genotype_file
from ssfnas_cli.artifacts.files import parse_json
from ssfnas_cli.artifacts.genotype import Genotype, parse_genotype
from ssfnas_cli.artifacts.named import named_genotype, published_names
from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.console import is_stream, read_stdin
from ssfnas_cli.errors import InputError, UsageError

if TYPE_CHECKING:
    from ssfnas_cli.results.selection import Selection


def open_run(argument: str, kind: str, modules: Sequence[str] = ()) -> RunFolder:
    """Open a `search` or `retrain` run. Its folder is the argument, or the previous stage of a pipe printed it.

    Args:
        modules: what to import while that stage is at work.

    Raises:
        InputError: there is no such run, or stdin contains something else.
    """
    if not is_stream(argument):
        return RunFolder.open(Path(argument), kind)
    value = parse_json(read_stdin(f"the output of 'ssfnas {kind}'", modules), "standard input")
    if isinstance(value, dict) and value.get("kind") == f"{kind}-run" and isinstance(value.get("path"), str):
        return RunFolder.open(Path(value["path"]), kind)
    what = value.get("kind") or value.get("schema") if isinstance(value, dict) else None
    raise InputError(
        f"standard input: is {what or 'something else'}, not a {kind}-run: give the output of 'ssfnas {kind}'"
    )


def read_genotype(argument: str, modules: Sequence[str] = ()) -> Genotype:
    """Read a genotype from a file or from stdin; `modules` as in `open_run`."""
    if is_stream(argument):
        return parse_genotype(read_stdin("a genotype", modules), "standard input")
    return genotype_file.read_genotype(Path(argument))


def read_network(argument: str, modules: Sequence[str] = ()) -> tuple[Genotype | None, str | None]:
    """Interpret the argument of a command that takes a network: `-`, an existing path, or a name.

    A name is that of a network in the registry, that of a published genotype, or `random-SEED`. `modules` is as in
    `open_run`.

    Returns:
        A genotype and None, or None and the name of a network in the registry.

    Raises:
        InputError: the path does not exist.
        UsageError: nothing has that name.
    """
    if is_stream(argument) or Path(argument).exists():
        return read_genotype(argument, modules), None
    if argument in NETWORKS.names():
        return None, argument
    if (named := named_genotype(argument)) is not None:
        return named, None
    if "/" in argument or Path(argument).suffix:
        raise InputError(f"{argument}: no such file")
    hint = did_you_mean(argument, network_names())
    plain = [name for name in NETWORKS.names() if name not in TORCHVISION_NAMES]
    raise UsageError(
        f"{argument}: no such file, and no network has that name.{hint} Networks: {', '.join(plain)}, torchvision's; "
        f"genotypes: {', '.join(published_names())}, random-SEED"
    )


def network_names(incomplete: str = "") -> list[str]:
    """The names that `read_network` accepts and that begin with `incomplete`, for completion in a shell."""
    names = [*NETWORKS.names(), *published_names(), "random-0"]
    return [name for name in names if name.startswith(incomplete)]


def genotype_names(incomplete: str = "") -> list[str]:
    """The names of genotypes that begin with `incomplete`, for completion in a shell."""
    return [name for name in (*published_names(), "random-0") if name.startswith(incomplete)]


def read_network_or_run(argument: str) -> tuple[Genotype | None, str | None, RunFolder | None]:
    """Interpret an argument like `read_network`, or as a run, by its folder or by its output on stdin.

    Returns:
        A genotype or None, the name of a network or None, and the run that they come from or None.

    Raises:
        InputError: the argument is none of these, or a search that has no genotype yet.
    """
    if not is_stream(argument) and not Path(argument).exists():
        return *read_network(argument), None
    parsed, run = _genotype_or_run(argument)
    named = None if run is None or parsed is not None else str(run.config["settings"]["network"]["name"])
    return parsed, named, run


def read_genotype_or_run(argument: str) -> tuple[Genotype, RunFolder | None]:
    """Read a genotype from a file or stdin, by its name, or from a run, by its folder or by its output on stdin.

    Returns:
        The genotype, and the run that it comes from or None.

    Raises:
        InputError: the argument is none of these, or a run that has no genotype.
        UsageError: nothing has that name, or a plain network, which has no genotype.
    """
    if not is_stream(argument) and not Path(argument).exists():
        named, network = read_network(argument)
        if named is None:
            raise UsageError(f"{network}: is a plain network, which has no genotype: name one, such as DARTS_V2")
        return named, None
    parsed, run = _genotype_or_run(argument)
    if parsed is None:
        assert run is not None
        raise InputError(f"{run.path}: is of a plain network, which has no genotype")
    return parsed, run


def _genotype_or_run(argument: str) -> tuple[Genotype | None, RunFolder | None]:
    if is_stream(argument):
        data = read_stdin("a genotype, or the output of 'ssfnas search' or 'ssfnas retrain'")
        path = _printed_run(data)
        if path is None:
            return parse_genotype(data, "standard input"), None
    else:
        path = Path(argument)
        if not (path / "config.json").is_file():
            return genotype_file.read_genotype(path), None
    run = RunFolder.open(path)
    if not (run.path / "genotype.json").exists():
        if run.config["settings"].get("network", {}).get("name", "none") != "none":
            return None, run
        raise InputError(f"{run.path}: has no genotype yet: 'ssfnas derive {run.path}' makes one of where it stands")
    return genotype_file.read_genotype(run.path / "genotype.json"), run


def _printed_run(data: bytes) -> Path | None:
    """The folder of a run from its output, or None if the data is something else."""
    try:
        value = parse_json(data, "standard input")
    except InputError:
        return None
    is_run = isinstance(value, dict) and value.get("kind") in ("search-run", "retrain-run")
    return Path(value["path"]) if is_run and isinstance(value.get("path"), str) else None


def name_by_sweep(selection: Selection, file: Path | None) -> Selection:
    """A selection whose runs are named by the sweep that made them; without a sweep, as it is."""
    if file is None:
        return selection
    from ssfnas_cli.sweep.arms import name_runs  # imports torch, which most comparisons do without

    return name_runs(selection, file)
