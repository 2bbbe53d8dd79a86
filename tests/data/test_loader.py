"""Loader processes that fail, hang or are asked to stop: an exception at once, never a wait without end."""

import multiprocessing
import os
import signal
import time

import pytest
import torch

from ssfnas_cli import stop
from ssfnas_cli.data import loader
from ssfnas_cli.data.loader import load_in_processes
from ssfnas_cli.errors import InputError, ResourceError, Stopped


class Items:
    """Item k is a tensor full of k, after something has happened to item 3."""

    def __init__(self, happens=lambda: None):
        self.happens = happens

    def __len__(self):
        return 8

    def __getitem__(self, number):
        if number == 3:
            self.happens()
        return torch.full((2, 3), number).t(), number


def refuse():
    raise InputError("shard.safetensors: is damaged")


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    time.sleep(1000)


def lack_descriptors():
    raise OSError(24, "Too many open files")


def wait_for_their_end():
    """Processes that were killed take a moment to be gone."""
    deadline = time.monotonic() + 60
    while multiprocessing.active_children():
        assert time.monotonic() < deadline, "a process stays"
        time.sleep(0.01)


@pytest.mark.parametrize("workers", [1, 3])
def test_items_come_in_order_with_their_strides_and_no_process_stays(workers):
    items = list(load_in_processes(Items(), range(2, 8), workers))
    assert [number for _, number in items] == list(range(2, 8))
    assert all(bool((values == number).all()) and values.stride() == (1, 3) for values, number in items)
    wait_for_their_end()


@pytest.mark.parametrize(
    ("happens", "error", "words"),
    [
        (refuse, InputError, "shard.safetensors: is damaged"),
        (kill, ResourceError, "--workers 2: a loader process has died"),
        (lack_descriptors, ResourceError, "--workers 2: too many open files"),
    ],
)
def test_what_happens_in_a_process_is_an_exception_here(happens, error, words):
    loaded = load_in_processes(Items(happens), range(8), 2)
    with pytest.raises(error, match=words) as raised:
        list(loaded)
    assert raised.type is error
    wait_for_their_end()


def test_a_stop_is_noticed_while_a_process_hangs(monkeypatch):
    monkeypatch.setattr(loader, "PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(stop, "_received", [signal.SIGTERM])
    with pytest.raises(Stopped, match="stopped by SIGTERM while loader processes bring no batch"):
        list(load_in_processes(Items(hang), range(8), 2))
    wait_for_their_end()


def test_the_time_limit_holds_while_a_process_hangs(monkeypatch):
    monkeypatch.setattr(loader, "PATIENCE_SECONDS", 1.0)
    loaded = load_in_processes(Items(hang), range(8), 2, max_time=0.0)
    assert [number for _, number in (next(loaded), next(loaded), next(loaded))] == [0, 1, 2]
    with pytest.raises(Stopped, match="stopped by --max-time 0 s while loader processes bring no batch") as raised:
        next(loaded)
    assert raised.value.exit_code == 75
    wait_for_their_end()


def test_a_stop_waits_for_a_batch_that_comes(monkeypatch):
    """The training takes its step and saves."""
    monkeypatch.setattr(stop, "_received", [signal.SIGTERM])
    assert len(list(load_in_processes(Items(lambda: time.sleep(1)), range(8), 2))) == 8


def test_a_loader_that_is_left_early_ends_its_processes():
    loaded = load_in_processes(Items(hang), range(8), 2)
    next(loaded)
    loaded.close()
    wait_for_their_end()
