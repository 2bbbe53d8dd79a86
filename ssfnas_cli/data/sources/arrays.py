"""Sources that fit in memory: scikit-learn's digits, CIFAR-10 and CIFAR-100."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from registry import SOURCES, Options, SourceFacts
from ssfnas_cli.artifacts.files import reason
from ssfnas_cli.console import log
from ssfnas_cli.data.images import choose_size
from ssfnas_cli.data.sources.base import ArraySplit, Source, SourceSplit
from ssfnas_cli.errors import InputError

if TYPE_CHECKING:
    from ssfnas_cli.settings import MakeDatasetSettings

CHUNK_BYTES = 1 << 16


@SOURCES.register("digits", facts=SourceFacts(root="", imbalanced=False, splits=("train",)))
def open_digits(options: Options, settings: MakeDatasetSettings) -> Source:
    """scikit-learn's 1,797 handwritten digits, 8x8 and grey, without a test split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, :, :, None]
    size, _ = choose_size(settings.image_size, {(8, 8)})
    split = ArraySplit(images, digits.target.astype(np.int64), size)
    # A mirrored 2 or 5 is not a digit of the same class.
    return Source("digits", [str(label) for label in range(10)], 1, size, False, {"train": split})


class DownloadOptions(Options):
    """Time limits of a download."""

    silence: float = Field(20.0, gt=0, description="seconds without a byte after which a download is given up")
    limit: float = Field(1800.0, gt=0, description="seconds after which a download is given up, however it goes")


CIFAR_FACTS = SourceFacts(
    root="the folder of its files, or one to download them to", imbalanced=False, splits=("train", "test")
)


@SOURCES.register("cifar10", options=DownloadOptions, facts=CIFAR_FACTS)
def open_cifar10(options: DownloadOptions, settings: MakeDatasetSettings) -> Source:
    """CIFAR-10, 32x32 in colour: a torchvision root, downloaded if it is missing."""
    from torchvision import datasets

    return _open_cifar("cifar10", datasets.CIFAR10, "cifar-10-batches-py", options, settings)


@SOURCES.register("cifar100", options=DownloadOptions, facts=CIFAR_FACTS)
def open_cifar100(options: DownloadOptions, settings: MakeDatasetSettings) -> Source:
    """CIFAR-100, 32x32 in colour: a torchvision root, downloaded if it is missing."""
    from torchvision import datasets

    return _open_cifar("cifar100", datasets.CIFAR100, "cifar-100-python", options, settings)


def _open_cifar(name: str, reader: Any, folder: str, options: DownloadOptions, settings: MakeDatasetSettings) -> Source:
    """Open CIFAR with torchvision's reader, which checks the published md5 sums.

    The reader unpickles. This is the only exception to the rule against pickles, and only for files with those sums.
    """
    size, _ = choose_size(settings.image_size, {(32, 32)})
    root = Path(settings.root)
    for path in (root, *root.glob("cifar-*"), *root.glob(f"{folder}/*")):
        if os.path.lexists(path) and not (path.is_file() or path.is_dir()):
            raise InputError(f"--root: {path} is neither a file nor a folder: remove it")
    try:
        parts = _read_cifar(root, reader, options)
    except Exception as error:
        why = " ".join(reason(error).split()) or type(error).__name__
        raise InputError(
            f"--root: {root} has no whole {folder}, and it could not be fetched ({why}): put {folder} there"
        ) from error
    splits: dict[str, SourceSplit] = {
        part: ArraySplit(read.data, np.asarray(read.targets, dtype=np.int64), size) for part, read in parts.items()
    }
    return Source(name, list(parts["train"].classes), 3, size, True, splits)


def _read_cifar(root: Path, reader: Any, options: DownloadOptions) -> dict[str, Any]:
    # torchvision prints to stdout, which is reserved for data.
    with contextlib.redirect_stdout(sys.stderr):
        try:
            return {part: reader(str(root), train=part == "train", download=False) for part in ("train", "test")}
        except RuntimeError:  # torchvision raises it if files are missing or damaged
            pass
        archive = root / reader.filename
        if not _is_whole(archive, reader.tgz_md5):
            _download(reader.url, archive, options)
        # If the archive exists, torchvision checks its sum and unpacks it without using the network.
        if not _is_whole(archive, reader.tgz_md5):
            archive.unlink()
            raise ValueError(f"what {reader.url} sent has not the published md5 sum")
        return {part: reader(str(root), train=part == "train", download=True) for part in ("train", "test")}


def _is_whole(archive: Path, md5: str) -> bool:
    from torchvision.datasets.utils import check_integrity

    return bool(check_integrity(str(archive), md5))


def _download(url: str, target: Path, options: DownloadOptions) -> None:
    """Download a file atomically.

    Raises:
        OSError: there is no connection, or a time limit of `options` has passed.
    """
    log.info(
        "downloading %s to %s; given up after %g s of silence, or %g s in all",
        *(url, target.parent, options.silence, options.limit),
    )
    deadline = time.monotonic() + options.limit
    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    request = urllib.request.Request(url, headers={"User-Agent": "ssfnas"})
    try:
        # a new opener, because the default one keeps the proxies of its first use
        opener = urllib.request.build_opener()
        with opener.open(request, timeout=min(options.silence, options.limit)) as answer, partial.open("wb") as file:
            while piece := answer.read1(CHUNK_BYTES):
                file.write(piece)
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not done after {options.limit:g} s; --set source.limit=SECONDS allows more")
        partial.replace(target)
    except TimeoutError as error:
        raise TimeoutError(str(error) if "--set" in str(error) else _silent(url, options)) from error
    except urllib.error.URLError as error:
        silent = isinstance(error.reason, TimeoutError)
        raise OSError(_silent(url, options) if silent else str(error.reason)) from error
    finally:
        partial.unlink(missing_ok=True)


def _silent(url: str, options: DownloadOptions) -> str:
    return f"{url} did not answer for {options.silence:g} s"
