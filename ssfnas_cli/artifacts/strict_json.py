"""JSON without what the standard parser lets through."""

from __future__ import annotations

import json
from typing import Any

from ssfnas_cli.errors import InputError

MAX_DEPTH = 100  # what recurses over a value then stays far from Python's limit
MAX_DIGITS = 300  # of a whole number; every such number is a finite float


def parse_json(data: bytes, where: str) -> Any:
    """Parse JSON, refusing duplicate keys, NaN, 1e999, whole numbers without end and bottomless nesting.

    Raises:
        InputError: one line that names `where`.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: is not JSON: not UTF-8 text at byte {error.start}") from None
    if not text.strip():
        raise InputError(f"{where}: is empty")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
            parse_int=_bounded_int,
        )
        _refuse_depth(value)
        if "\\ud" in text or "\\uD" in text:
            _refuse_lone_surrogates(value)
        return value
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where}: is not whole JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except RecursionError:
        raise InputError(f"{where}: is nested too deeply") from None
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key '{twice}' stands twice")
    return keys


def _refuse_lone_surrogates(value: Any) -> None:
    """Half a UTF-16 pair parses, but cannot be written again."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("holds half a character (a lone surrogate)") from None


def _refuse_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return
    raise ValueError("is nested too deeply")


def _bounded_int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"holds a number of {len(text):,} digits")
    return int(text)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"holds {name}, which is no number")


def _finite_float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"holds {text}, which is not finite")
    return value
