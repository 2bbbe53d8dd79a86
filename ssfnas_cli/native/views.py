"""The structure and the function of views.cpp as Python sees them; views.cpp explains the fields."""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_void_p

import numpy as np
import torch
from torch import Tensor

from ssfnas_cli.native import library
from ssfnas_cli.native.layout import check_layouts


class View(ctypes.Structure):
    """A batch, the random draws for its images, and the memory for the view."""

    _fields_ = [
        *((name, c_int32) for name in ("num", "height", "width", "channels", "radius")),
        *((name, c_void_p) for name in ("images", "rows", "columns", "row_weights", "column_weights")),
        *((name, c_void_p) for name in ("matrix", "shift", "taps", "solarized", "mean", "std", "out")),
    ]


LIBRARY = ("views",)  # the arguments of `library.load`

# The types of the arrays that are not float32.
_KINDS = {"rows": np.int32, "columns": np.int32, "solarized": np.uint8}


class ViewKernels:
    """The library's function."""

    def __init__(self, cdll: ctypes.CDLL):
        check_layouts(cdll, "views_layout", {"View": View})
        self._render = cdll.render_view
        self._render.restype = None

    def render(self, images: np.ndarray, **arrays: np.ndarray) -> Tensor:
        """Make a view of uint8 images [N, H, W, C], C = 1 or 3, as float32 [N, C, H, W] in the channels-last layout.

        Args:
            images: [N, H, W, C].
            arrays: the draws, named as the fields of `View`.
        """
        num, height, width, channels = images.shape
        assert channels in (1, 3)
        images = np.ascontiguousarray(images, dtype=np.uint8)
        given = {key: np.ascontiguousarray(array, _KINDS.get(key, np.float32)) for key, array in arrays.items()}
        radius = given["taps"].shape[1] - 1
        shapes = {
            **{"rows": (num, height), "row_weights": (num, height)},
            **{"columns": (num, width), "column_weights": (num, width)},
            **{"matrix": (num, channels, channels), "shift": (num, channels)},
            **{"taps": (num, radius + 1), "solarized": (num,), "mean": (channels,), "std": (channels,)},
        }
        assert {key: array.shape for key, array in given.items()} == shapes
        out = torch.empty(num, height, width, channels)
        pointers = {key: array.ctypes.data for key, array in given.items()}
        sizes = {"num": num, "height": height, "width": width, "channels": channels, "radius": radius}
        self._render(ctypes.byref(View(**sizes, images=images.ctypes.data, **pointers, out=out.data_ptr())))
        return out.permute(0, 3, 1, 2)


def load() -> ViewKernels | None:
    """Load the compiled kernels; None if they cannot be compiled here."""
    cdll = library.load(*LIBRARY)
    return None if cdll is None else ViewKernels(cdll)
