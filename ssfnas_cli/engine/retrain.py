"""Retraining: build a network, pretrain it on request, train it and save it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from registry.foreign import foreign_plugins
from ssfnas_cli import world
from ssfnas_cli.artifacts.dataset import DataSet
from ssfnas_cli.artifacts.files import write_bytes
from ssfnas_cli.artifacts.genotype import Genotype
from ssfnas_cli.artifacts.model import MODEL, DerivedNetwork, ModelCard, save_model
from ssfnas_cli.console import log
from ssfnas_cli.data.embedded import find_data
from ssfnas_cli.engine.closing import say_training_figure
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.inherit import Inherited, find_supernet, inherit
from ssfnas_cli.engine.match_size import match_channels
from ssfnas_cli.engine.mix import build_mix
from ssfnas_cli.engine.network import build_model, build_objective, count_card, make_card
from ssfnas_cli.engine.session import RunPlan, finish, open_run, plan_run, warn_of_a_large_batch
from ssfnas_cli.engine.train_phase import PretrainingModel, Schedule, TrainPhase
from ssfnas_cli.errors import UsageError
from ssfnas_cli.nets.count import count_params
from ssfnas_cli.nets.derived import DerivedEncoder
from ssfnas_cli.nets.heads import Classifier
from ssfnas_cli.settings import RetrainSettings


def run_retrain(
    genotype: Genotype | None, settings: RetrainSettings, output: Path | None, force: bool, other_data: bool = False
) -> dict[str, Any]:
    """Run a retraining, resume it, or return its result if it is done.

    Args:
        genotype: the architecture, whose provenance names the data set unless the settings do. It is None if the
            settings name a network.
        settings: unresolved settings. They never take the loss from the search.
        output: the run folder; None means a folder in `runs/` that is named after the settings.
        force: move an old folder aside and start over.
        other_data: allow the settings to name another data set than the genotype's.

    Returns:
        The output of `retrain`: `kind`, `path`, `state` and the figures of the run.
    """
    plan, card = plan_retrain(genotype, settings, output, other_data, force)
    if (result := plan.result(force)) is not None:
        log.info("%s is done; nothing to do", plan.path)
        say_training_figure([result], card.train_counts, settings.mixes)
        return result
    device, phases, model = build_retrain(plan, card)
    with open_run(plan, device, force, phases[-1].tracking) as (run, loop):
        weights, with_aux = _count_weights(model, with_aux=False), _count_weights(model, with_aux=True)
        aux = f", {with_aux:,} with the auxiliary head" if with_aux != weights else ""
        log.info("network: %s weights%s", f"{weights:,}", aux)
        if "init" in plan.config:
            init = plan.config["init"]
            log.info("taken from %s: %s; the others are new", init["source"], Inherited(**init["taken"]))
        if card.holdout:
            total = sum(plan.data.counts("train"))
            aside = total - sum(card.train_counts)
            log.info("holdout: %d of %d training images are set aside (seed %d, per class)", aside, total, card.seed)
        warn_of_a_large_batch(plan.settings, phases[-1].sampler)
        if genotype is not None and world.is_first():
            write_bytes(run.path / "genotype.json", genotype.to_json())
        for index, phase in enumerate(phases):
            loop.run_phase(index, phase)
        if world.is_first():
            run.check_lock()
            card = card.model_copy(update={"plugins": foreign_plugins() or None})
            save_model(run.path / MODEL, phases[-1].trained(), card)
        network = {} if genotype is not None else {"network": plan.settings.network.name}  # type: ignore[attr-defined]
        facts = {"loss": card.loss.name, "pretrain": phases[0].settings.pretrain.name}
        facts |= {"num_params": weights, "num_macs": count_card(card).num_macs}  # type: ignore[dict-item]
        result = finish(run, loop, plan.settings, network | facts)
    say_training_figure(loop.cursor.metrics, card.train_counts, settings.mixes)
    return result


def plan_retrain(
    genotype: Genotype | None,
    settings: RetrainSettings,
    output: Path | None,
    other_data: bool = False,
    force: bool = False,
) -> tuple[RunPlan, ModelCard]:
    """Resolve the settings, find the data set and choose the run folder. Also return the card of the network."""
    settings = settings.resolve_plugins()
    names = [settings.loss.name, settings.pretrain.name]
    if genotype is None:
        if settings.init_from:
            raise UsageError(f"--init-from: a search has no weights for '{settings.network.name}': leave it out")
        data = find_data(settings.data, None, None, "network", other_data)
        plan = plan_run("retrain", settings, data, {}, [settings.network.name, *names], output, force=force)
    else:
        origin = genotype.provenance
        data = find_data(settings.data, origin.data, origin.data_sha256, "genotype", other_data)
        config = {"genotype": genotype.model_dump(by_alias=True, mode="json", exclude_none=True)}
        extra = {"genotype": genotype.shape()}
        if (start := find_supernet(settings.init_from)) is not None:
            extra, config, names = extra | start.identity(), config | {"init": start.config()}, [*names, "init"]
        plan = plan_run("retrain", settings, data, extra, names, output, config, force)
        if start is not None:
            start.refuse_as_output(plan.path)
    assert isinstance(plan.settings, RetrainSettings)
    card = make_card(genotype, plan.settings, data)
    if plan.settings.match_params != "none":
        card = match_channels(card, plan.settings.match_params)
        assert isinstance(card.network, DerivedNetwork)
        chosen = plan.settings.model_copy(update={"channels": card.network.channels})  # for those who read config.json
        plan = replace(plan, settings=chosen)
    return plan, card


def build_retrain(plan: RunPlan, card: ModelCard) -> tuple[Device, list[TrainPhase], Classifier]:
    """Verify the data set and build everything that a planned retraining needs.

    Raises:
        UsageError: the loss is not supervised, or that of the pretraining is.
    """
    assert isinstance(plan.settings, RetrainSettings)
    plan.data.verify()
    device = Device.from_settings(plan.settings)
    phases, model = build_phases(card, plan.settings, plan.data, device)
    if (start := find_supernet(plan.settings.init_from)) is not None:
        assert isinstance(model.encoder, DerivedEncoder)
        plan.config["init"]["taken"] = inherit(model.encoder, start)._asdict()
    return device, phases, model


def build_phases(
    card: ModelCard, settings: RetrainSettings, data: DataSet, device: Device
) -> tuple[list[TrainPhase], Classifier]:
    """Build the phases, pretraining (if configured) and training, which share an encoder initialised by the seed."""
    loss = build_objective(settings.loss, card)
    if not loss.supervised:
        raise UsageError(f"--loss {settings.loss.name}: retraining ends supervised; use it as --pretrain")
    mix = build_mix(settings, loss, "--loss", card.train_counts)
    torch.manual_seed(settings.seed)
    model = build_model(card, settings.drop_path)
    phases = []
    if settings.pretrain.name != "none":
        pretext = build_objective(settings.pretrain, card)
        if pretext.supervised:
            raise UsageError(
                f"--pretrain {settings.pretrain.name}: is supervised; pretrain with a self-supervised loss"
            )
        head = pretext.build_head(model.encoder.num_features)
        optimizer = settings.pretrain_optimizer
        schedule = Schedule("pretrain", settings.pretrain_epochs, settings.pretrain_lr, optimizer=optimizer)
        phases.append(TrainPhase(schedule, settings, data, device, PretrainingModel(model.encoder, head), pretext))
    schedule = Schedule.of_training(settings, data.image_size)
    if schedule.mixing is not None and (reason := loss.refuses_mixing()):
        shown = "mixup" if settings.mixup != "none" else "cutmix"
        raise UsageError(f"--set {shown}={getattr(settings, shown)}: loss '{settings.loss.name}' {reason}")
    phases.append(TrainPhase(schedule, settings, data, device, model, loss, mix))
    return phases, model


def _count_weights(model: Classifier, with_aux: bool) -> int:
    return sum(count_params(part) for name, part in model.named_children() if with_aux or name != "aux")
