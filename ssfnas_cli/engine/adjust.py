"""Correct a finished retraining: write a run folder with the corrected network, which is read as any trained one is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ssfnas_cli import stop
from ssfnas_cli.artifacts.claim import finished_result, open_for_writing, set_run_aside
from ssfnas_cli.artifacts.files import read_bytes, sha256_file, write_bytes
from ssfnas_cli.artifacts.model import MODEL, CorrectionRecord, ModelCard, save_model
from ssfnas_cli.artifacts.run import ADJUSTMENT, TRAINING_VERSION, RunFolder
from ssfnas_cli.console import command_line, log
from ssfnas_cli.engine.adjust_methods import CORRECT, Outcome, Work
from ssfnas_cli.engine.corrections import Choice
from ssfnas_cli.engine.head_phase import HeadPhase
from ssfnas_cli.engine.loop import Loop
from ssfnas_cli.engine.network import count_card, load_finished
from ssfnas_cli.engine.priors import find_prior
from ssfnas_cli.engine.session import (
    CURRENT_TRAINING,
    extra_identity,
    identity_of,
    usual_stem,
    warn_of_differences,
)
from ssfnas_cli.errors import InputError, UsageError
from ssfnas_cli.machine import environment
from ssfnas_cli.nets.count import count_params
from ssfnas_cli.nets.heads import Correction
from ssfnas_cli.settings import AdjustSettings, RetrainSettings, identity_hash


def run_adjust(run: RunFolder, settings: AdjustSettings, output: Path | None, force: bool) -> dict[str, Any]:
    """Correct the network of a run, go on with that, or return the result if it is done.

    Args:
        run: a finished retraining. It is only read.
        settings: what to do.
        output: the new run folder; None means a folder in `runs/` that is named after the settings.
        force: move an old folder aside and start over.

    Returns:
        The output of `adjust`: that of `retrain`, with what was done.

    Raises:
        InputError: the run is unfinished or cannot be corrected this way, or the data set lacks what is needed.
        UsageError: the output is the run itself.
        OutputExistsError: the output holds another run or something else.
    """
    with stop.interruptible("before anything was written"):
        work = _begin(run, settings)
        plan = _plan(work, output)
        if plan.path.resolve() == run.path.resolve():
            raise UsageError(f"--output {plan.path}: is the run that is corrected: name another folder")
        identify = lambda existing: identity_of(existing, RetrainSettings)
        if not force and (result := finished_result(plan.path, "retrain", plan.identity, identify)) is not None:
            log.info("%s is done; nothing to do", plan.path)
            return result | {"source": str(run.path)}
        outcome = CORRECT[settings.method](work)
        _say(work, outcome)
        phase = None
        if outcome.weights:
            data = work.data("train")
            phase = HeadPhase(settings, work.training, data, work.device, work.model, outcome.weights)
    if force:
        set_run_aside(plan.path)
    config = _config(work, plan, outcome)
    with open_for_writing(plan.path, "retrain", config, plan.identity, identify) as target:
        if phase is not None:
            warn_of_differences(target.config["environment"], config["environment"])
        return _write(target, work, outcome, phase)


@dataclass(frozen=True)
class Plan:
    """Where the corrected run goes, and the values that make another run the same one."""

    path: Path
    identity: dict[str, Any]


def _begin(run: RunFolder, settings: AdjustSettings) -> Work:
    """Load the network that is to be corrected."""
    model, card = load_finished(run)
    _refuse_second(run, card, settings.method)
    training = run.settings(RetrainSettings).resolve_plugins().model_copy(update=settings.execution())
    if model.correction is None:
        model.correction = Correction(len(card.class_names))
    return Work(run, card, model, training, settings, find_prior(card, training, settings.from_prior))


def _refuse_second(run: RunFolder, card: ModelCard, method: str) -> None:
    """Only a temperature may follow another correction: it changes how sure the outputs are, not which class wins."""
    before = [record.method for record in card.corrections]
    if not before or (method == "temperature" and method not in before):
        return
    origin = run.config.get("adjustment", {}).get("source")
    instead = f", '{origin}'" if isinstance(origin, str) else ""
    raise InputError(
        f"{run.path}: is corrected already ({', '.join(before)}), and only a temperature may follow another "
        f"correction: correct the run that it comes from{instead}"
    )


def _plan(work: Work, output: Path | None) -> Plan:
    """The identity: that of the retraining, its network's tensors, and what is done to them."""
    settings, training = work.settings, work.training
    adjustment = settings.identity() | {"source": sha256_file(work.run.path / MODEL)}
    if "from_prior" in adjustment and work.prior is not None:  # a file is what it says, wherever it lies
        adjustment["from_prior"] = identity_hash({"prior": work.prior.tolist()})
    trained = {key: value for key, value in extra_identity(work.run).items() if not key.startswith(ADJUSTMENT)}
    extra = trained | {ADJUSTMENT + key: value for key, value in adjustment.items()}
    plain = [] if training.network.name == "none" else [training.network.name]
    names = [Path(work.card.data).name, *plain, training.loss.name, settings.method, f"s{training.seed}"]
    changed = usual_stem(training, work.card.image_size).changed_identity()
    name = f"adjust-{'-'.join(names)}-{identity_hash(changed | extra)}"
    return Plan(output or Path("runs") / name, training.identity() | extra)


def _config(work: Work, plan: Plan, outcome: Outcome) -> dict[str, Any]:
    """The content of config.json: how the network was trained, and under `adjustment` what was done to it."""
    source = work.run.config
    computed = work.device.facts() if "device" in vars(work) else {}
    adjustment = {
        "method": work.settings.method,
        "source": str(work.run.path.resolve()),
        "settings": work.settings.model_dump(mode="json"),
        "choice": _describe(work, outcome.choice),
    }
    return {
        **{key: source[key] for key in ("genotype", "resolved", "changed") if key in source},
        "settings": work.training.model_dump(mode="json"),
        "data": source["data"],
        "environment": environment() | computed,
        TRAINING_VERSION: CURRENT_TRAINING,
        "command": command_line(),
        "adjustment": adjustment,
    }


def _describe(work: Work, choice: Choice | None) -> dict[str, Any] | None:
    """A choice as JSON, with the images that it was made on."""
    if choice is None:
        return None
    return {**asdict(choice), "split": work.held_out.name, "num_images": len(work.held_out.rows)}


def _write(target: RunFolder, work: Work, outcome: Outcome, phase: HeadPhase | None) -> dict[str, Any]:
    """Train what is to be trained, and write the network and the result."""
    last: dict[str, Any] = {}
    if phase is not None:
        loop = Loop(target, work.training)
        loop.run_phase(0, phase)
        last = loop.cursor.metrics[-1]
    if (genotype := work.run.path / "genotype.json").exists():
        write_bytes(target.path / genotype.name, read_bytes(genotype))
    target.check_lock()
    if not all(tensor.isfinite().all() for tensor in work.model.state_dict().values()):
        raise InputError(f"{target.path}: the corrected network has weights that are not finite: take another value")
    card = _card(work, outcome)
    save_model(target.path / MODEL, work.model.state_dict(), card)
    result = _result(target, work, outcome)
    epochs = phase.epochs if phase is not None else 0
    target.write_done(result, phase="adjust", epoch=epochs, epochs=epochs, last=last)
    log.info("done: %s", target.path)
    return result


def _card(work: Work, outcome: Outcome) -> ModelCard:
    """The card of the corrected network."""
    prior: list[float] | Literal["unknown"] = "unknown" if isinstance(outcome.prior, str) else outcome.prior.tolist()
    where = work.held_out.name if outcome.choice is not None else None
    record = CorrectionRecord(method=work.settings.method, value=outcome.value, chosen_on=where)
    return work.card.model_copy(update={"prior": prior, "corrections": [*work.card.corrections, record]})


def _result(target: RunFolder, work: Work, outcome: Outcome) -> dict[str, Any]:
    """What `adjust` prints, now and whenever it is repeated."""
    training = work.training
    weights = sum(count_params(part) for name, part in work.model.named_children() if name != "aux")
    return {
        "kind": "retrain-run",
        "path": str(target.path),
        "state": "done",
        **({} if training.network.name == "none" else {"network": training.network.name}),
        "loss": training.loss.name,
        "pretrain": training.pretrain.name,
        "num_params": weights,
        "num_macs": count_card(work.card).num_macs,
        "epochs": training.epochs,
        "data": target.config["data"]["path"],
        "data_sha256": target.config["data"]["sha256"],
        "seed": training.seed,
        "adjusted": work.settings.method,
        "source": str(work.run.path),
        **({} if outcome.value is None else {_setting(work): outcome.value}),
        "choice": _describe(work, outcome.choice),
    }


def _setting(work: Work) -> str:
    """What the value of the method is called."""
    return "temperature" if work.settings.method == "temperature" else "tau"


def _say(work: Work, outcome: Outcome) -> None:
    """How a value was chosen."""
    choice = outcome.choice
    if choice is None:
        return
    curve, images = dict(choice.curve), work.held_out
    present, known = len(np.unique(images.labels)), len(work.card.class_names)
    neutral = " and ".join(f"{curve[one]:.4g} at {one:g}" for one in (0.0, 1.0) if one in curve)
    log.info(
        "%s %.3g is chosen by %s on %s (%d images of %d of %d classes): %.4g; it is %s",
        choice.setting,
        choice.value,
        choice.criterion.replace("_", " "),
        images.name,
        len(images.rows),
        present,
        known,
        curve[choice.value],
        neutral,
    )
    if present < known:
        log.warning(
            "%s has images of %d of %d classes: what %s %.3g does to the others was not looked at",
            images.name,
            present,
            known,
            choice.setting,
            choice.value,
        )
    if choice.at_the_end:
        log.warning("%s %g is the last one that was tried: a better one may lie beyond", choice.setting, choice.value)
