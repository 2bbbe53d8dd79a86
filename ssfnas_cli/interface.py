"""The network interface by which this machine reaches the first rank's, for gloo.

gloo binds to the address that the machine's own name has. On many machines that is one of the loopback (Debian writes
`127.0.1.1 NAME` into /etc/hosts), which no other machine can reach. What reaches the store of the ranks is known to
work, so gloo is told to use that, unless `GLOO_SOCKET_IFNAME` is set.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
from typing import Any

VARIABLE = "GLOO_SOCKET_IFNAME"
FIRST = "first rank's address"  # the key in the store under which others say where they see the first rank
SIOCGIFADDR = 0x8915  # ioctl of Linux: the IPv4 address of an interface


def introduce(store: Any, address: str) -> str:
    """The own address on the way to `address`, where the first rank is; if it is another machine, say how it is seen.

    All ranks call this before they wait for each other. The result is empty if there is no such address.
    """
    own, first = _way_to(address)
    if own and not _is_loopback(first):
        store.set(FIRST, first)
    return own


def choose(store: Any, own: str) -> None:
    """Tell gloo the interface that has the address `own`, once all ranks have introduced themselves.

    The first rank may see itself on the loopback only, and then has the address at which others see it. If nobody does,
    all ranks are on one machine, and gloo's choice is right.
    """
    if os.environ.get(VARIABLE):
        return
    if (not own or _is_loopback(own)) and store.check([FIRST]):
        own = store.get(FIRST).decode()
    if own and not _is_loopback(own) and (name := _interface_of(own)):
        os.environ[VARIABLE] = name


def _way_to(address: str) -> tuple[str, str]:
    """Both IPv4 addresses of a connection to a machine. None is made: a datagram socket only looks for its route."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))
        return probe.getsockname()[0], probe.getpeername()[0]
    return "", ""


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def _interface_of(address: str) -> str:
    """The name of the interface with an IPv4 address; empty if it is not found."""
    with contextlib.suppress(ImportError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        import fcntl

        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # an interface without an address
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return ""
