"""What a retraining cost, counted afterwards: for runs of an earlier ssfnas, which did not record it."""

from __future__ import annotations

import contextlib

from registry import SAMPLERS
from ssfnas_cli.artifacts.model import MODEL, load_card
from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.data.batches import num_batches
from ssfnas_cli.engine.network import count_card
from ssfnas_cli.settings import RetrainSettings, build_plugin


def count_run(run: RunFolder) -> dict[str, int | None]:
    """`num_params`, `num_macs` and `steps` of a finished retraining; empty if its card or settings cannot be read.

    The steps follow from the settings and the class counts. Those of a correction are left out.
    """
    with contextlib.suppress(ValueError):
        card = load_card(run.path / MODEL)
        size = count_card(card)._asdict()
        if "adjustment" in run.config:
            return size
        settings = run.settings(RetrainSettings).resolve_plugins()
        sampler = build_plugin(SAMPLERS, settings.sampler, class_counts=card.train_counts)
        lengths = [sampler.length(epoch / settings.epochs) for epoch in range(settings.epochs)]
        if settings.pretrain.name != "none":
            lengths += [sum(card.train_counts)] * settings.pretrain_epochs
        return size | {"steps": sum(num_batches(length, settings.batch_size) for length in lengths)}
    return {}
