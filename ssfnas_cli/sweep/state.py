"""Which cells of a sweep are done.

A cell is passed over only if its output is whole and was made by the same command of the same inputs. In every other
case the command itself is run: it goes on, has nothing to do, or says in what the folder's run differs.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ssfnas_cli.artifacts.checkpoint import list_checkpoints
from ssfnas_cli.artifacts.dataset import MANIFEST
from ssfnas_cli.artifacts.files import sha256_file
from ssfnas_cli.artifacts.genotype import Provenance, read_genotype
from ssfnas_cli.artifacts.model import MODEL
from ssfnas_cli.artifacts.run import ADJUSTMENT, RunFolder
from ssfnas_cli.data.embedded import embedded_path
from ssfnas_cli.errors import InputError
from ssfnas_cli.settings import parse_amount
from ssfnas_cli.sweep.cells import Cell

EXECUTION = ("--threads", "--workers", "--device")  # flags with a value that change no result
PLACES = ("-o", "--data")  # what lies there is compared by its contents
ALONE = (
    "--quiet",
    "-q",
    "--verbose",
    "-v",
    "--json",
    "--other-data",
)  # flags without a value, which change none either


def is_done(cell: Cell) -> bool:
    """Whether there is nothing to do for a cell."""
    with contextlib.suppress(InputError, OSError):
        return _CHECKS[cell.stage](cell)
    return False


def missing(cells: Sequence[Cell]) -> list[Cell]:
    """The cells that there is something to do for, or that need one of those; each cell is behind those it needs."""
    left: dict[str, Cell] = {}
    for cell in cells:
        if any(name in left for name in cell.needs) or not is_done(cell):
            left[cell.name] = cell
    return list(left.values())


def _data_is_made(cell: Cell) -> bool:
    """Its folder's name has a hash of its settings, and it appears when it is whole."""
    return (cell.output / MANIFEST).is_file()


def _run_is_done(cell: Cell) -> bool:
    if not cell.output.is_dir():
        return False
    run = RunFolder.open(cell.output)
    command = shlex.split(str(run.config.get("command", "")))
    (_, *made_of), made_with = parse_words(command[1:], (*EXECUTION, *PLACES))
    (_, *asked_of), asked_with = parse_words(cell.argv, (*EXECUTION, *PLACES))
    same = made_with == asked_with and (cell.source is not None or made_of == asked_of)
    status = run.status()
    if status.get("result") is None or not same:
        return False
    if run.lost_file(status) is not None and list_checkpoints(run.checkpoints):
        return False  # its command writes the file again
    return all(run.config["identity"].get(key) == value for key, value in _inputs(cell).items())


def _inputs(cell: Cell) -> dict[str, Any]:
    """The part of a run's identity that its inputs give."""
    data = embedded_path() if cell.data is None else cell.data
    inputs: dict[str, Any] = {"data_sha256": sha256_file(data / MANIFEST)}
    if cell.stage == "retrain" and cell.source is not None:
        inputs["genotype"] = read_genotype(cell.source).shape()
    elif cell.stage == "adjust" and cell.source is not None:
        inputs[f"{ADJUSTMENT}source"] = sha256_file(cell.source / MODEL)
    return inputs


def _genotype_is_derived(cell: Cell) -> bool:
    """What the file says of its origin must be what the command asks for."""
    assert cell.source is not None
    if not cell.output.exists():
        return False
    origin = read_genotype(cell.output).provenance
    asked = dict(zip(cell.argv[2::2], cell.argv[3::2], strict=True))
    threshold, skips = asked.get("--threshold", "auto"), asked.get("--max-skips")
    return (
        origin.run == str(cell.source.resolve())
        and asked.get("--rule", origin.rule) == origin.rule
        and int(asked.get("--epoch", _last_epoch(cell.source))) == origin.epoch
        and (None if skips is None else int(skips)) == origin.max_skips
        and (threshold == "auto" or float(threshold) == origin.threshold)
        and _limits_are_those(asked, origin)
    )


def _limits_are_those(asked: Mapping[str, str], origin: Provenance) -> bool:
    """Whether a genotype fits the size that is asked for, and is the candidate that is asked for."""
    limits, candidate = origin.limits or {}, asked.get("--candidate")
    for flag, key in {"--max-params": "max_params", "--max-macs": "max_macs"}.items():
        if (parse_amount(asked[flag]) if flag in asked else None) != limits.get(key):
            return False
    sizes = {"--cost-channels": "channels", "--cost-layers": "layers"}
    same_size = all(int(asked[flag]) == limits.get(key) for flag, key in sizes.items() if flag in asked)
    if candidate is None:
        return same_size and (origin.candidate is None or bool(limits))  # limits may have chosen one
    return same_size and int(candidate) == origin.candidate


def _last_epoch(search: Path) -> int:
    """The last epoch of a finished search; rounds of candidates count as epochs."""
    return int(RunFolder.open(search, "search").metrics()[-1]["epoch"])


def _is_evaluated(cell: Cell) -> bool:
    assert cell.source is not None
    found = RunFolder.open(cell.source).evaluation() if cell.source.is_dir() else None
    return found is not None and set(cell.splits) <= set(found["splits"])


def parse_words(argv: Sequence[str], but: Collection[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The words of a command: those that belong to no flag, and the flags with their values.

    Args:
        argv: what follows `ssfnas`.
        but: flags with a value that are left out, as those without one always are.

    Returns:
        The command and its arguments; and the flags, sorted, of which those that are repeated keep their order.
    """
    words = iter(argv)
    arguments, flags = [], []
    for word in words:
        if not word.startswith("-"):
            arguments.append(word)
        elif word not in ALONE:
            flags.append((word, next(words, "")))
    return arguments, sorted((pair for pair in flags if pair[0] not in but), key=lambda pair: pair[0])


_CHECKS = {
    "data": _data_is_made,
    "search": _run_is_done,
    "derive": _genotype_is_derived,
    "retrain": _run_is_done,
    "adjust": _run_is_done,
    "evaluate": _is_evaluated,
}
