"""The structures and functions of the cells' library as Python sees them; structures.h explains the fields."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int, c_void_p

import numpy as np
import torch
from torch import Tensor

from ssfnas_cli.native import library
from ssfnas_cli.native.layout import Mirror, check_layouts

SEPARABLE, MAX_POOL, AVG_POOL, IDENTITY = range(4)


def _structure(*fields: tuple[type, str]) -> np.dtype:
    return np.dtype([(name, kind) for kind, names in fields for name in names.split()], align=True)


# Structures that are passed in arrays; a field of an array is a column.
UPSTREAM = _structure((np.uintp, "g scale sample"))
ITEM = _structure(
    (np.intc, "kind kernel dilation first_upstream num_upstream"),
    (np.uintp, "depthwise pointwise y mean variance centre slope offset d_depthwise d_pointwise"),
)
GROUP = _structure((np.uintp, "x scale shift"), (np.intc, "first_item num_items"), (np.uintp, "dx centre sum dot"))
TERM = _structure((np.uintp, "y scale centre shift sample"), (np.intc, "target"), (np.uintp, "sum dot"))


def structures(kind: np.dtype, count: int) -> np.ndarray:
    """An array of `count` structures, all zero."""
    return np.zeros(count, kind)


def addresses(tensors: Sequence[Tensor]) -> np.ndarray:
    """The addresses of the tensors' first elements."""
    return np.array([tensor.data_ptr() for tensor in tensors], dtype=np.uintp)


def rows(matrix: Tensor) -> np.ndarray:
    """The addresses of a matrix's rows."""
    assert matrix.is_contiguous()
    step = matrix.shape[1] * matrix.element_size()
    return np.arange(len(matrix), dtype=np.uintp) * step + matrix.data_ptr()


class Shape(ctypes.Structure):
    """The shape of a group's input, the stride of its items, and how many threads may compute."""

    _fields_ = [(name, c_int) for name in ("num", "height", "width", "channels", "stride", "threads")]


class Projection(ctypes.Structure):
    """ReLU and one or two 1x1 convolutions, each on a grid of pixels of its own."""

    _fields_ = [
        ("x", c_void_p),
        *((name, c_int) for name in ("in_channels", "taps", "first_channels")),
        *((name, c_void_p * 2) for name in ("weights", "d_weights")),
        ("dx", c_void_p),
    ]


# The structures by their names in structures.h.
MIRRORS: dict[str, Mirror] = {
    **{"Shape": Shape, "Projection": Projection},
    **{"Upstream": UPSTREAM, "Item": ITEM, "Group": GROUP, "Term": TERM},
}


class CellKernels:
    """The library's functions for tensors of one floating-point type.

    An array that a method takes holds the structures that it is named for.
    """

    def __init__(self, cdll: ctypes.CDLL, dtype: torch.dtype):
        suffix = {torch.float32: "float", torch.float64: "double"}[dtype]
        check_layouts(cdll, "cells_layout", MIRRORS)
        self.dtype = dtype
        self.lanes = cdll.vector_bytes() // dtype.itemsize
        self._groups_forward = getattr(cdll, f"groups_forward_{suffix}")
        self._groups_backward = getattr(cdll, f"groups_backward_{suffix}")
        self._project_forward = getattr(cdll, f"project_forward_{suffix}")
        self._project_backward = getattr(cdll, f"project_backward_{suffix}")
        self._add_terms = getattr(cdll, f"add_terms_{suffix}")
        self._term_sums = getattr(cdll, f"term_sums_{suffix}")

    def __deepcopy__(self, memo: object) -> CellKernels:
        """The same functions: a copy of a network that they compute shares them."""
        return self

    def new_map(self, num: int, channels: int, height: int, width: int) -> Tensor:
        """Allocate a map [N, H, W, C], as a flat tensor."""
        return torch.empty(num * channels * height * width, dtype=self.dtype)

    def groups_forward(self, shape: Shape, groups: np.ndarray, items: np.ndarray) -> None:
        """Compute every item's y, and its statistics if wanted."""
        self._groups_forward(ctypes.byref(shape), *_counted(groups), *_counted(items))

    def groups_backward(self, shape: Shape, groups: np.ndarray, items: np.ndarray, upstreams: np.ndarray) -> None:
        """Compute every group's dx and, if wanted, the items' weight gradients."""
        self._groups_backward(ctypes.byref(shape), *_counted(groups), *_counted(items), _pointer(upstreams))

    def project_forward(self, shape: Shape, job: Projection, result: np.ndarray) -> None:
        """Compute the result's y, and its statistics if wanted; the shape's channels are the output channels."""
        self._project_forward(ctypes.byref(shape), ctypes.byref(job), _pointer(result))

    def project_backward(self, shape: Shape, job: Projection, result: np.ndarray, upstreams: np.ndarray) -> None:
        """Compute the job's dx and, if wanted, its weight gradients."""
        self._project_backward(ctypes.byref(shape), ctypes.byref(job), _pointer(result), _pointer(upstreams))

    def add_terms(self, shape: Shape, terms: np.ndarray, outs: Sequence[Tensor], add: Sequence[bool]) -> None:
        """Add each target's terms to its tensor in `outs`, which starts at zero unless `add` is true for it."""
        pointers, flags = addresses(outs), np.array(add, dtype=np.intc)
        self._add_terms(ctypes.byref(shape), *_counted(terms), *_counted(pointers), _pointer(flags))

    def term_sums(self, shape: Shape, terms: np.ndarray, gradients: Sequence[Tensor]) -> None:
        """Compute each term's sums over its target's gradient."""
        pointers = addresses(gradients)
        self._term_sums(ctypes.byref(shape), *_counted(terms), _pointer(pointers))


def load(dtype: torch.dtype = torch.float32) -> CellKernels | None:
    """Load the compiled kernels; None if they cannot be compiled here."""
    cdll = library.load("cells")
    return None if cdll is None else CellKernels(cdll, dtype)


def _pointer(array: np.ndarray) -> c_void_p:
    """The address of an array, which the caller must keep alive."""
    assert array.flags.c_contiguous
    return c_void_p(array.ctypes.data)


def _counted(array: np.ndarray) -> tuple[int, c_void_p]:
    return len(array), _pointer(array)
