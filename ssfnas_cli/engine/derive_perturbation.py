"""Derive a genotype by perturbation: a run folder of its own, which goes on from the last checkpoint of a search.

The folder is one of a search, so that it is listed, drawn and compared as searches are. Its settings are those of the
search, and `derivation` in its config.json says what was done.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry.space import CELL_TYPES
from ssfnas_cli import stop
from ssfnas_cli.artifacts.checkpoint import list_checkpoints
from ssfnas_cli.artifacts.claim import finished_result, open_for_writing, set_run_aside
from ssfnas_cli.artifacts.dataset import DataSet
from ssfnas_cli.artifacts.files import write_bytes
from ssfnas_cli.artifacts.genotype import Genotype, read_genotype
from ssfnas_cli.artifacts.run import COST, DERIVATION, TRAINING_VERSION, RunFolder
from ssfnas_cli.artifacts.tensors import sha256_of
from ssfnas_cli.console import command_line, format_duration, log
from ssfnas_cli.data.embedded import find_data
from ssfnas_cli.engine.cost import cost_of
from ssfnas_cli.engine.derive_run import provenance_of
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.finished_search import FinishedSearch
from ssfnas_cli.engine.loop import Loop
from ssfnas_cli.engine.perturbation_phase import DecidedSupernet, PerturbationPhase
from ssfnas_cli.engine.session import CURRENT_TRAINING, extra_identity, identity_of, usual_stem, warn_of_differences
from ssfnas_cli.errors import InputError, UsageError
from ssfnas_cli.machine import environment
from ssfnas_cli.settings import PERTURBATION_RULE, PerturbationSettings, SearchSettings, identity_hash


@dataclass(frozen=True)
class Work:
    """What a derivation by perturbation begins with.

    Attributes:
        source: the search. It is only read.
        settings: of the derivation.
        training: the settings of the search, executed as those of the derivation say.
        data: the data set of the search.
        identity: the values that make another run the same one.
        path: where the derivation goes.
    """

    source: FinishedSearch
    settings: PerturbationSettings
    training: SearchSettings
    data: DataSet
    identity: dict[str, Any]
    path: Path


def derive_by_perturbation(
    run: RunFolder, settings: PerturbationSettings, output: Path | None, force: bool
) -> tuple[Path, Genotype]:
    """Derive the genotype of a finished search by perturbation, go on with that, or return the result if it is done.

    Args:
        run: a finished search. It is only read.
        settings: what to do.
        output: the new run folder; None means a folder in `runs/` that is named after the settings.
        force: move an old folder aside and start over.

    Returns:
        The run folder, and the genotype that is in it.

    Raises:
        InputError: the search is unfinished or has no checkpoint, or its data set is not there.
        UsageError: its strategy has chosen a whole architecture, or its supernet is a single path; or the output is the
            search itself.
        OutputExistsError: the output holds another run or something else.
    """
    identify = lambda existing: identity_of(existing, SearchSettings)
    with stop.interruptible("before anything was written"):
        work = _begin(run, settings, output)
        if not force and finished_result(work.path, "search", work.identity, identify) is not None:
            log.info("%s is done; nothing to do", work.path)
            return work.path, read_genotype(work.path / "genotype.json")
        work.data.verify()
        device = Device.from_settings(work.training)
        phase = _build_phase(work, device)
    if force:
        set_run_aside(work.path)
    config = _config(work, device)
    with open_for_writing(work.path, "search", config, work.identity, identify) as target:
        warn_of_differences(target.config["environment"], config["environment"])
        if not list_checkpoints(target.checkpoints):
            log.info("%s", _cost_in_words(work, phase))
        loop = Loop(target, work.training)
        loop.run_phase(0, phase)
        target.check_lock()
        genotype = _genotype(work, phase, target)
        write_bytes(target.path / "genotype.json", genotype.to_json())
        _finish(work, phase, target, loop.cursor.metrics[-1])
    return work.path, genotype


def _begin(run: RunFolder, settings: PerturbationSettings, output: Path | None) -> Work:
    """Read the search and choose the folder."""
    if isinstance(derivation := run.config.get("derivation"), dict):
        raise InputError(f"{run.path}: is a derivation itself: name its search, {derivation.get('source')}")
    source = FinishedSearch.of(run)
    name = source.settings.strategy.name
    recorded = run.config["data"]
    data = find_data(settings.data, recorded["path"], recorded["sha256"], "run", other_data=False)
    training = source.settings.model_copy(update=settings.execution())
    own = {"rule": PERTURBATION_RULE} | settings.identity() | {"source": sha256_of(source.tensors)}
    extra = extra_identity(run) | {DERIVATION + key: value for key, value in own.items()}
    names = [name, training.relax.name] if name != "gradient" else [training.relax.name]
    begin = "-".join(["derive", data.path.name, PERTURBATION_RULE, *names, training.loss.name, f"s{training.seed}"])
    changed = usual_stem(training, data.image_size).changed_identity()
    path = output or Path("runs") / f"{begin}-{identity_hash(changed | extra)}"
    if path.resolve() == run.path.resolve():
        raise UsageError(f"--output {path}: is the search that is derived from: name another folder")
    return Work(source, settings, training, data, training.identity() | extra, path)


def _build_phase(work: Work, device: Device) -> PerturbationPhase:
    """The phase, with the supernet as the search has left it."""
    if work.training.is_federated:
        raise UsageError(
            f"--rule {PERTURBATION_RULE}: tunes the supernet on all images, and the clients of a federated search keep "
            "their own: leave --rule out"
        )
    facts, name = work.source.run.config.get(COST), work.training.strategy.name
    cost = cost_of(work.training, facts) if facts else None
    search = DecidedSupernet(work.training, work.data, device, cost=cost)
    if search.strategy.num_candidates:
        raise UsageError(
            f"--rule {PERTURBATION_RULE}: the strategy '{name}' has chosen a whole architecture: leave --rule out"
        )
    if len(search.strategy.stages()) > 1:
        raise UsageError(
            f"--rule {PERTURBATION_RULE}: the last supernet of the strategy '{name}' has few candidates an edge, which "
            "alphas have chosen: leave --rule out"
        )
    search.load(work.source.tensors)
    phase = PerturbationPhase(work.settings, search)
    mixing = phase.mixing()
    if all((mixing[kind] != 0).sum(dim=1).max() < 2 for kind in CELL_TYPES):
        relax = work.training.relax.name
        raise UsageError(
            f"--rule {PERTURBATION_RULE}: the supernet of --relax {relax} has one op an edge, so that no two can be "
            "compared: leave --rule out"
        )
    return phase


def _cost_in_words(work: Work, phase: PerturbationPhase) -> str:
    """What the derivation will take: one measurement is timed, and the steps are those that the search recorded."""
    began = time.perf_counter()
    phase.measure(phase.mixing())
    seconds = time.perf_counter() - began
    number, epochs = phase.choices.num_measurements, phase.tuning_epochs
    measured = f"{number} measurements of the supernet on the alpha half ({seconds:.2f} s each: "
    measured += f"{format_duration(number * seconds)})"
    lines = work.source.run.metrics()
    steps = [line["step_seconds"] for line in lines if "step_seconds" in line]
    num_steps = phase.search.num_steps(phase.search.epochs)
    tuned = f"{epochs} epochs of tuning, of {num_steps} steps"
    if not steps:
        return f"cost: {measured}, and {tuned}"
    step = statistics.median(steps)
    total = number * seconds + epochs * (num_steps * step + seconds)
    return (
        f"cost: {measured}, and {tuned} ({step:.2f} s each in the search, less where ops are decided): about "
        f"{format_duration(total)} in all; --epochs-between changes it"
    )


def _config(work: Work, device: Device) -> dict[str, Any]:
    """The content of config.json: how the supernet was searched, and under `derivation` what is done with it."""
    source = work.source.run.config
    derivation = {
        "rule": PERTURBATION_RULE,
        "source": str(work.source.run.path.resolve()),
        "settings": work.settings.model_dump(mode="json"),
    }
    return {
        **{key: source[key] for key in ("resolved", "changed", "init", COST) if key in source},
        "settings": work.training.model_dump(mode="json"),
        "data": {"path": str(work.data.path.resolve()), "sha256": work.data.sha256},
        "environment": environment() | device.facts(),
        TRAINING_VERSION: CURRENT_TRAINING,
        "command": command_line(),
        "derivation": derivation,
    }


def _genotype(work: Work, phase: PerturbationPhase, target: RunFolder) -> Genotype:
    cells = phase.choices.cells()
    used = {edge.op for cell in cells.values() for edge in cell.edges}
    options = {name: values for name, values in work.training.op_options.items() if name in used}
    # Of the weights of the last epoch, which are those of the genotype's edges
    sources = [weights[-1].double() for weights in phase.weights.values()]
    provenance = provenance_of(target, work.training, work.training.epochs, PERTURBATION_RULE, None, sources)
    return Genotype(normal=cells["normal"], reduce=cells["reduce"], op_options=options, provenance=provenance)


def _finish(work: Work, phase: PerturbationPhase, target: RunFolder, last: dict[str, Any]) -> None:
    training = work.training
    result = {
        "kind": "search-run",
        "path": str(target.path),
        "state": "done",
        "derived": PERTURBATION_RULE,
        "source": str(work.source.run.path),
        "strategy": training.strategy.name,
        "relax": training.relax.name,
        "loss": training.loss.name,
        "epochs": phase.epochs,
        "data": target.config["data"]["path"],
        "data_sha256": target.config["data"]["sha256"],
        "seed": training.seed,
        **{key: value for key, value in last.items() if "accuracy_alpha_half" in key},
        "elapsed_seconds": last["elapsed_seconds"],
    }
    target.write_done(result, phase=phase.name, epoch=phase.epochs, epochs=phase.epochs, last=last)
    log.info("done: %s", target.path)
