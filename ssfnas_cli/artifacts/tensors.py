"""Named tensors in a safetensors file, which is written atomically with a sha256 of its content and verified when read.

The safetensors library checks that a file is well formed, but not that its values are those that were written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssfnas_cli.artifacts.files import atomic_path, parse_json, reason, refuse_sparse
from ssfnas_cli.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

METADATA_KEY = "ssfnas"  # a single key, because safetensors orders several keys at random


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Any = None) -> None:
    """Write tensors, and metadata as JSON in the header, atomically. The bytes depend only on the content.

    Raises:
        DiskError: the file cannot be written.
    """
    from safetensors.torch import save_file

    plain: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        storage = value.untyped_storage().data_ptr()
        plain[name] = value.clone() if storage in storages else value  # safetensors rejects shared storage
        storages.add(storage)
    header = {"metadata": metadata, "sha256": _digest(plain, metadata)}
    with atomic_path(path) as temporary:
        save_file(plain, temporary, metadata={METADATA_KEY: json.dumps(header, allow_nan=False)})


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Load and verify the tensors of a file that `save_tensors` wrote. They are on the CPU.

    Raises:
        InputError: the file is missing, is not a complete safetensors file (pickles are never loaded), has no checksum,
            does not match its checksum, or is a large sparse file.
    """
    from safetensors.torch import load_file

    header = _header(path)
    with _errors_as_input_error(path):
        tensors = load_file(path)
    if header["sha256"] != _digest(tensors, header["metadata"]):
        raise InputError(f"{path}: is damaged: its contents do not give the sha256 it states")
    return tensors


def load_metadata(path: Path) -> Any:
    """The metadata of a file that `save_tensors` wrote. Only `load_tensors` verifies it.

    Raises:
        InputError: see `load_tensors`.
    """
    return _header(path)["metadata"]


def _header(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    refuse_sparse(path)
    with _errors_as_input_error(path), safe_open(path, framework="pt") as stream:
        text = (stream.metadata() or {}).get(METADATA_KEY)
    header = None if text is None else parse_json(text.encode(), f"{path}: header")
    if not isinstance(header, dict) or set(header) != {"metadata", "sha256"}:
        raise InputError(f"{path}: is damaged or not of ssfnas: its header states no sha256")
    return header


@contextlib.contextmanager
def _errors_as_input_error(path: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError, ValueError, KeyError, OverflowError, MemoryError, RuntimeError) as error:
        raise InputError(f"{path}: is not a whole safetensors file: {reason(error)}") from None


def _digest(tensors: Mapping[str, Tensor], metadata: Any) -> str:
    """The sha256 of the metadata and of each tensor's name, type, shape and bytes."""
    import torch

    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True, allow_nan=False).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def sha256_of(tensors: Mapping[str, Tensor]) -> str:
    """The identity of named tensors: their names, types, shapes and values, whatever file holds them."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
