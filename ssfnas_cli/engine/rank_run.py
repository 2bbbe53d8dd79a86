"""What the supernet of a search says of given genotypes, with the weights of its newest checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from registry.space import CELL_TYPES, NUM_INPUTS, NUM_NODES
from registry.strategies.base import Mixing, Strategy
from ssfnas_cli.artifacts.checkpoint import load_newest
from ssfnas_cli.artifacts.genotype import Genotype
from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.console import log
from ssfnas_cli.data.embedded import find_data
from ssfnas_cli.engine.candidate_rounds import candidate_accuracies
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.finished_search import refuse_without_supernet
from ssfnas_cli.engine.search_health import pruned_mixing
from ssfnas_cli.engine.search_phase import SearchPhase
from ssfnas_cli.errors import InputError
from ssfnas_cli.settings import SearchSettings


def supernet_accuracies(
    run: RunFolder, genotypes: Mapping[str, Genotype], data_path: str = "", execution: Mapping[str, Any] | None = None
) -> dict[str, dict[str, float]]:
    """Accuracies of the supernet that is left with a genotype's ops, each of weight 1.

    Args:
        run: a search with a checkpoint.
        genotypes: by name.
        data_path: the data set folder; empty: the one that the run records.
        execution: settings of how to compute, such as `device` and `threads`, in place of the run's.

    Returns:
        `accuracy` and `balanced_accuracy` by name, in percent on the alpha half, with BN statistics that are estimated
        for each genotype.

    Raises:
        InputError: a genotype is not in the search's space, or the run has no checkpoint.
    """
    settings = run.settings(SearchSettings).model_copy(update=dict(execution or {})).resolve_plugins()
    refuse_without_supernet(run, settings)
    for name, genotype in genotypes.items():
        _refuse_outside(name, genotype, run, settings)
    recorded = run.config["data"]
    data = find_data(data_path, recorded["path"], recorded["sha256"], "run", other_data=False)
    checkpoint = load_newest(run.checkpoints)
    if checkpoint is None:
        mend = "search again, with --force" if run.status()["state"] == "done" else "go on with the search"
        raise InputError(f"{run.path}: has no checkpoint, so there is no supernet to ask: {mend}")
    if run.status()["state"] != "done":
        log.warning("%s is not done: the supernet is that of its newest checkpoint", run.path)
    data.verify()
    device = Device.from_settings(settings)
    phase = SearchPhase(settings, data, device)
    phase.load(checkpoint.tensors)
    mixings = {name: pruned_mixing(one, settings.ops, device.torch) for name, one in genotypes.items()}
    for name, mixing in mixings.items():
        _refuse_dropped(name, mixing, run, phase.strategy)
    return {name: candidate_accuracies(phase, mixing) for name, mixing in mixings.items()}


def _refuse_dropped(name: str, mixing: Mixing, run: RunFolder, strategy: Strategy) -> None:
    """Refuse a genotype with an op that was no candidate any more in the last stage of a progressive search."""
    if len(strategy.stages()) == 1:
        return
    record = strategy.record()
    weights = strategy.weights_at(record, len(next(iter(record.values()))) - 1)
    for kind in CELL_TYPES:
        if ((mixing[kind].cpu().numpy() != 0) & (weights[kind] == 0)).any():
            raise InputError(
                f"{name}: its {kind} cell has an op that {run.path} had dropped before its last stage, so its supernet "
                "has not trained it there: rank genotypes of what was left, or by a search without stages"
            )


def _refuse_outside(name: str, genotype: Genotype, run: RunFolder, settings: SearchSettings) -> None:
    """Refuse a genotype that the supernet does not hold."""
    for kind, cell in genotype.cells().items():
        for edge in cell.pruned().edges:
            if edge.target >= NUM_INPUTS + NUM_NODES:
                raise InputError(f"{name}: its {kind} cell has more than the {NUM_NODES} nodes of a supernet's cell")
            if edge.op not in settings.ops:
                raise InputError(
                    f"{name}: has the op '{edge.op}', which {run.path} did not search: its ops are "
                    f"{', '.join(settings.ops)}"
                )
