"""ssfnas: differentiable architecture search for long-tailed images."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import registry

if TYPE_CHECKING:
    from ssfnas_cli.deploy.model import Model

__version__ = "0.1.0"

if not getattr(registry, "SSFNAS_REGISTRY", False):
    _why = f"'{registry.__file__}' shadows the package 'registry' of ssfnas: rename it, or run from another folder"
    if sys.argv[0].rpartition(os.sep)[2] in ("ssfnas", "__main__.py", "-m"):
        raise SystemExit(f"ssfnas: {_why}")
    raise ImportError(_why)


def load(run: str | os.PathLike[str], device: str = "cpu", precision: str = "fp32") -> Model:
    """Load a trained network for prediction: `load("runs/trial-net").predict("photo.jpg").class_name`.

    Args:
        run: the folder of a finished retraining, or its `model.safetensors` alone.
        device: where to compute, such as `cuda`.
        precision: `fp32`, or `bf16` for faster predictions on a processor that multiplies it.

    Raises:
        InputError: there is none, it is unfinished, or it is damaged. It is a ValueError.
        UsageError: `run` is no path, or there is no such device or precision. It is a ValueError, too.
    """
    from ssfnas_cli.deploy import model  # torch takes seconds to import

    return model.load(run, device, precision)
