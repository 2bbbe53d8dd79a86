"""What flows between commands: run references and genotypes, from a path or from a pipe."""

from __future__ import annotations

from pathlib import Path

from registry import NETWORKS
from registry.core import TORCHVISION_NAMES, did_you_mean
from ssfnas_cli.artifacts.files import parse_json, set_aside
from ssfnas_cli.artifacts.files import write_bytes as write_file
from ssfnas_cli.artifacts.genotype import Genotype, parse_genotype, read_genotype
from ssfnas_cli.artifacts.named import named_genotype, published_names
from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.console import is_stream, log, read_stdin, write_bytes
from ssfnas_cli.errors import InputError, OutputExistsError, UsageError


def run(argument: str, kind: str) -> RunFolder:
    """A `search` or `retrain` run: the folder named, or the one that the stage before printed.

    Raises:
        InputError: no such run, or the pipe brought something else.
    """
    if not is_stream(argument):
        return RunFolder.open(Path(argument), kind)
    value = parse_json(read_stdin(f"the output of 'ssfnas {kind}'"), "standard input")
    if isinstance(value, dict) and value.get("kind") == f"{kind}-run" and isinstance(value.get("path"), str):
        return RunFolder.open(Path(value["path"]), kind)
    what = value.get("kind") or value.get("schema") if isinstance(value, dict) else None
    raise InputError(
        f"standard input: is {what or 'something else'}, not a {kind}-run: give the output of 'ssfnas {kind}'"
    )


def genotype(argument: str) -> Genotype:
    """A genotype from a file or from a pipe."""
    if is_stream(argument):
        return parse_genotype(read_stdin("a genotype"), "standard input")
    return read_genotype(Path(argument))


def network(argument: str) -> tuple[Genotype | None, str | None]:
    """What a command that takes a network is given: `-`, an existing path, or a name.

    A name is that of a plain network, of a published genotype, or `random-SEED`.

    Returns:
        A genotype, or a name from the registry of networks.

    Raises:
        InputError: a path that is not there. UsageError: nothing has that name.
    """
    if is_stream(argument) or Path(argument).exists():
        return genotype(argument), None
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
    """What can be named in the place of a genotype and begins with these letters: for completion."""
    names = [*NETWORKS.names(), *published_names(), "random-0"]
    return [name for name in names if name.startswith(incomplete)]


def network_or_run(argument: str) -> tuple[Genotype | None, str | None, RunFolder | None]:
    """As `network`, and a run besides, whose folder is named or whose output comes from a pipe.

    Returns:
        A genotype or the name of a plain network, and the run that it is of.

    Raises:
        InputError: none of them, or a search that has no genotype yet.
    """
    if not is_stream(argument) and not Path(argument).exists():
        return *network(argument), None
    parsed, run = _genotype_or_run(argument)
    named = None if run is None or parsed is not None else str(run.config["settings"]["network"]["name"])
    return parsed, named, run


def genotype_or_run(argument: str) -> tuple[Genotype, RunFolder | None]:
    """A genotype from a file or a pipe; or that of a run, whose folder is named or printed, and the run.

    Raises:
        InputError: neither, or a run that has no genotype.
    """
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
            return read_genotype(path), None
    run = RunFolder.open(path)
    if not (run.path / "genotype.json").exists():
        if run.config["settings"].get("network", {}).get("name", "none") != "none":
            return None, run
        raise InputError(f"{run.path}: has no genotype yet: 'ssfnas derive {run.path}' makes one of where it stands")
    return read_genotype(run.path / "genotype.json"), run


def _printed_run(data: bytes) -> Path | None:
    """The folder of the run whose output this is, or None if it is something else."""
    try:
        value = parse_json(data, "standard input")
    except InputError:
        return None
    is_run = isinstance(value, dict) and value.get("kind") in ("search-run", "retrain-run")
    return Path(value["path"]) if is_run and isinstance(value.get("path"), str) else None


def parse_threshold(text: str) -> float | str:
    """`auto`, or a finite number."""
    if text == "auto":
        return text
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if value != value or value in (float("inf"), float("-inf")):
        raise UsageError(f"--threshold {text}: should be auto or a number such as 0.85")
    return value


def refuse_existing(output: Path | None, force: bool) -> None:
    """Before the work: an output file that is there already is never overwritten, only moved aside with --force.

    Raises:
        OutputExistsError: naming the mend.
    """
    if output is None or is_stream(output) or not output.exists():
        return
    if output.is_dir():
        raise OutputExistsError(f"--output {output}: is a folder; name a file")
    if not force:
        raise OutputExistsError(f"--output {output}: is there already: choose another name, or --force")


def write_output(output: Path | None, data: bytes, force: bool) -> None:
    """After the work: to stdout or to a file. Only now is an old file moved aside; a command that failed moves none."""
    if output is None or is_stream(output):
        write_bytes(data)
        return
    refuse_existing(output, force)
    if output.exists():
        log.warning("--force: what was %s is now %s", output, set_aside(output))
    write_file(output, data)
