"""Structures that Python and C++ share are compared when a library is loaded."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from ssfnas_cli.native import cells, library, views
from ssfnas_cli.native.layout import check_layouts


def structure_of(*fields) -> type[ctypes.Structure]:
    return type("Structure", (ctypes.Structure,), {"_fields_": list(fields)})


pytestmark = pytest.mark.skipif(library.compiler() is None, reason="no C++ compiler")


def test_the_structures_of_both_libraries_are_the_same() -> None:
    assert cells.load() is not None and views.load() is not None


@pytest.mark.parametrize(
    ("structure", "mirror", "message"),
    [
        ("Item", np.dtype(cells.ITEM.descr[:-1], align=True), "Item.d_pointwise is 96 in C.* and missing in Python"),
        ("Item", np.dtype([(name, np.intc) for name in cells.ITEM.names or ()]), "Item is 104 in C.* and 60 in Python"),
        ("Norms", cells.ITEM, "Norms.dilation is missing in C.* and 8 in Python"),
        (
            "Shape",
            type("Swapped", (ctypes.Structure,), {"_fields_": cells.Shape._fields_[::-1]}),
            "Shape.threads is 20",
        ),
    ],
)
def test_a_structure_that_differs_is_found_when_the_library_is_loaded(monkeypatch, structure, mirror, message) -> None:
    monkeypatch.setitem(cells.MIRRORS, structure, mirror)
    with pytest.raises(AssertionError, match=f"structures differ .*{message}"):
        cells.load()


def test_a_view_that_differs_is_found(monkeypatch) -> None:
    narrow = type(
        "View", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_int32) for name, _ in views.View._fields_]}
    )
    monkeypatch.setattr(views, "View", narrow)
    with pytest.raises(AssertionError, match=r"View is 120 in C.* and 68 in Python"):
        views.load()


def test_a_structure_that_python_lacks_is_found() -> None:
    cdll = library.load("cells", "-DREAL=float")
    assert cdll is not None
    with pytest.raises(AssertionError, match=r"Item is 104 in C.* and missing in Python"):
        check_layouts(cdll, "cells_layout", {name: mirror for name, mirror in cells.MIRRORS.items() if name != "Item"})
