"""Checkpoints, which are written atomically.

A checkpoint is a folder `checkpoints/NUMBER` with `tensors.safetensors`, `state.json` and `manifest.json`, which holds
the sizes and sha256 of the other two. It is written to a temporary folder, flushed to the disk and renamed. Only then
are older checkpoints deleted.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ssfnas_cli.artifacts.files import (
    atomic_folder,
    delete_temporaries,
    read_json,
    refuse_special_file,
    rename_to_free_name,
    sha256_file,
    write_json,
)
from ssfnas_cli.artifacts.tensors import load_tensors, save_tensors
from ssfnas_cli.console import log
from ssfnas_cli.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

FILES = ("tensors.safetensors", "state.json")
MANIFEST = "manifest.json"
SCHEMA = "ssfnas.checkpoint/1"
_NAME = re.compile(r"\d{10}")


class Checkpoint(NamedTuple):
    """The content of a checkpoint: every tensor that the training changes, and the state of the loop as JSON."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int) -> Path:
    """Write the next checkpoint of `folder`, then delete all but the newest `keep`.

    Raises:
        DiskError: the checkpoint cannot be written. Earlier ones are unchanged.
        OutputExistsError: the folder, or a checkpoint in it, is a link.
    """
    existing = list_checkpoints(folder)
    number = int(existing[-1].name) + 1 if existing else 1
    path = folder / f"{number:010d}"
    with atomic_folder(path) as temporary:
        save_tensors(temporary / FILES[0], tensors)
        write_json(temporary / FILES[1], dict(state))
        write_json(
            temporary / MANIFEST,
            {
                "schema": SCHEMA,
                "files": {
                    name: {
                        "bytes": (temporary / name).stat().st_size,
                        "sha256": sha256_file(temporary / name),
                    }
                    for name in FILES
                },
            },
        )
    for old in [*existing, path][:-keep]:
        _remove(old)
    return path


def _remove(checkpoint: Path) -> None:
    """Delete the files of a checkpoint and then its folder, unless the folder contains other files."""
    with contextlib.suppress(OSError):
        for name in (MANIFEST, *FILES):
            (checkpoint / name).unlink(missing_ok=True)
        delete_temporaries(checkpoint)
        checkpoint.rmdir()


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders, oldest first. Unfinished ones have other names and are not included.

    Raises:
        OutputExistsError: the folder or a checkpoint is a link. Files elsewhere are neither read nor deleted.
    """
    refuse_special_file(folder, folder=True)
    if not folder.is_dir():
        return []
    found = sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir())
    for path in found:
        refuse_special_file(path, folder=True)
    return found


def load_newest(folder: Path) -> Checkpoint | None:
    """Load the newest intact checkpoint; None if there are no checkpoints. Damaged ones are skipped with a warning.

    The caller must hold the run's lock, because damaged checkpoints are renamed, so that they do not count among those
    to keep.

    Raises:
        InputError: there are checkpoints, but all are damaged.
    """
    damaged, first_error = [], None
    for path in reversed(list_checkpoints(folder)):
        try:
            checkpoint = load_checkpoint(path)
        except InputError as error:
            first_error = first_error or error
            damaged.append(path)
            log.warning("checkpoint %s is passed over, it is damaged: %s", path.name, error)
            continue
        for other in damaged:
            rename_to_free_name(other, "damaged")
        return checkpoint
    if first_error is not None:
        raise InputError(f"no sound checkpoint is left: {first_error}; start over with --force")
    return None


def load_checkpoint(path: Path) -> Checkpoint:
    """Load a checkpoint after verifying the sizes and sha256 of its files.

    Raises:
        InputError: a file is missing or damaged. The message names it.
    """
    manifest = read_json(path / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise InputError(f"{path / 'manifest.json'}: is not the manifest of a checkpoint ('{SCHEMA}')")
    files = manifest.get("files")
    if not isinstance(files, dict) or set(files) != set(FILES):
        raise InputError(f"{path / 'manifest.json'}: should name exactly {', '.join(FILES)}")
    for name in FILES:
        _verify(path / name, files[name])
    state = read_json(path / FILES[1])
    if not isinstance(state, dict):
        raise InputError(f"{path / FILES[1]}: should hold an object")
    return Checkpoint(load_tensors(path / FILES[0]), state)


def _verify(path: Path, claim: Any) -> None:
    try:
        if path.is_symlink() or not path.is_file():
            raise InputError(f"{path}: is missing or not a plain file")
        if not isinstance(claim, dict) or path.stat().st_size != claim.get("bytes"):
            raise InputError(f"{path}: has not the size its manifest states")
        if sha256_file(path) != claim.get("sha256"):
            raise InputError(f"{path}: has not the sha256 its manifest states")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
