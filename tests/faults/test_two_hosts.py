"""One run on two hosts, of which one is cut off: two network namespaces of this machine, joined by a virtual cable.

It needs Linux with `ip`, `unshare` and `nsenter`, and the right to make namespaces. Each host has a name of its own and
a file of names as Debian writes it, where its own name is on the loopback.
"""

import contextlib
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from faults_support import assert_same_end, metrics_of, wait_for
from ranks_support import SEARCH_ON_RANKS, start

HOSTS = {"one": "10.77.0.1", "two": "10.77.0.2"}
NEW = ["--net", "--uts", "--mount"]
SET_UP = 'hostname "$0" && mount --bind "$1" /etc/hosts && ip link set lo up && echo ready && exec sleep 600'


class Host:
    """A host that a process holds. The second one is made within the first one's user namespace."""

    def __init__(self, name, folder, first=None):
        names = folder / f"hosts-of-{name}"
        lines = [f"{'127.0.1.1' if other == name else address} {other}" for other, address in HOSTS.items()]
        names.write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        enter = ["unshare", "--user", "--map-root-user"] if first is None else [*first.enter(["--user"]), "unshare"]
        command = [*enter, *NEW, "sh", "-c", SET_UP, name, str(names)]
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.name, self.holder = name, subprocess.Popen(command, text=True, **streams)
        told = self.holder.stdout.readline().strip()
        if told != "ready":
            self.close()
            pytest.skip(f"network namespaces cannot be made here: {told}")

    def enter(self, namespaces=("--user", *NEW)):
        return ["nsenter", "--target", str(self.holder.pid), "--preserve-credentials", *namespaces]

    def run(self, *argv):
        done = subprocess.run([*self.enter(), *argv], capture_output=True, text=True)
        assert done.returncode == 0, (argv, done.stderr)

    def close(self):
        self.holder.kill()
        self.holder.wait()
        self.holder.stdout.close()


@pytest.fixture(scope="module")
def hosts(memory_folder):
    lacking = [name for name in ("ip", "unshare", "nsenter", "mount", "hostname") if shutil.which(name) is None]
    if lacking:
        pytest.skip(f"not installed: {', '.join(lacking)} (iproute2, util-linux)")
    with contextlib.ExitStack() as stack:
        made = [Host("one", memory_folder)]
        stack.callback(made[0].close)
        made.append(Host("two", memory_folder, made[0]))
        stack.callback(made[1].close)
        cable = ["type", "veth", "peer", "name", "wire", "netns", str(made[1].holder.pid)]
        made[0].run("ip", "link", "add", "name", "wire", *cable)
        for host in made:
            host.run("ip", "addr", "add", f"{HOSTS[host.name]}/24", "dev", "wire")
            host.run("ip", "link", "set", "wire", "up")
        yield made


def start_on(hosts, zygote, argv, folder, faults=None):
    """Start a rank on each host, with what torchrun gives when the first host's name is its --master-addr."""
    place = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "one", "MASTER_PORT": "29500"}
    environs = [{"RANK": str(rank), **place} for rank in range(2)]
    at = {rank: {"on_host": host.holder.pid} for rank, host in enumerate(hosts)}
    at[0] |= faults or {}
    return start(zygote, argv, [folder] * 2, at, environs)


def test_a_host_that_is_cut_off_ends_the_run_on_both_and_it_goes_on_exactly(hosts, zygote, undisturbed, place):
    command, pause = SEARCH_ON_RANKS, place / "paused"
    fault = {"pause_at_file_event": ["checkpoints/0000000003", str(pause)]}
    children = start_on(hosts, zygote, command, place, fault)
    wait_for(lambda: pause.exists() or any(has_ended(child) for child in children))
    assert pause.exists(), [zygote.wait(child) for child in children]
    hosts[1].run("ip", "link", "set", "wire", "down")
    cut = time.monotonic()
    pause.unlink()
    first, second = [zygote.wait(child) for child in children]
    assert time.monotonic() - cut < 120, "a minute is promised; the machine of the tests may be busy"
    assert (first.code, second.code, first.out, second.out) == (5, 5, "", "")
    (line,), (other_line,) = ours(first), ours(second)
    assert "rank 1 has ended without a word" in line and "the same command goes on" in line
    assert "the first rank cannot be reached any more" in other_line and "the same command goes on" in other_line
    assert not [path for path in (place / "run").rglob(".*")], "half-written files are left"
    assert len(metrics_of(place / "run")) < len(metrics_of(undisturbed))

    hosts[1].run("ip", "link", "set", "wire", "up")
    for result in [zygote.wait(child) for child in start_on(hosts, zygote, command, place)]:
        assert result.code == 0, result.err
    assert_same_end(place / "run", undisturbed)


def has_ended(child):
    return Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def ours(result):
    """Our lines of what a rank said."""
    return [line for line in result.err.splitlines() if line.startswith("ssfnas: ")]
