"""The embedded data set: scikit-learn's digits, which are made long-tailed and cached on first use."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from ssfnas_cli import world
from ssfnas_cli.artifacts.files import cache_folder
from ssfnas_cli.console import log
from ssfnas_cli.errors import InputError, OutputExistsError

if TYPE_CHECKING:
    from ssfnas_cli.artifacts.dataset import DataSet

NAME = "digits-exp-mu0.1-seed0"


def embedded_path() -> Path:
    """The path of the embedded data set, whether or not it exists yet."""
    return cache_folder() / NAME


def open_embedded() -> DataSet:
    """Open the embedded data set. It is created on first use."""
    from ssfnas_cli.artifacts.dataset import DataSet
    from ssfnas_cli.data.build import build_dataset
    from ssfnas_cli.settings import MakeDatasetSettings

    path = embedded_path()
    with world.first_goes_first():
        if not path.exists():
            log.info("making the embedded data set (scikit-learn's digits, exp, mu 0.1) in %s", path)
            try:
                return build_dataset(MakeDatasetSettings(), path, log.info)
            except OutputExistsError:  # another process was faster
                pass
    log.info("data set: the embedded digits, long-tailed (exp, mu 0.1), in %s", path)
    return DataSet.open(path)


def is_embedded(named: str | None, recorded: str | None) -> bool:
    """Whether a command uses the embedded data set, given its `--data` and the data set that its genotype records."""
    return not named and (recorded is None or Path(recorded) == embedded_path().resolve())


def find_data(
    named: str,
    path: str | None,
    sha256: str | None,
    origin: str,
    other_data: bool,
    splits: Collection[str] | None = None,
) -> DataSet:
    """Open the data set that `--data` names, or the one that a genotype or run records.

    Its hash must be the recorded one, unless `other_data` allows another.

    Args:
        named: the value of `--data`, or empty.
        path: the recorded path, or None.
        sha256: the recorded hash, or None.
        origin: the kind of artifact that records it, for messages.
        other_data: allow `--data` to name another data set.
        splits: those that must be there; None means all.

    Raises:
        InputError: the data set does not exist, or it is another one than the recorded one.
    """
    from ssfnas_cli.artifacts.dataset import SPLITS, DataSet

    if not named and path is None:
        log.info("the %s names no data set", origin)
        return open_embedded()
    where = Path(named or path)  # type: ignore[arg-type]
    if not named and not where.exists():
        raise InputError(f"{where}: the {origin}'s data set is not there any more: name it with --data")
    data = DataSet.open(where, SPLITS if splits is None else splits)
    if sha256 is not None and data.sha256 != sha256 and not (named and other_data):
        mend = "to use it all the same, say --other-data" if named else "name the right one with --data"
        raise InputError(
            f"{where}: is not the {origin}'s data set (sha256 {data.sha256[:12]}, not {sha256[:12]}): {mend}"
        )
    return data
