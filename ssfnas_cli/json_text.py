"""JSON as text that a person can read, too: a list of plain values, such as a row of a matrix, is one line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def layout_json(value: Any, depth: int = 0) -> str:
    """JSON, two spaces a level, keys in the order given; a list without lists or objects in it stays on one line.

    Raises:
        ValueError: it holds NaN or an infinity.
    """
    inner, outer = "  " * (depth + 1), "  " * depth
    if isinstance(value, Mapping) and value:
        items = [f"{_plain(str(key))}: {layout_json(item, depth + 1)}" for key, item in value.items()]
        opening, closing = "{", "}"
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value):
        items = [layout_json(item, depth + 1) for item in value]
        opening, closing = "[", "]"
    else:
        return _plain(value)
    return opening + "\n" + ",\n".join(inner + item for item in items) + f"\n{outer}{closing}"


def _plain(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
