"""The structures and functions of cells.cpp, as ctypes sees them; what they mean stands there."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int, c_void_p
from typing import Any

import torch
from torch import Tensor

from ssfnas_cli.native import library

SEPARABLE, MAX_POOL, AVG_POOL, IDENTITY = range(4)


class Shape(ctypes.Structure):
    """Of a group's input: batch, map, channels, the stride of its operations; and how many threads compute."""

    _fields_ = [(name, c_int) for name in ("num", "height", "width", "channels", "stride", "threads")]


class Upstream(ctypes.Structure):
    """A gradient that arrives at an operation's result."""

    _fields_ = [("g", c_void_p), ("scale", c_void_p), ("sample", c_void_p), ("blocked", c_int)]


class Item(ctypes.Structure):
    """One operation on a group's input."""

    _fields_ = [
        *((name, c_int) for name in ("kind", "kernel", "dilation", "first_upstream", "num_upstream")),
        *((name, c_void_p) for name in ("depthwise", "pointwise", "y", "mean", "variance")),
        *((name, c_void_p) for name in ("centre", "slope", "offset", "d_depthwise", "d_pointwise")),
    ]


class Group(ctypes.Structure):
    """Operations that share an input."""

    _fields_ = [
        *((name, c_void_p) for name in ("x", "scale", "shift")),
        *((name, c_int) for name in ("first_item", "num_items", "blocked")),
        *((name, c_void_p) for name in ("dx", "centre", "sum", "dot")),
    ]


class Projection(ctypes.Structure):
    """ReLU and 1x1 convolutions on the pixels of one grid or of two."""

    _fields_ = [
        ("x", c_void_p),
        *((name, c_int) for name in ("in_channels", "taps", "first_channels")),
        *((name, c_void_p * 2) for name in ("weights", "d_weights")),
        ("dx", c_void_p),
    ]


class Term(ctypes.Structure):
    """One summand of a node."""

    _fields_ = [
        *((name, c_void_p) for name in ("y", "scale", "centre", "shift", "sample")),
        *((name, c_int) for name in ("target", "blocked")),
        *((name, c_void_p) for name in ("sum", "dot")),
    ]


class CellKernels:
    """The functions, for tensors of one kind of float."""

    def __init__(self, cdll: ctypes.CDLL, dtype: torch.dtype):
        suffix = {torch.float32: "float", torch.float64: "double"}[dtype]
        self.dtype = dtype
        self.lanes = cdll.vector_bytes() // dtype.itemsize
        self._groups_forward = getattr(cdll, f"groups_forward_{suffix}")
        self._groups_backward = getattr(cdll, f"groups_backward_{suffix}")
        self._project_forward = getattr(cdll, f"project_forward_{suffix}")
        self._project_backward = getattr(cdll, f"project_backward_{suffix}")
        self._mix_forward = getattr(cdll, f"mix_forward_{suffix}")
        self._mix_sums = getattr(cdll, f"mix_sums_{suffix}")

    def new_map(self, num: int, channels: int, height: int, width: int) -> Tensor:
        """Memory for a blocked map."""
        padded = -(-channels // self.lanes) * self.lanes
        return torch.empty(num * padded * height * width, dtype=self.dtype)

    def groups_forward(self, shape: Shape, groups: Sequence[Group], items: Sequence[Item]) -> None:
        """Every item's y, and its statistics where wanted."""
        self._groups_forward(ctypes.byref(shape), len(groups), _array(groups), len(items), _array(items))

    def groups_backward(
        self, shape: Shape, groups: Sequence[Group], items: Sequence[Item], upstreams: Sequence[Upstream]
    ) -> None:
        """Every group's dx, and the items' weight gradients where wanted."""
        counts = (len(groups), _array(groups), len(items), _array(items))
        self._groups_backward(ctypes.byref(shape), *counts, _array(upstreams))

    def project_forward(self, shape: Shape, job: Projection, result: Item) -> None:
        """The result's y, and its statistics where wanted; the shape's channels are those made."""
        self._project_forward(ctypes.byref(shape), ctypes.byref(job), ctypes.byref(result))

    def project_backward(self, shape: Shape, job: Projection, result: Item, upstreams: Sequence[Upstream]) -> None:
        """The job's dx, and its weight gradients where wanted."""
        self._project_backward(ctypes.byref(shape), ctypes.byref(job), ctypes.byref(result), _array(upstreams))

    def mix_forward(self, shape: Shape, terms: Sequence[Term], outs: Sequence[Tensor], add: Sequence[bool]) -> None:
        """Each target's sum of terms, put into or added to `outs`."""
        pointers = (c_void_p * len(outs))(*(out.data_ptr() for out in outs))
        flags = (c_int * len(outs))(*add)
        self._mix_forward(ctypes.byref(shape), len(terms), _array(terms), len(outs), pointers, flags)

    def mix_sums(self, shape: Shape, terms: Sequence[Term], gradients: Sequence[Tensor]) -> None:
        """Each term's sums over its target's gradient."""
        pointers = (c_void_p * len(gradients))(*(g.data_ptr() for g in gradients))
        self._mix_sums(ctypes.byref(shape), len(terms), _array(terms), pointers)


def load(dtype: torch.dtype = torch.float32) -> CellKernels | None:
    """The compiled kernels, or None where there is no compiler."""
    cdll = library.load("cells")
    return None if cdll is None else CellKernels(cdll, dtype)


def _array(structures: Sequence[Any]) -> Any:
    kind = type(structures[0]) if structures else Upstream
    return (kind * max(len(structures), 1))(*structures)
