"""A search on tiny digits, and what the tests look at in it."""

import contextlib

import pytest
import torch

from ssfnas_cli.data.build import build_dataset
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.loop import seed_for_step
from ssfnas_cli.engine.search_phase import SearchPhase
from ssfnas_cli.settings import MakeDatasetSettings, SearchSettings, load_settings

TINY = {
    "channels": 2,
    "layers": 3,
    "batch_size": 16,
    "epochs": 4,
    "ops": ("none", "max_pool_3x3", "skip_connect", "avg_pool_3x3"),  # quick; the skips of reductions have weights
    "alpha_lr": 0.05,
}
WITH_CONVOLUTION = {**TINY, "ops": ("none", "max_pool_3x3", "skip_connect", "dil_conv_3x3")}


@pytest.fixture
def search(tiny_digits, request):
    """`search(loss="barlow", order=2, ...)`: a phase on tiny digits; dotted settings in `sets`.

    A module may have a `TINY` of its own.
    """
    tiny = getattr(request.module, "TINY", TINY)

    def build(*sets, data=tiny_digits, halves=None, **settings):
        resolved = load_settings(SearchSettings, sets=sets, flags={**tiny, **settings}).resolve_plugins()
        return SearchPhase(resolved, data, Device("cpu", 0), halves)

    return build


@pytest.fixture(scope="module")
def few_digits(tmp_path_factory):
    """Four images of each class, for whole runs."""
    made = MakeDatasetSettings(dist="balance", max_per_class=4)
    return build_dataset(made, tmp_path_factory.mktemp("few") / "digits", lambda line: None)


def run(phase, steps, epoch=0, start=0):
    """Some steps as the loop takes them; their values."""
    values = []
    for step, batch in enumerate(phase.batches(epoch, start), start=start):
        if step == start + steps:
            break
        seed_for_step(phase.seed, epoch, step)
        values.append(phase.step(epoch, step, batch))
    return values


@contextlib.contextmanager
def dying_at(phase_class, epoch, step):
    """What is run within this context dies of Ctrl-C at the beginning of that step."""
    original = phase_class.step

    def die(self, at_epoch, at_step, batch):
        if (at_epoch, at_step) == (epoch, step):
            raise KeyboardInterrupt
        return original(self, at_epoch, at_step, batch)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(phase_class, "step", die)
        yield


def alphas_of(phase):
    return torch.cat([phase.strategy.alphas[kind].detach().flatten() for kind in ("normal", "reduce")])


def weight_loss(phase, batch):
    return phase.weight_objective(batch, phase.strategy.mixing(0.0), 0.0)[0]


def alpha_loss(phase, batch):
    return phase.alpha_objective(batch, phase.strategy.mixing(0.0), 0.0)


def state(phase, *prefixes):
    return {name: t.clone() for name, t in phase.model.state_dict().items() if name.startswith(prefixes or "")}


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


class Relabelled:
    """A data set whose training labels are others."""

    def __init__(self, data, labels):
        self._data, self._labels = data, labels

    def __getattr__(self, name):
        return getattr(self._data, name)

    def split(self, name):
        split = self._data.split(name)
        if name == "train":
            split.labels = self._labels
        return split
