"""Retrainings by the genotype whose network they trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from ssfnas_cli.artifacts.files import validation_error
from ssfnas_cli.artifacts.genotype import Genotype
from ssfnas_cli.results.facts import SEARCH, RunFacts
from ssfnas_cli.results.selection import LeftOut

NO_SETTING_OF_TRAINING = ("genotype", "threshold")


@dataclass(frozen=True)
class Retrained:
    """A genotype, and the retrainings of it: those of several seeds are one."""

    name: str
    genotype: Genotype
    runs: list[RunFacts] = field(default_factory=list)


def by_genotype(runs: Sequence[RunFacts], data_sha256: str) -> tuple[list[Retrained], list[LeftOut]]:
    """Retrainings on a data set by the cells of their genotypes, in the order in which they are met first.

    Returns:
        The genotypes, and the runs that are left out: of plain networks, and on other data.
    """
    found: dict[str, Retrained] = {}
    left_out = []
    for run in runs:
        recorded = run.run.config.get("genotype")
        if not isinstance(recorded, dict):
            left_out.append(LeftOut(run.path, "is of a plain network, which has no genotype"))
        elif run.data[1] != data_sha256:
            left_out.append(LeftOut(run.path, "was trained on another data set than the search"))
        else:
            try:
                genotype = Genotype.model_validate(recorded)
            except ValidationError as error:  # its ops may be of a package that is not here
                left_out.append(LeftOut(run.path, str(validation_error("its genotype cannot be built here", error))))
                continue
            entry = found.setdefault(cells_key(genotype), Retrained(genotype.name or run.path.name, genotype))
            entry.runs.append(run)
    return list(found.values()), left_out


def cells_key(genotype: Genotype) -> str:
    """What two genotypes have in common if they describe the same network: the live edges of both cells."""
    cells = {
        kind: [sorted((edge.target, edge.source, edge.op) for edge in live.edges), live.concat]
        for kind, live in ((kind, cell.pruned()) for kind, cell in genotype.cells().items())
    }
    return json.dumps(cells, sort_keys=True)


def differing_settings(runs: Sequence[RunFacts]) -> list[str]:
    """The settings of training that are not the same in all runs, so that their accuracies do not tell genotypes."""
    of_runs: list[Mapping[str, Any]] = [
        {key: value for key, value in run.settings.items() if _is_of_training(key)} for run in runs
    ]
    names = dict.fromkeys(key for settings in of_runs for key in settings)
    return [name for name in names if len({json.dumps(settings.get(name)) for settings in of_runs}) > 1]


def most_common_training(runs: Sequence[RunFacts]) -> list[RunFacts]:
    """The retrainings with the settings of training that most of them share; of equally many the first ones."""
    settings = [
        json.dumps({key: value for key, value in run.settings.items() if _is_of_training(key)}, sort_keys=True)
        for run in runs
    ]
    most = max(settings, key=settings.count, default="")
    return [run for run, own in zip(runs, settings, strict=True) if own == most]


def _is_of_training(key: str) -> bool:
    return key not in NO_SETTING_OF_TRAINING and not key.startswith(SEARCH)
