"""One rank is one process: nothing is sent, no group is made, and no parameter has a hook."""

import pytest
import torch
import torch.distributed as dist

from registry import collective
from ssfnas_cli import world
from ssfnas_cli.engine.device import Device
from ssfnas_cli.engine.loop import seed_for_step
from ssfnas_cli.engine.ranks import check_equal
from ssfnas_cli.engine.search_phase import SearchPhase
from ssfnas_cli.settings import SearchSettings, load_settings

MESSAGES = ("all_reduce", "all_gather", "broadcast", "barrier")


@pytest.fixture
def one_rank(monkeypatch):
    """A process that torchrun has started with `--nproc-per-node 1`, in which a message would be an error."""

    def refuse(*args, **kwargs):
        raise AssertionError("a message to nobody")

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    world.place.cache_clear()
    for name in MESSAGES:
        monkeypatch.setattr(collective, name, refuse)
        monkeypatch.setattr(dist, name, refuse)
    monkeypatch.setattr(dist, "init_process_group", refuse)
    yield
    world.place.cache_clear()


@pytest.mark.parametrize("flags", [{"order": 2, "relax": "sigmoid"}, {"loss": "barlow"}], ids=["order 2", "barlow"])
def test_a_step_of_one_rank_sends_nothing(one_rank, tiny_digits, flags):
    assert world.enter(["search"]) and world.lifeline() is None
    flags = {"channels": 2, "layers": 3, "batch_size": 8, "epochs": 1, "ops": ("none", "skip_connect"), **flags}
    settings = load_settings(SearchSettings, sets=["kernels=torch"], flags=flags).resolve_plugins()
    phase = SearchPhase(settings, tiny_digits, Device.from_settings(settings))
    before = collective.traffic()
    seed_for_step(0, 0, 0)
    values = phase.step(0, 0, next(iter(phase.batches(0, 0))))
    check_equal(phase.tensors())
    phase.end_epoch(0)
    world.leave()
    assert values["weight_loss"] > 0 and collective.traffic() == before
    assert not any(weight._post_accumulate_grad_hooks for weight in phase.model.parameters())


def test_what_the_ranks_would_sum_is_the_tensor_itself(one_rank):
    x = torch.randn(3, requires_grad=True)
    assert collective.total(x) is x and collective.global_loss(x, collective.my_share(3)) is x
    mixing = {"normal": x}
    assert collective.replicated(mixing) is mixing and collective.gather_rows(x, 3) is x
