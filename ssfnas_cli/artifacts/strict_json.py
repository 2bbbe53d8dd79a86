"""A JSON parser that rejects input which the standard parser accepts."""

from __future__ import annotations

import json
from typing import Any

from ssfnas_cli.errors import InputError

MAX_DEPTH = 100  # recursion over a value then stays far from Python's limit
MAX_DIGITS = 300  # of an integer, so that it converts to a finite float


def parse_json(data: bytes, where: str) -> Any:
    """Parse JSON. Reject duplicate keys, NaN, numbers such as 1e999, very long integers and deep nesting.

    Args:
        data: the text in UTF-8.
        where: its origin, for messages.

    Raises:
        InputError: the text is invalid. The message is one line that begins with `where`.
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
    """Reject lone surrogates, which can be parsed but not encoded."""
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
