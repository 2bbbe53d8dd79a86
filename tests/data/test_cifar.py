"""CIFAR through torchvision's reader, and downloads that never end."""

import contextlib
import os
import socket
import struct
import sys
import threading
import types
import zlib

import numpy as np
import pytest
from PIL import Image

from ssfnas_cli.data.sources import arrays
from ssfnas_cli.data.sources.base import open_source
from ssfnas_cli.errors import InputError
from ssfnas_cli.settings import MakeDatasetSettings


def opened(name, root=None, image_size="auto", seed=0, **options):
    """The source of that name, and of those settings."""
    section = {"name": name, **options}
    settings = MakeDatasetSettings(source=section, root=str(root or ""), image_size=image_size, seed=seed)
    return open_source(settings.resolve_plugins())


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def png_claiming(width, height):
    """A PNG whose header names a size that its data does not have."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = b""
    for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 64)), (b"IEND", b"")):
        chunks += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + chunks


# CIFAR, with a stand-in for torchvision's reader: the true one takes only files of the published md5 sums


def stand_in(monkeypatch, reader):
    datasets = types.SimpleNamespace(CIFAR10=reader, CIFAR100=reader)
    monkeypatch.setitem(sys.modules, "torchvision", types.SimpleNamespace(datasets=datasets))


def test_cifar_goes_through_torchvision_and_keeps_stdout_clean(monkeypatch, tmp_path, capsys):
    class Reader:
        classes = ("cat", "dog")

        def __init__(self, root, train, download):
            print("Files already downloaded and verified")
            self.data = np.full((6 if train else 4, 32, 32, 3), 9, np.uint8)
            self.targets = [0, 1] * (len(self.data) // 2)

    stand_in(monkeypatch, Reader)
    source = opened("cifar10", tmp_path)
    assert (source.class_names, len(source.splits["train"])) == (["cat", "dog"], 6)
    assert source.splits["test"].read(3).shape == (32, 32, 3)
    assert capsys.readouterr().out == ""


# and with the true one, whose download goes through a proxy of ours


@pytest.fixture
def proxy(monkeypatch):
    """Sends every request to a server on this machine: a function of what it does with a connection."""
    server = socket.create_server(("127.0.0.1", 0))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{server.getsockname()[1]}")
    connections = []

    def serve(answer):
        def work():
            with contextlib.suppress(OSError):  # the client, or the test, has gone
                connection, _ = server.accept()
                connections.append(connection)
                answer(connection)

        threading.Thread(target=work, daemon=True).start()

    yield serve
    for one in (server, *connections):
        one.close()


@pytest.mark.parametrize(("name", "folder"), [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")])
def test_a_silent_cifar_download_is_announced_and_given_up(proxy, tmp_path, caplog, name, folder):
    proxy(lambda connection: None)
    caplog.set_level("INFO", "ssfnas")
    with pytest.raises(InputError, match=rf"--root.*did not answer for 0.2 s.*put {folder} there"):
        opened(name, tmp_path, silence=0.2)
    assert "downloading https://" in caplog.text and str(tmp_path) in caplog.text
    assert "given up after 0.2 s of silence, or 1800 s in all" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_refused_cifar_download_says_where_to_put_the_files(monkeypatch, proxy, tmp_path):
    proxy(lambda connection: connection.sendall(b"HTTP/1.0 403 Forbidden\r\n\r\n"))
    with pytest.raises(InputError, match=r"--root.*403.*put cifar-10-batches-py there"):
        opened("cifar10", tmp_path)


def trickle(connection):
    """An endless answer, a byte at a time."""
    connection.recv(65536)
    connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"x")
        threading.Event().wait(0.01)


def test_a_download_that_trickles_for_ever_is_given_up_and_leaves_nothing(proxy, tmp_path):
    proxy(trickle)
    with pytest.raises(TimeoutError, match=r"not done after 0.3 s; --set source.limit=SECONDS allows more"):
        arrays._download("http://example.invalid/a.tar.gz", tmp_path / "a.tar.gz", arrays.DownloadOptions(limit=0.3))
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_comes_whole_is_kept(proxy, tmp_path):
    proxy(
        lambda connection: (
            connection.recv(65536),
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nall"),
            connection.close(),
        )
    )
    arrays._download("http://example.invalid/a.tar.gz", tmp_path / "a.tar.gz", arrays.DownloadOptions())
    assert (tmp_path / "a.tar.gz").read_bytes() == b"all" and len(list(tmp_path.iterdir())) == 1


def test_a_pipe_among_the_files_of_cifar_does_not_block(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    os.mkfifo(tmp_path / "cifar-10-batches-py" / "data_batch_1")
    with pytest.raises(InputError, match="data_batch_1 is neither a file nor a folder"):
        opened("cifar10", tmp_path)
