"""Named tensors in a safetensors file: written whole, read with the header's claims checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssfnas_cli.artifacts.files import atomic_path, parse_json, reason
from ssfnas_cli.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

METADATA_KEY = "ssfnas"  # one key only: with more, safetensors orders them at random


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Any = None) -> None:
    """Write tensors, and JSON-able metadata in the header, atomically; the bytes depend on the content alone.

    Raises:
        DiskError: naming `path`.
    """
    from safetensors.torch import save_file

    header = None if metadata is None else {METADATA_KEY: json.dumps(metadata, allow_nan=False)}
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(plain, temporary, metadata=header)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file, on the CPU.

    Raises:
        InputError: missing, or not a whole safetensors file (a pickle by another name is only ever refused).
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (SafetensorError, OSError, ValueError, OverflowError, MemoryError) as error:
        raise InputError(f"{path}: is not a whole safetensors file: {reason(error)}") from None


def load_metadata(path: Path) -> Any:
    """The JSON metadata of a file that `save_tensors` wrote, or None.

    Raises:
        InputError: as `load_tensors`.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as stream:
            header = stream.metadata() or {}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (SafetensorError, OSError, ValueError, OverflowError, MemoryError) as error:
        raise InputError(f"{path}: is not a whole safetensors file: {reason(error)}") from None
    return parse_json(header[METADATA_KEY].encode(), str(path)) if METADATA_KEY in header else None
