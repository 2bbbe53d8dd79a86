"""How tests start the ranks of one run, and what these may say."""

import socket

from faults_support import SEARCH

SEARCH_ON_RANKS = [*SEARCH, "--epochs", "2", "-o", "run"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def torchruns(size):
    """The environments that torchrun gives, one for each rank."""
    port = free_port()
    return [
        {"RANK": str(r), "WORLD_SIZE": str(size), "LOCAL_RANK": str(r), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for r in range(size)
    ]


def start(zygote, argv, folders, faults=None, environs=None):
    """A rank in every folder; `faults` by rank."""
    environs = environs or torchruns(len(folders))
    return [
        zygote.start(argv, folder, (faults or {}).get(rank), environ=environ)
        for rank, (folder, environ) in enumerate(zip(folders, environs, strict=True))
    ]


def ranks(zygote, argv, folder, size=2, faults=None, environs=None):
    """How the ranks ended that computed a command in one folder, or each in its own."""
    folders = folder if isinstance(folder, list) else [folder] * size
    return [zygote.wait(child) for child in start(zygote, argv, folders, faults, environs)]


def said(results, code):
    """What the ranks said, which the first one alone did; all of them ended with that code."""
    assert [result.code for result in results] == [code] * len(results), results
    assert not any(result.err or result.out for result in results[1:]), results
    return results[0].err
