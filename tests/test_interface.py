"""Which network interface gloo is told to use. That it reaches another host is shown by faults/test_two_hosts.py."""

import pytest

from ssfnas_cli import interface


class Store(dict):
    """What is used of a `torch.distributed.Store`."""

    def set(self, key, value):
        self[key] = value.encode()

    def check(self, keys):
        return all(key in self for key in keys)

    def get(self, key, default=None):
        return self[key]


@pytest.fixture(autouse=True)
def _unset(monkeypatch):
    monkeypatch.setenv(interface.VARIABLE, "")


def chosen():
    return interface.os.environ[interface.VARIABLE]


def test_on_one_machine_gloo_chooses_itself():
    store = Store()
    own = interface.introduce(store, "127.0.0.1")
    interface.choose(store, own)
    assert own.startswith("127.") and not store and chosen() == ""


def test_an_address_that_is_not_found_leaves_the_choice_to_gloo():
    store = Store()
    interface.choose(store, interface.introduce(store, "no such host.invalid"))
    assert not store and chosen() == ""


def test_the_first_rank_takes_the_interface_at_which_others_see_it(monkeypatch):
    loopback = interface._interface_of("127.0.0.1")
    if not loopback:
        pytest.skip("interfaces cannot be listed here")
    monkeypatch.setattr(interface, "_is_loopback", lambda address: address == "127.0.1.1")  # Debian's, of the own name
    store = Store()
    assert interface.introduce(store, "127.0.0.1") and store == {interface.FIRST: b"127.0.0.1"}, "as others see it"
    interface.choose(store, "127.0.1.1")
    assert chosen() == loopback


def test_what_the_user_says_holds(monkeypatch):
    monkeypatch.setenv(interface.VARIABLE, "eth7")
    monkeypatch.setattr(interface, "_is_loopback", lambda address: False)
    interface.choose(Store(), "127.0.0.1")
    assert chosen() == "eth7"
