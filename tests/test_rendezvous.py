"""How ranks find the place where they meet, and wait for it; what they do then is in tests/faults/test_ranks.py."""

import signal
import socket
import threading
import time

import pytest

from ssfnas_cli import rendezvous


def test_a_name_that_stays_unknown_is_no_longer_waited_for(monkeypatch):
    monkeypatch.setattr(rendezvous, "NAME_SECONDS", 0.3)
    for is_master in (True, False):
        with pytest.raises(socket.gaierror):
            rendezvous._wait_for_store("no-such-machine.invalid", 20_000, is_master)


def test_a_first_rank_that_never_comes_is_not_waited_for_longer_than_ranks_wait(monkeypatch):
    monkeypatch.setattr(rendezvous, "JOIN_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        rendezvous._wait_for_store("127.0.0.1", port, False)


def test_a_first_rank_that_comes_later_is_waited_for():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    came = []

    def come():
        time.sleep(0.3)
        came.append(socket.create_server(("127.0.0.1", port)))

    thread = threading.Thread(target=come)
    thread.start()
    rendezvous._wait_for_store("127.0.0.1", port, False)
    thread.join()
    came[0].close()


def test_waiting_can_be_interrupted():
    timer = threading.Timer(0.3, signal.raise_signal, (signal.SIGINT,))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        rendezvous._wait_for_store("no-such-machine.invalid", 20_000, False)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("a1", "a1"), ("a[03-05,9],b", "a03"), ("node-[1,3]-ib,c", "node-1-ib"), ("x,y[1-2]", "x"), ("", "")],
)
def test_the_first_machine_of_a_list_as_slurm_writes_it(nodes, first):
    assert rendezvous.first_node(nodes) == first
