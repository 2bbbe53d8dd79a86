"""Comparing the structures that Python and C++ share, when a library is loaded."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

import numpy as np

Mirror = np.dtype | type[ctypes.Structure]


class _Entry(ctypes.Structure):
    """A `LayoutEntry` of layout.h."""

    _fields_ = [("name", ctypes.c_char_p), ("value", ctypes.c_long)]


def check_layouts(cdll: ctypes.CDLL, function: str, mirrors: Mapping[str, Mirror]) -> None:
    """Compare sizes and offsets of the structures in Python with those that a library was compiled with.

    Args:
        cdll: the library.
        function: the name of its function that returns `LayoutEntry` values.
        mirrors: the structures in Python by their names in C++.

    Raises:
        AssertionError: something differs; the message lists it.
    """
    compiled = _compiled_layout(cdll, function)
    expected = {name: value for structure, mirror in mirrors.items() for name, value in _layout(structure, mirror)}
    different = [
        f"{name} is {compiled.get(name, 'missing')} in C++ and {expected.get(name, 'missing')} in Python"
        for name in sorted(compiled.keys() | expected.keys())
        if compiled.get(name) != expected.get(name)
    ]
    assert not different, f"structures differ (sizes and offsets in bytes): {'; '.join(different)}"


def _compiled_layout(cdll: ctypes.CDLL, function: str) -> dict[str, int]:
    entries = getattr(cdll, function)
    entries.restype = ctypes.POINTER(_Entry)
    layout, pointer, index = {}, entries(), 0
    while pointer[index].name is not None:
        layout[pointer[index].name.decode()] = pointer[index].value
        index += 1
    return layout


def _layout(structure: str, mirror: Mirror) -> list[tuple[str, int]]:
    """The size of a structure and the offsets of its fields."""
    if isinstance(mirror, np.dtype):
        assert mirror.fields is not None
        fields = {name: offset for name, (_, offset, *_) in mirror.fields.items()}
        size = mirror.itemsize
    else:
        fields = {field[0]: getattr(mirror, field[0]).offset for field in mirror._fields_}
        size = ctypes.sizeof(mirror)
    return [(structure, size), *((f"{structure}.{name}", offset) for name, offset in fields.items())]
