"""The whole of a retraining: build the network a genotype stands for, pretrain it where asked, train it, save it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from registry import LOSSES
from registry.losses import Objective
from ssfnas_cli.artifacts.dataset import DataSet
from ssfnas_cli.artifacts.files import write_bytes
from ssfnas_cli.artifacts.genotype import Genotype
from ssfnas_cli.artifacts.model import ModelCard, save_model
from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.console import log
from ssfnas_cli.data.embedded import open_embedded
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.loop import Loop
from ssfnas_cli.engine.search_phase import build_plugin
from ssfnas_cli.engine.session import Body, carry_out, default_path
from ssfnas_cli.engine.train_phase import Pretrained, Schedule, TrainPhase
from ssfnas_cli.errors import InputError, UsageError
from ssfnas_cli.nets.count import count_params
from ssfnas_cli.nets.heads import Classifier
from ssfnas_cli.settings import PluginSection, RetrainSettings


def run_retrain(
    genotype: Genotype, settings: RetrainSettings, output: Path | None, force: bool, other_data: bool = False
) -> dict[str, Any]:
    """Retrain, or go on, or find it done.

    Args:
        genotype: its provenance names the data set unless the settings do.
        settings: not yet resolved. The loss is never inherited from the search.
        output: the run folder; None names one after the settings, under `runs/`.
        force: move an old folder aside and start over.
        other_data: the settings may name a data set that is not the genotype's.

    Returns:
        What `retrain` prints: `kind`, `path`, `state` and the run's figures.
    """
    settings = settings.resolve_plugins()
    data = find_data(settings.data, genotype.provenance.data, genotype.provenance.data_sha256, "genotype", other_data)
    shape = genotype.model_dump(by_alias=True, mode="json", include={"normal", "reduce", "drop_path", "op_options"})
    identity = settings.identity() | {"data_sha256": data.sha256, "genotype": shape}
    names = [settings.loss.name, settings.pretrain.name]
    path = output or default_path("retrain", data, names, settings.seed, identity)

    def prepare(device: Device) -> Body:
        phases, model = build_phases(genotype, settings, data, device)

        def body(run: RunFolder, loop: Loop) -> dict[str, Any]:
            weights, with_aux = _params(model, with_aux=False), _params(model, with_aux=True)
            log.info("derived network: %s weights, %s with the auxiliary head", f"{weights:,}", f"{with_aux:,}")
            write_bytes(run.path / "genotype.json", genotype.to_json())
            for index, phase in enumerate(phases):
                loop.run_phase(index, phase)
            run.check_lock()
            save_model(run.path / "model.safetensors", model.state_dict(), _card(model, genotype, settings, data))
            return {"loss": settings.loss.name, "pretrain": settings.pretrain.name, "num_params": weights}

        return body

    document = genotype.model_dump(by_alias=True, mode="json", exclude_none=True)
    return carry_out("retrain", settings, data, identity, path, force, prepare, genotype=document)


def find_data(named: str, path: str | None, sha256: str | None, origin: str, other_data: bool) -> DataSet:
    """The data set that `--data` names, or that the genotype or run came from.

    Its hash must be the one recorded, unless `other_data` allows another.

    Raises:
        InputError: none is known, it is gone, or it is another one.
    """
    if not named and path is None:
        log.info("the %s names no data set", origin)
        return open_embedded()
    where = Path(named or path)  # type: ignore[arg-type]
    if not named and not where.exists():
        raise InputError(f"{where}: the {origin}'s data set is not there any more: name it with --data")
    data = DataSet.open(where)
    if sha256 is not None and data.sha256 != sha256 and not (named and other_data):
        mend = "to use it all the same, say --other-data" if named else "name the right one with --data"
        raise InputError(
            f"{where}: is not the {origin}'s data set (sha256 {data.sha256[:12]}, not {sha256[:12]}): {mend}"
        )
    return data


def build_phases(
    genotype: Genotype, settings: RetrainSettings, data: DataSet, device: Device
) -> tuple[list[TrainPhase], Classifier]:
    """Pretraining, where asked, then training, on one encoder; weights are drawn from the seed."""
    counts = data.counts("train")

    def objective(section: PluginSection) -> Objective:
        return build_plugin(LOSSES, section, num_classes=data.num_classes, class_counts=counts)

    loss = objective(settings.loss)
    if loss.num_views != 1:
        raise UsageError(f"--loss {settings.loss.name}: retraining ends supervised; use it as --pretrain")
    torch.manual_seed(settings.seed)
    aux = settings.aux_weight > 0
    model = Classifier(genotype, data.channels, settings.channels, settings.layers, data.num_classes, aux)
    model.head = loss.build_head(model.encoder.num_features)
    phases = []
    if settings.pretrain.name != "none":
        pretext = objective(settings.pretrain)
        if pretext.num_views == 1:
            raise UsageError(
                f"--pretrain {settings.pretrain.name}: is supervised; pretrain with a self-supervised loss"
            )
        head = pretext.build_head(model.encoder.num_features)
        schedule = Schedule("pretrain", settings.pretrain_epochs, settings.pretrain_lr)
        phases.append(TrainPhase(schedule, settings, data, device, Pretrained(model.encoder, head), pretext))
    schedule = Schedule("train", settings.epochs, settings.lr, settings.drop_path, settings.cutout, settings.aux_weight)
    phases.append(TrainPhase(schedule, settings, data, device, model, loss))
    return phases, model


def _params(model: Classifier, with_aux: bool) -> int:
    return sum(count_params(part) for name, part in model.named_children() if with_aux or name != "aux")


def _card(model: Classifier, genotype: Genotype, settings: RetrainSettings, data: DataSet) -> ModelCard:
    return ModelCard(
        genotype=genotype,
        in_channels=data.channels,
        channels=settings.channels,
        layers=settings.layers,
        aux=model.aux is not None,
        class_names=list(data.class_names),
        train_counts=data.counts("train"),
        image_size=data.image_size,
        mean=list(data.mean),
        std=list(data.std),
        data=str(data.path.resolve()),
        data_sha256=data.sha256,
        seed=settings.seed,
    )


def load_classifier(tensors: dict[str, Any], card: ModelCard, where: Path) -> Classifier:
    """The network of a model file.

    Raises:
        InputError: its tensors are not those of the network its card describes.
    """
    model = Classifier(card.genotype, card.in_channels, card.channels, card.layers, len(card.class_names), card.aux)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{where}: its tensors do not fit its card: {str(error).splitlines()[-1].strip()}") from None
    return model
