"""The data set that needs nothing: scikit-learn's digits, made long-tailed and cached on first use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ssfnas_cli.artifacts.files import cache_folder
from ssfnas_cli.console import log
from ssfnas_cli.errors import OutputExistsError

if TYPE_CHECKING:
    from ssfnas_cli.artifacts.dataset import DataSet

NAME = "digits-exp-mu0.1-seed0"


def embedded_path() -> Path:
    """Where the embedded data set is, or will be."""
    return cache_folder() / NAME


def open_embedded() -> DataSet:
    """The embedded data set, made now if this is its first use."""
    from ssfnas_cli.artifacts.dataset import DataSet
    from ssfnas_cli.data.build import build_dataset
    from ssfnas_cli.settings import MakeDatasetSettings

    path = embedded_path()
    if not path.exists():
        log.info("making the embedded data set (scikit-learn's digits, exp, mu 0.1) in %s", path)
        try:
            return build_dataset(MakeDatasetSettings(), path, log.info)
        except OutputExistsError:  # another process was faster
            pass
    log.info("data set: the embedded digits, long-tailed (exp, mu 0.1), in %s", path)
    return DataSet.open(path)


def is_embedded(named: str | None, recorded: str | None) -> bool:
    """Whether a command given `--data named`, on a genotype that records `recorded`, works on the embedded data set."""
    return not named and (recorded is None or Path(recorded) == embedded_path().resolve())
