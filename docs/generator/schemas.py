"""Tables of pydantic models: what each field may hold, its default and what it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

from generator.markdown import code, table, text

Schema = Mapping[str, Any]
_NUMBERS = {"integer": "whole number", "number": "number"}


class Described:
    """A model's JSON schema.

    Args:
        model: the model.
        refer: the Markdown that stands for another model in a field, by its name.
    """

    def __init__(self, model: type[BaseModel], refer: Callable[[str], str] = code):
        self.schema = model.model_json_schema(by_alias=True)
        self.fields: Mapping[str, Schema] = self.schema["properties"]
        self._refer = refer

    def values(self, name: str) -> str:
        """What a field may hold."""
        return self._values(self.fields[name])

    def default(self, name: str) -> str:
        """The default of a field; nothing if it must be given."""
        return show_value(self.fields[name]["default"]) if "default" in self.fields[name] else ""

    def what(self, name: str) -> str:
        """The description of a field."""
        usual = "the format and its version" if name == "schema" else ""
        return text(self.fields[name].get("description", usual))

    def _values(self, schema: Schema) -> str:
        if "$ref" in schema:
            return self._refer(schema["$ref"].rpartition("/")[2])
        if "const" in schema:
            return code(schema["const"])
        if "enum" in schema:
            return ", ".join(map(show_value, schema["enum"]))
        if "anyOf" in schema:
            return " or ".join(self._values(one) for one in schema["anyOf"])
        return self._typed(schema)

    def _typed(self, schema: Schema) -> str:
        match schema.get("type"):
            case "array" if "prefixItems" in schema:
                return f"{len(schema['prefixItems'])} numbers"
            case "array":
                return f"a list of {self._plural(schema['items'])}"
            case "object" if isinstance(inner := schema.get("additionalProperties"), Mapping) and "$ref" in inner:
                return f"by name, {self._values(inner)}"
            case "object":
                return "an object"
            case "boolean":
                return f"{code('true')}, {code('false')}"
            case "integer" | "number" as kind:
                return f"a {_NUMBERS[kind]}{_bounds(schema)}"
            case "null":
                return code("null")
            case "string":
                return "text"
        return "any value"

    def _plural(self, schema: Schema) -> str:
        kind = schema.get("type")
        if kind in _NUMBERS:
            return f"{_NUMBERS[kind]}s{_bounds(schema)}"
        return "texts" if kind == "string" else self._values(schema)


def field_table(model: type[BaseModel]) -> str:
    """A table of all fields of a model of a file."""
    described = Described(model, lambda name: f"[{name}](#{name.lower()})")
    required = set(described.schema.get("required", ())) | {"schema"}
    rows = [
        [code(name), described.values(name), described.what(name) + ("" if name in required else " (may be absent)")]
        for name in described.fields
    ]
    return table(["key", "values", "what it is"], rows)


def show_value(value: Any) -> str:
    """A default as it is written in a setting."""
    if isinstance(value, Mapping):
        return code(value["name"]) if "name" in value else ""
    if isinstance(value, bool):
        return code(str(value).lower())
    if isinstance(value, list | tuple):
        return ", ".join(map(show_value, value))
    if value == "":
        return "empty"
    return "" if value is None else code(f"{value:g}" if isinstance(value, float) else value)


def _bounds(schema: Schema) -> str:
    limits = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    parts = [f"{word} {_number(schema[key])}" for key, word in limits.items() if key in schema]
    between = " " if {"minimum", "maximum"} <= schema.keys() else ", "
    even = ", even" if schema.get("multipleOf") == 2 else ""
    return (f" {between.join(parts)}" if parts else "") + even


def _number(value: float) -> str:
    if value >= 2**31 and (power := round(value).bit_length() - 1) and value == 2**power:
        return f"2<sup>{power}</sup>"
    return f"{value:,g}" if isinstance(value, float) else f"{value:,}"
