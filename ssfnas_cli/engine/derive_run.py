"""Derivation of a genotype from a search run, from the record of one of its epochs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from registry.space import CELL_TYPES, EDGE_WEIGHTS, edge_list
from registry.strategies.base import Strategy
from registry.strategies.candidates import mixing_of
from ssfnas_cli.artifacts.files import sha256_bytes
from ssfnas_cli.artifacts.genotype import Genotype, Provenance, read_genotype
from ssfnas_cli.artifacts.run import ALPHAS, RunFolder
from ssfnas_cli.console import log, mend_divergence
from ssfnas_cli.engine.fit import Limits, fit
from ssfnas_cli.engine.judged import Judged
from ssfnas_cli.engine.rules import RULES, derive
from ssfnas_cli.engine.strategy import build_strategy
from ssfnas_cli.errors import InputError, UsageError
from ssfnas_cli.settings import PERTURBATION_RULE, SearchSettings


def derive_run(
    run: RunFolder,
    rule: str | None = None,
    threshold: float | str = "auto",
    epoch: int | None = None,
    max_skips: int | None = None,
    candidate: int | None = None,
    limits: Limits | None = None,
) -> Genotype:
    """Derive the genotype of a search run.

    Args:
        rule: the derivation rule; None means the strategy's default.
        threshold: see `engine.rules.derive`.
        epoch: the epoch whose record is used; 0 is the initial state, None the last epoch.
        max_skips: see `engine.rules.derive`.
        candidate: of a search that judged candidates, the number of the one to derive; None means the fittest.
        limits: what the network must fit into. Of candidates the fittest that fits is derived; other genotypes are
            changed so that they fit (`engine.fit`).

    Raises:
        InputError: the run diverged, has no alphas yet, or has not reached that epoch, or nothing fits.
    """
    if "derivation" in run.config:
        given = {"--candidate": candidate is not None, "--max-skips": max_skips is not None}
        given |= {"--max-params, --max-macs": limits is not None}
        return _of_derivation(run, rule, threshold, epoch, given)
    status = run.status()
    if status["state"] == "diverged":
        why = f"the search diverged ({status.get('reason')}), and nothing is derived from it"
        raise InputError(f"{run.path}: {why}: {mend_divergence(run.kind)}")
    settings = run.settings(SearchSettings)
    strategy = build_strategy(settings)
    record = run.alphas()
    epoch = _choose_epoch(run, strategy, _check_record(run, record, strategy.record_names, len(settings.ops)), epoch)
    weights = strategy.weights_at(record, epoch)
    _check_choice(strategy, settings.strategy.name, rule, weights, epoch)
    _check_max_skips(strategy, settings.strategy.name, max_skips, limits)
    sources = [record[name][epoch].double() for name in strategy.record_names]
    rule = rule or strategy.default_rule
    space, more = limits.of(run, settings) if limits else None, dict[str, Any](max_skips=max_skips)
    if strategy.num_candidates and (candidate is not None or space):
        judged = Judged.of(run, (epoch - strategy.supernet_epochs) * strategy.candidates_a_round)
        more["candidate"] = judged.choose(candidate, space)
        weights = mixing_of(judged.genes[more["candidate"]], len(settings.ops))
        sources = [torch.from_numpy(weights[kind]).double() for kind in CELL_TYPES]
    elif candidate is not None:
        raise UsageError(f"--candidate: the strategy '{settings.strategy.name}' judges none: leave it out")
    derived = derive(weights, settings.ops, rule, threshold, max_skips)
    genotype = derived.genotype
    if space is not None:
        more["limits"] = space.provenance()
        genotype = fit(genotype.model_copy(update={"op_options": settings.op_options}), weights, RULES[rule], space)
    used = {edge.op for cell in genotype.cells().values() for edge in cell.edges}
    options = {name: values for name, values in settings.op_options.items() if name in used}
    provenance = provenance_of(run, settings, epoch, rule, derived.threshold, sources).model_copy(update=more)
    genotype = genotype.model_copy(update={"op_options": options, "provenance": provenance})
    said_before = _recorded_provenance(run) == provenance
    for note in derived.notes:
        log.log(logging.DEBUG if said_before else logging.WARNING, "%s: %s", run.path, note)
    return genotype


def _choose_epoch(run: RunFolder, strategy: Strategy, reached: int, epoch: int | None) -> int:
    """The epoch that is asked for, or the last one.

    Raises:
        InputError: the run has not reached it.
    """
    if epoch is None:
        epoch, all_of_it = reached, strategy.supernet_epochs + strategy.num_rounds
        if reached < all_of_it:
            log.warning("%s is at epoch %d of %d: deriving from there", run.path, reached, all_of_it)
    if not 0 <= epoch <= reached:
        raise InputError(f"--epoch {epoch}: {run.path} has the epochs 0 to {reached}")
    return epoch


def _of_derivation(
    run: RunFolder, rule: str | None, threshold: float | str, epoch: int | None, more: Mapping[str, bool]
) -> Genotype:
    """The genotype of a derivation by perturbation, which is decided when the run is done.

    Raises:
        InputError: it is not done.
        UsageError: another rule, a threshold or an epoch would make another genotype of it.
    """
    given = {"--rule": rule not in (None, PERTURBATION_RULE), "--threshold": threshold != "auto"}
    given |= {"--epoch": epoch is not None, **more}
    for flag, is_given in given.items():
        if is_given:
            raise UsageError(
                f"{flag}: {run.path} is a derivation by perturbation, which has one genotype: leave it out"
            )
    run.refuse_unfinished()
    return read_genotype(run.path / "genotype.json")


def _check_max_skips(strategy: Strategy, name: str, max_skips: int | None, limits: Limits | None) -> None:
    """Refuse a limit to skip connections where something else decides about ops, too."""
    if max_skips is None:
        return
    if strategy.num_candidates:
        raise UsageError(f"--max-skips: the strategy '{name}' has chosen a whole architecture: leave it out")
    if limits is not None:
        raise UsageError(
            "--max-skips: a genotype that is made to fit a size (--max-params, --max-macs) may get more skip "
            "connections: leave one of both out"
        )


def _check_choice(
    strategy: Strategy, name: str, rule: str | None, weights: Mapping[str, np.ndarray], epoch: int
) -> None:
    """Check that a strategy that chooses whole architectures has chosen one, and that no other rule is asked for.

    Raises:
        InputError: the epoch is one in which the supernet was trained.
        UsageError: another rule would make another architecture of the chosen one.
    """
    if not strategy.num_candidates:
        return
    if rule not in (None, strategy.default_rule):
        raise UsageError(f"--rule {rule}: the strategy '{name}' has chosen a whole architecture: leave --rule out")
    if not any(weights[kind].any() for kind in CELL_TYPES):
        first = strategy.supernet_epochs + 1
        when = f"chooses in the rounds after the epochs, from --epoch {first} on"
        raise InputError(f"nothing is chosen in epoch {epoch}: '{name}' {when}")


def weights_of_run(run: RunFolder) -> dict[str, np.ndarray]:
    """The mixing weights of all epochs of a search by cell type, float64 [epochs so far + 1, num_edges, num_ops].

    If edges have weights of their own, those are there, too, by their names: [epochs so far + 1, num_edges].

    Raises:
        InputError: the run has no alphas yet, or they do not fit its settings.
    """
    settings = run.settings(SearchSettings)
    record = run.alphas()
    if "derivation" in run.config:  # its record holds mixing weights
        names = (*CELL_TYPES, *(name for name in EDGE_WEIGHTS.values() if name in record))
        _check_record(run, record, names, len(settings.ops))
        return {kind: weights.double().numpy() for kind, weights in record.items()}
    strategy = build_strategy(settings)
    reached = _check_record(run, record, strategy.record_names, len(settings.ops))
    epochs = [strategy.weights_at(record, epoch) for epoch in range(reached + 1)]
    return {kind: np.stack([weights[kind] for weights in epochs]) for kind in epochs[0]}


def _recorded_provenance(run: RunFolder) -> Provenance | None:
    """The provenance of the genotype that the search itself has derived at its end."""
    try:
        return read_genotype(run.path / "genotype.json").provenance
    except InputError:
        return None


def provenance_of(
    run: RunFolder,
    settings: SearchSettings,
    epoch: int,
    rule: str,
    threshold: float | None,
    sources: list[Tensor],
) -> Provenance:
    """The provenance of a genotype that was derived in a run from some tensors, of which the hash is recorded."""
    recorded, init = run.config["environment"], run.config.get("init", {})
    versions = {key: str(recorded[key]) for key in ("ssfnas", "torch", "python") if key in recorded}
    versions |= recorded.get("plugins", {})
    return Provenance(
        run=str(run.path.resolve()),
        epoch=epoch,
        rule=rule,
        threshold=threshold,
        alphas_sha256=sha256_bytes(b"".join(np.ascontiguousarray(a.numpy()).tobytes() for a in sources)),
        data=run.config["data"]["path"],
        data_sha256=run.config["data"]["sha256"],
        seed=settings.seed,
        init_from=init.get("source"),
        init_sha256=init.get("sha256"),
        versions=versions,
    )


def _check_record(run: RunFolder, record: Mapping[str, Tensor], names: tuple[str, ...], num_ops: int) -> int:
    """Check a record and return its last epoch.

    Raises:
        InputError: the record does not fit the run's settings or holds numbers that are not finite.
    """
    path = run.path / ALPHAS
    num_epochs = max((values.shape[0] for values in record.values() if values.ndim), default=0)
    of_edges, num_edges = set(EDGE_WEIGHTS.values()) & set(names), len(edge_list())
    sizes = {name: (num_epochs, num_edges) if name in of_edges else (num_epochs, num_edges, num_ops) for name in names}
    if {name: tuple(values.shape) for name, values in record.items()} != sizes or num_epochs == 0:
        listed = " and ".join(f"'{name}'" for name in names if name not in of_edges)
        more = f", and {' and '.join(map(repr, sorted(of_edges)))}, each [epochs + 1, {num_edges} edges]"
        raise InputError(
            f"{path}: does not fit the settings in config.json: should hold {listed}, "
            f"each [epochs + 1, {num_edges} edges, {num_ops} ops]{more if of_edges else ''}"
        )
    if not all(bool(torch.isfinite(values).all()) for values in record.values()):
        raise InputError(f"{path}: holds an alpha that is not finite: nothing is derived from it")
    return num_epochs - 1
