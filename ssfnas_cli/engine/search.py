"""The whole of a search: find the data, open the run folder, loop over epochs, derive."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from registry import RELAXATIONS
from registry.space import CELL_TYPES, edge_list
from ssfnas_cli.artifacts.dataset import DataSet
from ssfnas_cli.artifacts.files import sha256_bytes, write_bytes
from ssfnas_cli.artifacts.genotype import Genotype, Provenance
from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.artifacts.tensors import load_tensors, save_tensors
from ssfnas_cli.console import log
from ssfnas_cli.data.embedded import open_embedded
from ssfnas_cli.engine.derive import derive
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.loop import Loop
from ssfnas_cli.engine.search_phase import SearchPhase, build_plugin
from ssfnas_cli.engine.session import Body, carry_out, default_path
from ssfnas_cli.errors import InputError
from ssfnas_cli.settings import SearchSettings

ALPHAS = "alphas.safetensors"


def run_search(settings: SearchSettings, output: Path | None, force: bool) -> dict[str, Any]:
    """Search, or go on with a half-done search, or find it done.

    Args:
        settings: not yet resolved.
        output: the run folder; None names one after the settings, under `runs/`.
        force: move an old folder aside and start over.

    Returns:
        What `search` prints: `kind`, `path`, `state` and the run's figures.
    """
    settings, data, identity, path = plan_search(settings, output)

    def prepare(device: Device) -> Body:
        phase = SearchPhase(settings, data, device, lambda alphas: save_tensors(path / ALPHAS, alphas))

        def body(run: RunFolder, loop: Loop) -> dict[str, Any]:
            weight_half, alpha_half = phase.halves
            log.info(
                "split of 'train' (seed %d, per class): %d images for the weights, %d for the alphas",
                settings.seed,
                len(weight_half),
                len(alpha_half),
            )
            loop.run_phase(0, phase)
            _write_genotype(run)
            return {"relax": settings.relax.name, "loss": settings.loss.name}

        return body

    return carry_out("search", settings, data, identity, path, force, prepare)


class SearchPlan(NamedTuple):
    """A search that is settled and not begun; `identity` is what makes another run the same, `path` its folder."""

    settings: SearchSettings
    data: DataSet
    identity: dict[str, Any]
    path: Path


def plan_search(settings: SearchSettings, output: Path | None) -> SearchPlan:
    """Resolve the settings, open the data set (the embedded one is made on its first use) and name the run folder."""
    settings = settings.resolve_plugins()
    data = DataSet.open(Path(settings.data)) if settings.data else open_embedded()
    identity = settings.identity() | {"data_sha256": data.sha256}
    names = [settings.relax.name, settings.loss.name]
    return SearchPlan(settings, data, identity, output or default_path("search", data, names, settings.seed, identity))


def _write_genotype(run: RunFolder) -> None:
    """Derive by the relaxation's own rule; a search whose alphas give no network by it is done all the same."""
    run.check_lock()
    try:
        write_bytes(run.path / "genotype.json", derive_run(run).to_json())
    except InputError as error:
        log.warning("no genotype is derived: %s", error)


def derive_run(
    run: RunFolder, rule: str | None = None, threshold: float | str = "auto", epoch: int | None = None
) -> Genotype:
    """The genotype of a search run, from the alphas of any of its epochs (0: before the first).

    Raises:
        InputError: the run diverged, has no alphas yet, or has not reached that epoch.
    """
    status = run.status()
    if status["state"] == "diverged":
        raise InputError(f"{run.path}: the search diverged ({status.get('reason')}): nothing is derived from it")
    settings = run.settings(SearchSettings)
    alphas = _read_alphas(run, len(settings.ops))
    reached = len(alphas["normal"]) - 1
    if epoch is None:
        epoch = reached
        if reached < settings.epochs:
            log.warning("%s is at epoch %d of %d: deriving from there", run.path, reached, settings.epochs)
    if not 0 <= epoch <= reached:
        raise InputError(f"--epoch {epoch}: {run.path} has the epochs 0 to {reached}")
    relaxation = build_plugin(RELAXATIONS, settings.relax)
    rule = rule or relaxation.default_rule
    chosen = {kind: alphas[kind][epoch].double() for kind in CELL_TYPES}
    weights = {kind: relaxation.weights(values, epoch / settings.epochs).numpy() for kind, values in chosen.items()}
    derived = derive(weights, settings.ops, rule, threshold)
    for note in derived.notes:
        log.warning("%s: %s", run.path, note)
    used = {edge.op for cell in derived.genotype.cells().values() for edge in cell.edges}
    options = {name: values for name, values in settings.op_options.items() if name in used}
    provenance = _provenance(run, settings, epoch, rule, derived.threshold, chosen)
    return derived.genotype.model_copy(update={"op_options": options, "provenance": provenance})


def _provenance(
    run: RunFolder,
    settings: SearchSettings,
    epoch: int,
    rule: str,
    threshold: float | None,
    alphas: dict[str, Tensor],
) -> Provenance:
    recorded = run.config["environment"]
    versions = {key: str(recorded[key]) for key in ("ssfnas", "torch", "python") if key in recorded}
    return Provenance(
        run=str(run.path.resolve()),
        epoch=epoch,
        rule=rule,
        threshold=threshold,
        alphas_sha256=sha256_bytes(b"".join(np.ascontiguousarray(a.numpy()).tobytes() for a in alphas.values())),
        data=run.config["data"]["path"],
        data_sha256=run.config["data"]["sha256"],
        seed=settings.seed,
        versions=versions,
    )


def _read_alphas(run: RunFolder, num_ops: int) -> dict[str, Tensor]:
    path = run.path / ALPHAS
    if not path.exists():
        raise InputError(f"{run.path}: has no alphas yet: it has not begun")
    alphas = load_tensors(path)
    sizes = {tuple(values.shape) for values in alphas.values()}
    num_epochs = max((size[0] for size in sizes if size), default=0)
    if set(alphas) != set(CELL_TYPES) or sizes != {(num_epochs, len(edge_list()), num_ops)} or num_epochs == 0:
        raise InputError(
            f"{path}: does not fit the settings in config.json: should hold 'normal' and 'reduce', "
            f"each [epochs + 1, {len(edge_list())} edges, {num_ops} ops]"
        )
    if not all(bool(torch.isfinite(values).all()) for values in alphas.values()):
        raise InputError(f"{path}: holds an alpha that is not finite: nothing is derived from it")
    return alphas
