"""Search: open the data set and the run folder, train the supernet and derive a genotype."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssfnas_cli import world
from ssfnas_cli.artifacts.dataset import DataSet
from ssfnas_cli.artifacts.files import write_bytes
from ssfnas_cli.artifacts.run import COST, RunFolder
from ssfnas_cli.console import log
from ssfnas_cli.data.embedded import open_embedded
from ssfnas_cli.engine.candidate_trainings import whole_phase
from ssfnas_cli.engine.closing import say_search_figure, say_search_health
from ssfnas_cli.engine.cost import cost_identity, find_cost, say_cost, say_final_cost
from ssfnas_cli.engine.derive_run import derive_run
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.federated import FederatedSearch
from ssfnas_cli.engine.loop import never
from ssfnas_cli.engine.search_phase import SearchPhase
from ssfnas_cli.engine.session import RunPlan, finish, open_run, plan_run, warn_of_a_large_batch
from ssfnas_cli.engine.start import begin_with, find_start, say_start
from ssfnas_cli.errors import InputError, UsageError
from ssfnas_cli.results.health import collapsed_since
from ssfnas_cli.settings import PluginSection, SearchSettings


def run_search(settings: SearchSettings, output: Path | None, force: bool) -> dict[str, Any]:
    """Run a search, resume it, or return its result if it is done.

    Args:
        settings: unresolved settings.
        output: the run folder; None means a folder in `runs/` that is named after the settings.
        force: move an old folder aside and start over.

    Returns:
        The output of `search`: `kind`, `path`, `state` and the figures of the run.
    """
    plan = plan_search(settings, output, force)
    if (result := plan.result(force)) is not None:
        log.info("%s is done; nothing to do", plan.path)
        say_search_figure(result, plan.data.counts("train"))
        if world.is_first():
            say_search_health(RunFolder.open(plan.path).metrics(), plan.path)
        return result
    device, phase = build_search(plan)
    if isinstance(phase, FederatedSearch):
        plan = dataclasses.replace(plan, config={**plan.config, **phase.facts()})
    with open_run(plan, device, force, phase.tracking) as (run, loop):
        if "init" in plan.config:
            say_start(phase, plan.config["init"])
        weight_half, alpha_half = phase.halves
        log.info(
            "split of 'train' (seed %d, per class): %d images for the weights, %d for the alphas",
            phase.seed,
            len(weight_half),
            len(alpha_half),
        )
        if isinstance(phase, SearchPhase):
            warn_of_a_large_batch(phase.settings, phase.sampler)
        if isinstance(phase, FederatedSearch):
            log.info("%s", phase.description())
        if phase.cost is not None:
            say_cost(phase.cost, phase.settings)
        if phase.strategy.trains_candidates:
            told = phase.strategy.num_candidates, phase.epochs
            log.info("each of the %d candidates is trained from scratch, for %d epochs; there is no supernet", *told)
        loop.run_phase(0, whole_phase(phase), collapse if settings.stop_when_collapsed else never)
        if world.is_first():
            _write_genotype(run)
        last = loop.cursor.metrics[-1]
        result = finish(run, loop, phase.settings, _choices(phase.settings) | _cost_facts(phase, last))
    say_search_figure(result, plan.data.counts("train"))
    if phase.cost is not None:
        say_final_cost(last, phase.cost, phase.settings)
    say_search_health(loop.cursor.metrics, plan.path)
    return result


def _choices(settings: SearchSettings) -> dict[str, str]:
    """What names a run and its result: an unusual strategy, the relaxation of one with alphas, the loss, a start."""
    strategy = {} if settings.strategy.name == "gradient" else {"strategy": settings.strategy.name}
    relax = {} if settings.strategy.name in settings.WITHOUT_ALPHAS else {"relax": settings.relax.name}
    return {
        **strategy,
        **relax,
        "loss": settings.loss.name,
        **({"adapt": settings.adapt} if settings.init_from else {}),
    }


def _cost_facts(phase: SearchPhase, last: Mapping[str, Any]) -> dict[str, Any]:
    """What the result says of the cost that was minded; of candidates those that none beats in fitness and cost."""
    if phase.cost is None:
        return {}
    facts = {
        "cost": phase.settings.cost,
        **{key: last[key] for key in ("expected_cost", "genotype_cost") if key in last},
    }
    judged = phase.strategy.judged()
    if "front" in judged:
        columns = {name: judged[name].tolist() for name in ("fitness", "cost", "front")}
        rows = zip(*columns.values(), strict=True)
        places = [(cost, k, fitness) for k, (fitness, cost, is_in) in enumerate(rows) if is_in]
        facts["front"] = [{"candidate": k, "fitness": fitness, "cost": cost} for cost, k, fitness in sorted(places)]
    return facts


def collapse(lines: Sequence[Mapping[str, Any]]) -> str | None:
    """Why a search should go no further, from the metrics of its epochs; None if it should."""
    since = collapsed_since(lines)
    if since is None:
        return None
    return (
        f"since epoch {since} the genotype's normal cell has had only skips and pools (stop_when_collapsed): derive "
        "the genotype of an epoch before it, or go on with the same command and --set stop_when_collapsed=false"
    )


def plan_search(settings: SearchSettings, output: Path | None, force: bool = False) -> RunPlan:
    """Resolve the settings, open the data set (the embedded one is created on first use) and choose the run folder."""
    settings = settings.resolve_plugins()
    _refuse_without_supernet(settings)
    data = DataSet.open(Path(settings.data)) if settings.data else open_embedded()
    start = find_start(settings, data)
    extra, config = ({}, {}) if start is None else (start.identity(), {"init": start.config()})
    extra |= cost_identity(settings)
    plan = plan_run("search", settings, data, extra, list(_choices(settings).values()), output, config, force)
    if settings.cost != "none" and not force:
        begun = lambda: RunFolder.open(plan.path).config.get(COST) if plan.is_in_folder() else None
        plan.config.update({COST: recorded} if (recorded := world.from_first(begun)) else {})
    if start is not None:
        start.refuse_as_output(plan.path)
    return plan


def _refuse_without_supernet(settings: SearchSettings) -> None:
    """Refuse what is said of a supernet where each candidate is trained by itself."""
    if not settings.trains_candidates:
        return
    if settings.init_from:
        raise UsageError(
            "--init-from: candidates that are trained by themselves (strategy.judge=train) begin from scratch: leave "
            "one of both out"
        )
    if settings.track_test:
        raise UsageError(
            "--set track_test=true: with strategy.judge=train every candidate is a network of its own, and none is "
            "kept: leave it out, and evaluate the genotype's network when it is retrained"
        )


def build_search(plan: RunPlan) -> tuple[Device, SearchPhase]:
    """Verify the data set and build everything that a planned search needs."""
    settings = plan.settings
    assert isinstance(settings, SearchSettings)
    plan.data.verify()
    device = Device.from_settings(settings)
    found = find_cost(settings, plan.data, device.torch, plan.config.get(COST))
    cost, facts = (None, {}) if found is None else found
    plan.config.update({COST: facts} if facts else {})
    phase = (FederatedSearch if settings.is_federated else SearchPhase)(settings, plan.data, device, cost=cost)
    if cost is not None and phase.strategy.num_candidates:
        phase.strategy.candidate()  # it says at once if hardly any network is cheap enough
    if (start := find_start(settings, plan.data)) is not None:
        plan.config["init"]["taken"] = begin_with(phase, start)
    _warn_of_idle_settings(settings)
    return device, phase


def _warn_of_idle_settings(settings: SearchSettings) -> None:
    """Name what was chosen for alphas beside a strategy that has none. Presets set their learning rate, too."""
    if settings.strategy.name not in settings.WITHOUT_ALPHAS:
        return
    usual = {name: SearchSettings.model_fields[name].default for name in settings.OF_ALPHAS if name != "alpha_lr"}
    given = {name: getattr(settings, name) for name in usual}
    chosen = [name for name, value in given.items() if _plain(value) != _plain(usual[name])]
    if chosen:
        told = settings.strategy.name, ", ".join(chosen)
        log.warning("the strategy '%s' has no alphas: the settings %s change nothing", *told)


def _plain(value: Any) -> Any:
    """The value of a setting; the name of a plugin, whose options have been completed."""
    return value.name if isinstance(value, PluginSection) else value


def _write_genotype(run: RunFolder) -> None:
    """Derive a genotype by the strategy's default rule. A search is done even if that rule yields no network."""
    run.check_lock()
    try:
        write_bytes(run.path / "genotype.json", derive_run(run).to_json())
    except InputError as error:
        log.warning("no genotype is derived: %s", error)
