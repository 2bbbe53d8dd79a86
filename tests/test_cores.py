"""Which cores a rank keeps to."""

import json
import os
import socket
import subprocess
import sys
import threading

import pytest
import torch

from ssfnas_cli import cores


class Store(dict):
    """What is used of a `torch.distributed.Store`."""

    def set(self, key, value):
        self[key] = value.encode()

    def get(self, key):
        return self[key]


@pytest.mark.parametrize(
    ("num_cores", "num_ranks", "expected"),
    [
        (2, 2, [[0], [1]]),
        (8, 2, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (4, 3, [[0], [1], [2]]),
        (2, 3, [[0, 1], [0, 1], [0, 1]]),
        (0, 2, [[], []]),
    ],
)
def test_each_rank_gets_as_many_cores_as_another(num_cores, num_ranks, expected):
    assert [list(cores.part(range(num_cores), number, num_ranks)) for number in range(num_ranks)] == expected


def kept(monkeypatch, places, rank):
    """The cores that this process keeps to as one of the ranks at these places (machine, cores), and its threads.

    All is done by a thread, since the cores are a thread's and not to be those of the tests after this one.
    """
    store, found = Store(), []
    for other, (machine, usable) in enumerate(places):
        monkeypatch.setattr(cores, "_machine", lambda machine=machine: machine)
        monkeypatch.setattr(cores, "_usable", lambda usable=usable: usable)
        cores.introduce(store, other)
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, numbers: found.extend(numbers))
    monkeypatch.setattr(torch, "set_num_threads", lambda number: found.append(f"threads={number}"))
    thread = threading.Thread(target=cores.divide, args=(store, rank, len(places)))
    thread.start()
    thread.join()
    return found


def test_ranks_of_one_machine_divide_its_cores_and_those_of_another_count_apart(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    places = [("a", [0, 1, 2, 3]), ("b", [0, 1]), ("a", [0, 1, 2, 3]), ("b", [0, 1])]
    found = [kept(monkeypatch, places, rank) for rank in range(4)]
    assert found == [[0, 1, "threads=2"], [0, "threads=1"], [2, 3, "threads=2"], [1, "threads=1"]]


def test_ranks_that_were_bound_already_stay_so(monkeypatch):
    assert kept(monkeypatch, [("a", [0]), ("a", [1])], 1) == []


def test_a_rank_that_has_its_machine_alone_keeps_all_cores(monkeypatch):
    assert kept(monkeypatch, [("a", [0, 1]), ("b", [0, 1])], 0) == []


def test_threads_that_the_environment_names_stay(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert kept(monkeypatch, [("a", [0, 1, 2, 3])] * 2, 0) == [0, 1]


RANK = """
import json, os, torch
from ssfnas_cli import world
from ssfnas_cli.machine import usable_cores
world.enter(["search"])
print(json.dumps([sorted(os.sched_getaffinity(0)), torch.get_num_threads(), usable_cores()]))
world.leave()
"""


@pytest.mark.skipif(len(cores._usable()) < 2, reason="needs two cores")
def test_two_ranks_have_no_core_in_common_and_a_thread_for_each_of_their_own():
    usable = cores._usable()
    if len(usable) % 2:
        usable = usable[1:]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environ = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environ |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    start = f"import os; os.sched_setaffinity(0, {usable})"
    ranks = [
        subprocess.Popen([sys.executable, "-c", start + RANK], env=environ | {"RANK": rank}, stdout=subprocess.PIPE)
        for rank in "01"
    ]
    first, second = [json.loads(rank.communicate(timeout=120)[0]) for rank in ranks]
    half = len(usable) // 2
    assert first == [usable[:half], half, half] and second == [usable[half:], half, half]
