"""Parsing of genotypes from source files, logs and issues of the DARTS family of repositories.

The text is parsed to a syntax tree and never evaluated. These formats of a cell are supported, with all wrappers that
numpy and torch print around numbers and lists:

- `(op, from)`, two for each node in order (DARTS, P-DARTS, PC-DARTS);
- `(op, to, from)` or `(op, from, to)`, any number (FairDARTS); the order follows from the numbers, since a node has a
  higher number than its inputs;
- `(op, from, weight)`, of forks that print the weights of the ops; it is treated like `(op, from)`;
- a list of `(op, from)` for each node, or a dictionary from nodes to such lists.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from pydantic import ValidationError

from registry.core import did_you_mean
from ssfnas_cli.artifacts.genotype import MAX_EDGES, MAX_NODES, Cell, Edge, Genotype
from ssfnas_cli.console import log
from ssfnas_cli.errors import InputError

FIELDS = ("normal", "normal_concat", "reduce", "reduce_concat")
WRAPPERS = re.compile(r"(u?int\d*|intp|int_|float\d*|str_?|array|asarray|tensor|list|tuple)")
_START = re.compile(r"(?:(\w+)\s*(?::\s*\w+\s*)?=\s*)?(?:\w+\.)*\w*Genotype\w*\s*\(|(?:(\w+)\s*=\s*)?\{\s*['\"]normal")
_UNPARSABLE = (SyntaxError, ValueError, RecursionError, MemoryError)
Triples = list[tuple[Any, Any, Any]]


def parse_published(text: str, where: str, name: str | None = None) -> Genotype:
    """Parse the last genotype in a text, or the one that is assigned to `name`.

    Nodes without input are removed from the concatenation.

    Raises:
        InputError: there is no genotype, or its format is not supported. The message names the entry.
    """
    found, primitives = _find_in_source(text)
    found = found or _find_in_log(text, where)
    if name is not None and list(found) == [""]:
        found = {name: found[""]}  # it has no name of its own
    if name is not None and found and name not in found:
        hint = did_you_mean(name, list(found))
        raise InputError(f"{where}: holds no genotype named '{name}'.{hint} It names {', '.join(found)}")
    node = found.get(name or next(reversed(found), ""))
    if node is None:
        cut = ": what follows its last 'Genotype(' is cut off or not well formed" if _START.search(text) else ""
        raise InputError(f"{where}: holds no 'Genotype(normal=[...], ...)'{cut}")
    try:
        fields = _fields(node, primitives)
        for field in FIELDS:
            if field not in fields:
                raise ValueError(f"the genotype has no {field}")
        edges = {kind: _edges(fields[kind], kind) for kind in ("normal", "reduce")}
        cells = {kind: _cell(listed, fields[f"{kind}_concat"], kind) for kind, (_, listed) in edges.items()}
        fair = any(form == "to" for form, _ in edges.values())
        return Genotype(name=name, drop_path="node" if fair else "op", **cells)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise InputError(f"{where}: {message}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{where}: {error}") from None


def _find_in_source(text: str) -> tuple[dict[str, ast.expr], list[str]]:
    """The genotypes that a Python source assigns, by name (empty for a single expression), and its list PRIMITIVES."""
    try:
        tree = ast.parse(text.strip())
    except _UNPARSABLE:
        return {}, []
    found: dict[str, ast.expr] = {}
    primitives: list[str] = []
    for statement in tree.body:
        if isinstance(statement, ast.Expr) and len(tree.body) == 1 and _is_genotype(statement.value):
            found[""] = statement.value
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        value = getattr(statement, "value", None)
        if names and value is not None and _is_genotype(value):
            found |= dict.fromkeys(names, value)
        elif names and names[0] == "PRIMITIVES" and isinstance(value, ast.List | ast.Tuple):
            primitives = [str(item.value) if isinstance(item, ast.Constant) else "" for item in value.elts]
    return found, primitives


def _is_genotype(node: ast.expr) -> bool:
    if isinstance(node, ast.Dict):
        return any(isinstance(key, ast.Constant) and key.value == "normal" for key in node.keys)
    if not isinstance(node, ast.Call):
        return False
    return any(keyword.arg == "normal" for keyword in node.keywords) or (
        ast.unparse(node.func).endswith("Genotype") and not _is_namedtuple(node)
    )


def _is_namedtuple(node: ast.Call) -> bool:
    return bool(node.args) and isinstance(node.args[0], ast.Constant)


def _find_in_log(text: str, where: str) -> dict[str, ast.expr]:
    """The genotypes anywhere in a text, by the names they are assigned to."""
    found: dict[str, ast.expr] = {}
    node = None
    starts = [*_START.finditer(text)]
    for start, end in pairwise([*(match.start() for match in starts), len(text)]):
        match = _START.match(text, start)
        assert match is not None
        if (node := _parse_expression(text[start:end])) is not None:
            label = match[1] or match[2] or ""
            label = "" if label.lower() == "genotype" else label  # logs write "genotype = ..."
            found.pop(label, None)  # so that the dictionary is in the order of the last occurrences
            found[label] = node
    if found and node is None:
        log.warning("%s: the last genotype is cut off or not well formed: taking the one before it", where)
    return found


def _parse_expression(text: str) -> ast.expr | None:
    """Parse the expression at the beginning of a text. Its quotes may be escaped, if the text was quoted."""
    text = re.sub(r"^(\w+)\s*(:\s*\w+\s*)?=\s*", "", text)
    for written in (text, text.replace("\\'", "'").replace('\\"', '"')):
        depth = 0
        for bracket in re.finditer(r"[()\[\]{}]", written):
            depth += 1 if bracket[0] in "([{" else -1
            if depth == 0:
                try:
                    node = ast.parse(written[: bracket.end()].strip(), mode="eval").body
                except _UNPARSABLE:
                    break
                return node if _is_genotype(node) else None
    return None


def _fields(node: ast.expr, primitives: list[str]) -> dict[str, Any]:
    """The values of the fields of a genotype."""
    if isinstance(node, ast.Dict):
        return {str(_value(key, primitives)): _value(value, primitives) for key, value in _items(node)}
    assert isinstance(node, ast.Call)
    given = dict(zip(FIELDS, node.args, strict=False))
    given |= {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
    return {name: _value(value, primitives) for name, value in given.items()}


def _items(node: ast.Dict) -> Iterator[tuple[ast.expr, ast.expr]]:
    for key, value in zip(node.keys, node.values, strict=True):
        if key is None:
            raise ValueError("unpacks another dictionary, which is not evaluated")
        yield key, value


def _value(node: ast.expr, primitives: list[str]) -> Any:
    """The value of a literal, `range(a, b)`, an entry of PRIMITIVES, or one of these in a wrapper of numpy or torch."""
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item, primitives) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {_value(key, primitives): _value(value, primitives) for key, value in _items(node)}
    if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("PRIMITIVES"):
        return _primitive(_value(node.slice, primitives), primitives)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
        called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        if WRAPPERS.fullmatch(called) and len(node.args) == 1:
            return _value(node.args[0], primitives)
        bounds = [_value(argument, primitives) for argument in node.args] if called == "range" else []
        if len(bounds) in (1, 2) and all(isinstance(bound, int) and 0 <= bound <= MAX_NODES for bound in bounds):
            return list(range(*bounds))
    try:
        return ast.literal_eval(node)
    except ValueError:
        written = ast.unparse(node)
        raise ValueError(f"'{written if len(written) < 60 else written[:59] + '…'}' is no literal") from None


def _primitive(number: Any, primitives: list[str]) -> str:
    if not primitives:
        raise ValueError(f"names an op by its number, PRIMITIVES[{number}], and does not hold the list PRIMITIVES")
    if not isinstance(number, int) or not 0 <= number < len(primitives):
        raise ValueError(f"PRIMITIVES[{number}] is not in its list PRIMITIVES of {len(primitives)}")
    return primitives[number]


def _edges(entries: Any, kind: str) -> tuple[str, Triples]:
    """The format of a cell (`to` if each entry names its target node) and its edges as (op, from, to)."""
    if isinstance(entries, Mapping):
        return "nodes", _edges_of_nodes(list(entries.items()), kind)
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{kind}: should be a list of (op, from) pairs or (op, to, from) triples")
    if all(isinstance(entry, list) and entry and isinstance(entry[0], list) for entry in entries):
        return "nodes", _edges_of_nodes(list(enumerate(entries, start=2)), kind)
    _check_number(entries, kind)
    checked = [_entry(entry, f"{kind}, entry {number}") for number, entry in enumerate(entries, start=1)]
    lengths = {len(entry) for entry in checked}
    if len(lengths) > 1:
        raise ValueError(f"{kind}: mixes (op, from) pairs or triples with a weight and (op, to, from) triples")
    if lengths == {2}:
        if len(checked) % 2:
            raise ValueError(f"{kind}: a cell of (op, from) pairs needs two for every node; there are {len(checked)}")
        return "pairs", [(op, source, 2 + place // 2) for place, (op, source) in enumerate(checked)]
    if all(isinstance(a, int) and isinstance(b, int) and a < b for _, a, b in checked):
        return "to", [(op, source, target) for op, source, target in checked]
    return "to", [(op, source, target) for op, target, source in checked]


def _edges_of_nodes(nodes: list[tuple[Any, Any]], kind: str) -> Triples:
    """Convert lists of (op, from), one for each node, to edges."""
    _check_number([entry for _, entries in nodes if isinstance(entries, list) for entry in entries], kind)
    edges: Triples = []
    for node, entries in nodes:
        if not isinstance(node, int) or not isinstance(entries, list):
            raise ValueError(f"{kind}: should have a list of (op, from) pairs for node {node!r}, which is a number")
        for number, entry in enumerate(entries, start=1):
            checked = _entry(entry, f"{kind}, node {node}, entry {number}")
            if len(checked) != 2:
                raise ValueError(f"{kind}, node {node}, entry {number}: should be (op, from)")
            edges.append((checked[0], checked[1], node))
    return edges


def _check_number(entries: list[Any], kind: str) -> None:
    if len(entries) > MAX_EDGES:
        raise ValueError(f"{kind}: {len(entries):,} edges are more than a cell can have ({MAX_EDGES})")


def _entry(entry: Any, place: str) -> list[Any]:
    """Check an entry and return it as [op, number] or [op, number, number], without a weight."""
    shown = repr(tuple(entry) if isinstance(entry, list) else entry)
    place = f"{place}, {shown if len(shown) < 60 else shown[:59] + '…'}"
    if not isinstance(entry, list) or len(entry) not in (2, 3):
        raise ValueError(f"{place}: should be one of (op, from) pairs or (op, to, from) triples")
    if isinstance(entry[0], int):
        raise ValueError(f"{place}: names its op by a number: put the op's name there")
    if len(entry) == 3 and isinstance(entry[2], float):
        entry = entry[:2]  # (op, from, weight)
    if not isinstance(entry[0], str) or not all(type(number) is int for number in entry[1:]):
        raise ValueError(f"{place}: should be an op's name and a valid integer for each node")
    return entry


def _cell(edges: Triples, concat: Any, kind: str) -> Cell:
    if not isinstance(concat, list):
        raise ValueError(f"{kind}_concat: should be a list of nodes")
    whole = Cell(edges=tuple(Edge(op=op, source=a, target=b) for op, a, b in edges), concat=tuple(concat))
    return Cell(edges=whole.edges, concat=tuple(whole.pruned().concat))
