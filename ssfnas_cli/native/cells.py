"""The structures and functions of the cells' library as Python sees them; structures.h and passes.h explain them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_double, c_int, c_long, c_void_p

import numpy as np
import torch
from torch import Tensor

from ssfnas_cli.native import library
from ssfnas_cli.native.layout import Mirror, check_layouts

SEPARABLE, MAX_POOL, AVG_POOL, IDENTITY = range(4)

# An array of this structure has its fields as columns.
ITEM = np.dtype(
    [
        *((name, np.intc) for name in ("kind", "kernel", "dilation", "first_upstream", "num_upstream")),
        *((name, np.uintp) for name in ("depthwise", "pointwise", "y", "mean", "variance", "centre", "slope")),
        *((name, np.uintp) for name in ("offset", "d_depthwise", "d_pointwise")),
    ],
    align=True,
)


class Shape(ctypes.Structure):
    """The shape of a pass's input, the stride of its items, and how many threads may compute."""

    _fields_ = [(name, c_int) for name in ("num", "height", "width", "channels", "stride", "threads")]


class Projection(ctypes.Structure):
    """ReLU and one or two 1x1 convolutions, each on a grid of pixels of its own."""

    _fields_ = [
        ("x", c_void_p),
        *((name, c_int) for name in ("in_channels", "taps", "first_channels")),
        *((name, c_void_p * 2) for name in ("weights", "d_weights")),
        ("dx", c_void_p),
    ]


# Replaces so many values by their sums over all ranks.
SumOverRanks = ctypes.CFUNCTYPE(None, POINTER(c_double), c_long)

# A field of the type POINTER keeps the array alive that is assigned to it; one of the type c_void_p does not.


class Norms(ctypes.Structure):
    """The batch normalisations behind some maps."""

    _fields_ = [
        ("eps", POINTER(c_double)),
        *((name, POINTER(c_void_p)) for name in ("running_means", "running_variances", "num_batches")),
        ("momenta", POINTER(c_double)),
        ("training", c_int),
        ("sum", SumOverRanks),
    ]


class Fan(ctypes.Structure):
    """What stays the same from pass to pass of a fan."""

    _fields_ = [
        *((name, c_int) for name in ("num_maps", "num_first", "num_uses", "num_targets")),
        ("items", c_void_p),
        *((name, POINTER(c_int)) for name in ("inner", "last_map", "target", "by_target", "by_map")),
    ]


class FanCall(ctypes.Structure):
    """One pass of a fan."""

    _fields_ = [
        ("images", c_int),
        ("x", c_void_p),
        ("weights", POINTER(c_void_p)),
        ("norms", Norms),
        *((name, c_void_p) for name in ("scale", "shift", "sample")),
        ("scale_per_channel", c_int),
        *((name, c_void_p) for name in ("gamma", "beta", "maps", "mean", "inverse")),
        ("outs", POINTER(c_void_p)),
        ("add", POINTER(c_int)),
        *((name, POINTER(c_void_p)) for name in ("gs", "d_weights")),
        *((name, c_void_p) for name in ("dx", "d_shift", "d_scale", "d_gamma", "d_beta")),
    ]


class ProjectionCall(ctypes.Structure):
    """A projection in a pass of one or several."""

    _fields_ = [
        ("job", Projection),
        ("norms", Norms),
        *((name, c_void_p) for name in ("gamma", "beta", "y", "mean", "inverse", "out", "g", "d_beta", "d_gamma")),
    ]


# The structures by their names in C++.
MIRRORS: dict[str, Mirror] = {
    **{"Shape": Shape, "Projection": Projection, "Item": ITEM},
    **{"Norms": Norms, "Fan": Fan, "FanCall": FanCall, "ProjectionCall": ProjectionCall},
}


def integers(values: Sequence[int]) -> ctypes.Array[c_int]:
    """An array of int."""
    return (c_int * len(values))(*values)


def pointers(tensors: Sequence[Tensor]) -> ctypes.Array[c_void_p]:
    """An array of the addresses of the tensors' first elements."""
    return (c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors])


def array(structures: Sequence[ctypes.Structure]) -> ctypes.Array:
    """Structures of one type side by side. What they refer to stays only as long as they do."""
    return (type(structures[0]) * len(structures))(*structures)


def address(tensor: Tensor | None) -> int | None:
    """The address of a tensor's first element; None for None."""
    return None if tensor is None else tensor.data_ptr()


class CellPasses:
    """A library's functions: the passes over maps of one type."""

    def __init__(self, cdll: ctypes.CDLL):
        check_layouts(cdll, "cells_layout", MIRRORS)
        self.fan_forward = bind(cdll.fan_forward, Shape, Fan, FanCall)
        self.fan_backward = bind(cdll.fan_backward, Shape, Fan, FanCall)
        self.projections_forward = bind(cdll.projections_forward, Shape, ProjectionCall, count=True)
        self.projections_backward = bind(cdll.projections_backward, Shape, ProjectionCall, count=True)


class CellKernels:
    """The compiled kernels for weights of one floating-point type, and for maps of that type or of bf16.

    Args:
        cdll: the library for maps of the weights' type.
        dtype: of the weights, in which everything is computed.
        reduced: the library for maps of bf16, which an autocast to bf16 asks for; None if there is none.
    """

    def __init__(self, cdll: ctypes.CDLL, dtype: torch.dtype, reduced: ctypes.CDLL | None = None):
        self.dtype = dtype
        self.lanes = cdll.vector_bytes() // dtype.itemsize
        self._passes = {dtype: CellPasses(cdll)}
        if reduced is not None:
            self._passes[torch.bfloat16] = CellPasses(reduced)

    def __deepcopy__(self, memo: object) -> CellKernels:
        """The same functions: a copy of a network that they compute shares them."""
        return self

    def on(self, x: Tensor) -> CellPasses:
        """The passes over maps of the type of x."""
        return self._passes[x.dtype]

    def support(self, x: Tensor) -> bool:
        """Whether there are passes over `as_map(x)`."""
        wanted = torch.bfloat16 if torch.is_autocast_enabled("cpu") else x.dtype
        return x.device.type == "cpu" and wanted in self._passes and x.dtype in (self.dtype, torch.bfloat16)

    def as_map(self, x: Tensor) -> Tensor:
        """The map x [N, C, H, W] with channels last, and in bf16 within an autocast."""
        if torch.is_autocast_enabled("cpu"):
            x = x.to(torch.bfloat16)
        return x.contiguous(memory_format=torch.channels_last)


def new_maps(dtype: torch.dtype, count: int, num: int, channels: int, height: int, width: int) -> Tensor:
    """Allocate so many maps [N, H, W, C], one after the other, as a flat tensor."""
    return torch.empty(count * num * channels * height * width, dtype=dtype)


def libraries_for(dtype: torch.dtype, reduced: bool = False) -> list[tuple[str, ...]]:
    """The arguments of `library.load`, once for each library of `load` with the same arguments."""
    real = {torch.float32: "-DREAL=float", torch.float64: "-DREAL=double"}[dtype]
    return [("cells", real), *([("cells", real, "-DBF16_MAPS")] if reduced else [])]


def load(dtype: torch.dtype = torch.float32, reduced: bool = False) -> CellKernels | None:
    """Load the compiled kernels; None if they cannot be compiled here.

    Args:
        dtype: of the weights.
        reduced: whether there shall be kernels for maps of bf16, too.
    """
    loaded = [library.load(*arguments) for arguments in libraries_for(dtype, reduced)]
    return None if loaded[0] is None else CellKernels(loaded[0], dtype, *loaded[1:])


def bind(
    function: ctypes._NamedFuncPointer, *structures: type[ctypes.Structure], count: bool = False
) -> ctypes._NamedFuncPointer:
    """A function of pointers to structures, which can be given the structures themselves.

    Args:
        function: of the library.
        structures: what it takes, in order.
        count: whether it takes arrays of them, and before them how many there are.
    """
    function.argtypes = [*([c_int] if count else []), *(POINTER(structure) for structure in structures)]
    function.restype = None
    return function
