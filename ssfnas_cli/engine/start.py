"""The supernet of a finished search as the start of another search: `search --init-from RUN --adapt MODE`.

The idea is that of IMB-NAS (Duggal et al., 2022): a supernet that was trained on balanced images is adapted to a long
tail. `all` trains all of it further. `head` keeps the backbone and trains a new head, which may be of another loss and
of other classes. `none` trains nothing, so that the architecture alone is searched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssfnas_cli.artifacts.dataset import DataSet
from ssfnas_cli.artifacts.tensors import sha256_of
from ssfnas_cli.console import log
from ssfnas_cli.engine.finished_search import FinishedSearch, Start
from ssfnas_cli.engine.search_phase import SearchPhase
from ssfnas_cli.engine.strategy import build_strategy
from ssfnas_cli.errors import InputError, UsageError, naming
from ssfnas_cli.nets.count import count_params
from ssfnas_cli.nets.stems import choose_stem
from ssfnas_cli.settings import SearchSettings

BACKBONE = "encoder"


def find_start(settings: SearchSettings, data: DataSet) -> Start | None:
    """The supernet that a search is to begin with; None if the settings name none.

    Args:
        settings: of the new search, resolved.
        data: its data set.

    Raises:
        InputError: the setting `init_from` names no finished search.
        UsageError: that search has a supernet of another shape, or the settings leave nothing to train.
    """
    if not settings.init_from:
        return None
    if len(build_strategy(settings).stages()) > 1:
        raise UsageError(
            f"--init-from: the strategy '{settings.strategy.name}' begins each of its stages with new weights: leave "
            "one of both out"
        )
    with naming("--init-from"):
        source = FinishedSearch.open(Path(settings.init_from))
    _refuse_another_shape(source, settings, data)
    if settings.adapt == "none" and settings.is_federated:
        raise UsageError("--adapt none: leaves clients no weights to train: take --adapt head, or set sync=step")
    if settings.adapt == "none" and settings.order == 2 and settings.strategy.name not in settings.WITHOUT_ALPHAS:
        raise UsageError("--order 2: looks one step of the weights ahead, and with --adapt none they take none: use 1")
    taken = source.supernet
    if settings.adapt == "head":
        taken = {name: tensor for name, tensor in taken.items() if name.startswith(f"{BACKBONE}.")}
    return Start(source, sha256_of(taken))


def _refuse_another_shape(source: FinishedSearch, settings: SearchSettings, data: DataSet) -> None:
    """Refuse a supernet that is not the one of these settings; the message names the first setting that differs."""
    where, theirs = f"--init-from {settings.init_from}", source.settings
    stem, _ = choose_stem(settings.stem, data.image_size)
    names = ("channels", "layers", "ops", "op_options", "partial_channels")
    pairs: dict[str, tuple[Any, Any]] = {name: (getattr(theirs, name), getattr(settings, name)) for name in names}
    pairs |= {"layers": (source.layers, settings.layers), "stem": (source.run.stem, stem)}
    for name, (there, here) in pairs.items():
        if there != here:
            mend = {
                "ops": f"--set ops={','.join(theirs.ops)}",
                "op_options": f"--set op_options as {source.run.path}",
                "partial_channels": f"--set partial_channels={theirs.partial_channels}",
            }
            raise UsageError(
                f"{where}: its supernet has {name} {_shown(there)}, and this search {_shown(here)}: "
                f"give {mend.get(name, f'--{name} {there}')}"
            )
    in_channels = _in_channels(source.supernet)
    if in_channels != data.channels:
        raise UsageError(
            f"{where}: its supernet takes images of {in_channels} channels, and those of {data.path} have "
            f"{data.channels}: start from a search on such images"
        )


def _shown(value: Any) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _in_channels(supernet: Mapping[str, Tensor]) -> int:
    """The channels of the images, from the stem's first convolution [out, in, 3, 3]."""
    stem = {name: tensor for name, tensor in supernet.items() if name.startswith(f"{BACKBONE}.stem.")}
    return stem[min(name for name, tensor in stem.items() if tensor.ndim == 4)].shape[1]


def begin_with(phase: SearchPhase, start: Start) -> list[str]:
    """Put the weights of the start into a phase that was just built.

    A head is taken as a whole or not at all: another number of classes or another kind of head makes a new one.

    Returns:
        The parts of the model that were taken.

    Raises:
        UsageError: with `--adapt none`, a head is new, or it was trained for other classes.
    """
    adapt, ours, given = phase.settings.adapt, phase.model.state_dict(), start.source.supernet
    parts = dict.fromkeys(name.partition(".")[0] for name in ours)
    taken = [part for part in parts if _shapes(part, ours) == _shapes(part, given)]
    if adapt == "head":
        taken = [BACKBONE]
    assert BACKBONE in taken, "the shapes have been compared"
    new = [part for part in parts if part not in taken]
    if adapt == "none":
        _refuse_untrained_head(phase, start, new)
    with torch.no_grad():
        for part in taken:
            for name in _shapes(part, ours):
                ours[name].copy_(given[name])
    return taken


def _shapes(part: str, tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """The shapes of the tensors of one part of a model, by name."""
    return {name: tensor.shape for name, tensor in tensors.items() if name.startswith(f"{part}.")}


def _refuse_untrained_head(phase: SearchPhase, start: Start, new: Sequence[str]) -> None:
    where, mend = start.source.run.path, "take --adapt head, which trains a new one"
    if new:
        raise UsageError(f"--adapt none: {where} has no '{new[0]}' for the classes and the loss of this search: {mend}")
    recorded = start.source.run.config["data"]
    with contextlib.suppress(InputError):  # its data set need not be there any more
        theirs = DataSet.open(recorded["path"], splits=()).class_names
        if list(theirs) != list(phase.data.class_names):
            raise UsageError(f"--adapt none: the head of {where} was trained for other classes: {mend}")


def say_start(phase: SearchPhase, init: Mapping[str, Any]) -> None:
    """Say what a search began with, what is new, and what learns; `init` is what config.json records."""
    taken = init["taken"]
    new = [part for part, _ in phase.model.named_children() if part not in taken]
    count = lambda parts: sum(count_params(getattr(phase.model, part)) for part in parts)
    made = f"; new: {' and '.join(new)} ({count(new):,})" if new else ""
    learns = {
        "all": "all of them learn, and the architecture",
        "head": "the backbone stays as it is; what learns is the new head and the architecture",
        "none": "they stay as they are; what learns is the architecture alone",
    }[phase.settings.adapt]
    names = " and ".join(taken)
    log.info("the weights of %s (%s) are those of %s%s: %s", names, f"{count(taken):,}", init["source"], made, learns)
