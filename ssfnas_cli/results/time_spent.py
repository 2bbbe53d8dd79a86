"""What runs took altogether, in core-hours."""

from __future__ import annotations

from collections.abc import Sequence

from ssfnas_cli.results.facts import RunFacts, search_of


def core_hours(runs: Sequence[RunFacts]) -> dict[str, float]:
    """Hours times threads by kind of run, `search` and `retrain`: of the runs, of what they correct and their searches.

    A search or network that several runs share counts once. The seconds are those of the wall: on a machine
    that was busy with other work they are more than the processor's.
    """
    folders = {folder.path.resolve(): folder for run in runs for folder in (run.run, *run.lineage)}
    searches = [search for run in runs if (search := search_of(run)) is not None]
    folders |= {search.path.resolve(): search for search in searches}
    hours = {"search": 0.0, "retrain": 0.0}
    for folder in folders.values():
        lines = folder.metrics()
        seconds = lines[-1].get("elapsed_seconds", 0.0) if lines else 0.0
        hours[folder.kind] += seconds * folder.config["environment"].get("threads", 1) / 3600
    return {kind: round(value, 3) for kind, value in hours.items() if value}
