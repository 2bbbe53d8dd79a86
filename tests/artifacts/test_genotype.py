import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from registry import OPS
from ssfnas_cli.artifacts.genotype import (
    MAX_GENOTYPE_BYTES,
    Cell,
    Edge,
    Genotype,
    Provenance,
    parse_genotype,
    parse_published,
    read_genotype,
)
from ssfnas_cli.errors import InputError

SKIP = {"op": "skip_connect", "from": 0, "to": 2}


def cell_value(*edges, concat=(2,)):
    return {"edges": list(edges) or [SKIP], "concat": list(concat)}


def value(**changes):
    whole = {"schema": "ssfnas.genotype/1", "normal": cell_value(), "reduce": cell_value(), "drop_path": "op"}
    return {key: item for key, item in (whole | changes).items() if item is not None}


def parse(document):
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return parse_genotype(data, "g.json")


def refused(document):
    """The one line that a document is refused with."""
    with pytest.raises(InputError) as error:
        parse(document)
    text = str(error.value)
    assert text.startswith("g.json: ") and "\n" not in text and len(text) < 400
    return text


# Round trips


@st.composite
def cells(draw):
    num_nodes = draw(st.integers(1, 5))
    edges = [Edge(op="skip_connect", source=draw(st.integers(0, 1)), target=2)]
    for _ in range(draw(st.integers(0, 12))):
        target = draw(st.integers(2, 1 + num_nodes))
        op = draw(st.sampled_from(OPS.names()[:10]))
        edges.append(Edge(op=op, source=draw(st.integers(0, target - 1)), target=target))
    others = draw(st.sets(st.integers(3, 1 + num_nodes))) if num_nodes > 1 else set()
    return Cell(edges=tuple(draw(st.permutations(edges))), concat=tuple(draw(st.permutations([2, *others]))))


GENOTYPES = st.builds(
    Genotype,
    name=st.none() | st.text(max_size=8),
    normal=cells(),
    reduce=cells(),
    drop_path=st.sampled_from(["op", "node"]),
    provenance=st.builds(
        Provenance,
        run=st.none() | st.just("runs/a b/ü"),
        threshold=st.none() | st.floats(0, 1),
        epoch=st.none() | st.integers(0, 99),
        versions=st.none() | st.just({"torch": "2.6"}),
    ),
)


@settings(max_examples=25, deadline=None)
@given(GENOTYPES)
def test_json_round_trips(genotype):
    data = genotype.to_json()
    again = parse(data)
    assert again == genotype and again.to_json() == data
    assert json.loads(data)["schema"] == "ssfnas.genotype/1" and data.endswith(b"}\n")


@settings(max_examples=60, deadline=None)
@given(cells())
def test_live_is_what_can_be_reached_from_the_inputs(cell):
    """Against a search from the inputs forward, edge by edge."""
    real = [edge for edge in cell.edges if edge.op != "none"]
    reached, grew = {0, 1}, True
    while grew:
        more = {edge.target for edge in real if edge.source in reached} - reached
        reached, grew = reached | more, bool(more)
    live = cell.live()
    assert live.nodes == sorted(reached - {0, 1})
    assert sorted(map(repr, live.edges)) == sorted(repr(edge) for edge in real if edge.source in reached)
    assert live.concat == [node for node in cell.concat if node in reached]
    assert sorted(map(repr, live.dead_edges)) == sorted(repr(edge) for edge in real if edge.source not in reached)
    last = max([edge.target for edge in cell.edges] + list(cell.concat))
    assert live.dead_nodes == [node for node in range(2, last + 1) if node not in reached]


def test_chains_of_dead_nodes_are_pruned_to_the_end_and_reported():
    edges = [
        ("skip_connect", 0, 2),
        ("sep_conv_3x3", 3, 4),
        ("sep_conv_3x3", 4, 5),
        ("skip_connect", 2, 5),
        ("none", 1, 3),
    ]
    cell = Cell(edges=tuple(Edge(op=op, source=a, target=b) for op, a, b in edges), concat=(2, 3, 4, 5))
    live = cell.live()
    assert live.nodes == live.concat == [2, 5] and live.dead_nodes == [3, 4]
    assert [(edge.source, edge.target) for edge in live.dead_edges] == [(3, 4), (4, 5)]


def test_the_same_op_may_stand_twice_on_an_edge():
    genotype = parse(value(normal=cell_value(SKIP, SKIP)))
    assert len(genotype.normal.edges) == 2 and parse(genotype.to_json()) == genotype


def test_a_genotype_without_extras_needs_only_its_cells():
    genotype = parse({"schema": "ssfnas.genotype/1", "normal": cell_value(), "reduce": cell_value()})
    assert genotype.drop_path == "op" and genotype.provenance == Provenance() and genotype.name is None


def test_a_byte_order_mark_is_accepted():
    assert parse(b"\xef\xbb\xbf" + json.dumps(value()).encode()) == parse(value())


def test_provenance_may_hold_more_than_we_know():
    genotype = parse(value(provenance={"run": "runs/a", "note": "by hand"}))
    assert json.loads(genotype.to_json())["provenance"] == {"run": "runs/a", "note": "by hand"}


# Refusals


@pytest.mark.parametrize("cut", [1, 10, 60, -3])
def test_truncated_json_is_refused(cut):
    text = refused(json.dumps(value()).encode()[:cut])
    assert re.fullmatch(r"g\.json: is not whole JSON: .* at line \d+, column \d+", text)


def test_empty_input_is_refused():
    assert refused(b"") == refused(b" \n\t ") == "g.json: is empty"


@pytest.mark.parametrize("data", [b"\xff\xfe{}", b"\x00\x01\x02\x80"])
def test_bytes_that_are_no_text_are_refused(data):
    assert re.fullmatch(r"g\.json: is not JSON: not UTF-8 text at byte \d", refused(data))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_numbers_that_are_not_finite_are_refused(number):
    data = json.dumps(value(provenance={"threshold": 12345})).replace("12345", number).encode()
    assert number in refused(data)


def test_a_key_that_stands_twice_is_refused():
    data = json.dumps(value()).encode()[:-1] + b', "normal": {}}'
    assert refused(data) == "g.json: the key 'normal' stands twice"
    inner = json.dumps(value()).replace('"from": 0', '"from": 0, "from": 1', 1).encode()
    assert refused(inner) == "g.json: the key 'from' stands twice"


def test_bottomless_nesting_is_refused():
    assert "nested too deeply" in refused(b"[" * 200_000)
    assert "nested too deeply" in refused(b'{"a":' * 100_000)


def test_a_genotype_of_a_mebibyte_is_refused():
    data = json.dumps(value(name="x" * MAX_GENOTYPE_BYTES)).encode()
    assert "more than a genotype can have (1,048,576)" in refused(data)
    assert parse(json.dumps(value(name="x" * 10_000)).encode()).name == "x" * 10_000


@pytest.mark.parametrize("op", ["sep_conv3x3", "sep_conv_3X3", "sep_conv_3x33"])
def test_an_unknown_op_gets_a_suggestion(op):
    text = refused(value(reduce=cell_value(SKIP | {"op": op})))
    assert f"unknown op '{op}'. Did you mean 'sep_conv_3x3'?" in text


@pytest.mark.parametrize(("source", "target"), [(2, 2), (4, 3), (5, 2)])
def test_a_cycle_is_refused(source, target):
    text = refused(value(normal=cell_value(SKIP, {"op": "skip_connect", "from": source, "to": target})))
    assert f"an edge from node {source} to node {target} would make a cycle" in text and "normal.edges.1" in text


@pytest.mark.parametrize("schema", ["ssfnas.genotype/2", "ssfnas.genotype/1.5", "ssfnas.genotype/10"])
def test_a_newer_schema_is_refused(schema):
    text = refused(value(schema=schema, something_new=1))
    assert f"has schema '{schema}', newer than this ssfnas reads ('ssfnas.genotype/1'): upgrade ssfnas" in text


@pytest.mark.parametrize("schema", [None, "ssfnas.dataset/1", 1, ["ssfnas.genotype/1"], "ssfnas.genotype"])
def test_another_schema_is_refused(schema):
    assert "is not a genotype: its schema is" in refused(value(schema=schema))


def test_a_run_reference_is_refused_with_the_mend():
    text = refused({"kind": "search-run", "path": "runs/x", "state": "done"})
    assert text == "g.json: is a search-run, not a genotype: derive one with 'ssfnas derive runs/x'"


@pytest.mark.parametrize("kind", ["retrain-run", "metrics", "dataset"])
def test_other_documents_are_called_what_they_are(kind):
    assert refused({"kind": kind, "path": "x"}) == f"g.json: is a {kind}, not a genotype"


@pytest.mark.parametrize("document", [[], "text", 3, None, [value()]])
def test_json_that_is_no_object_is_refused(document):
    assert refused(document) == "g.json: is not a genotype: expected an object with a 'schema'"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normal": None}, "normal: Field required"),
        ({"reduce": cell_value(SKIP | {"from": -1})}, "reduce.edges.0.from"),
        ({"reduce": cell_value(SKIP | {"from": 0.5})}, "reduce.edges.0.from"),
        ({"reduce": cell_value(SKIP | {"to": 1})}, "reduce.edges.0.to"),
        ({"reduce": cell_value(SKIP | {"to": 64})}, "reduce.edges.0.to"),
        ({"reduce": cell_value(SKIP | {"weight": 1})}, "reduce.edges.0.weight: Extra inputs are not permitted"),
        ({"reduce": cell_value(SKIP, concat=[2, 2])}, "a node is concatenated twice"),
        ({"reduce": cell_value(SKIP, concat=[1])}, "only intermediate nodes"),
        ({"reduce": cell_value(SKIP, concat=[])}, "the cell would have no output"),
        ({"reduce": cell_value(SKIP, concat=[3])}, "the cell would have no output"),
        ({"reduce": cell_value(SKIP | {"op": "none"})}, "the cell would have no output"),
        ({"op_options": {"skip_connect": {"size": 3}}}, "'skip_connect' has no option 'size'"),
        ({"drop_path": "cell"}, "drop_path: Input should be 'op' or 'node'"),
        ({"norml": cell_value()}, "norml: Extra inputs are not permitted"),
    ],
)
def test_documents_that_make_no_network_are_refused(changes, message):
    assert message in refused(value(**changes))


def test_files_are_read_and_folders_refused(tmp_path):
    (tmp_path / "g.json").write_text(json.dumps(value()))
    assert read_genotype(tmp_path / "g.json") == parse(value())
    with pytest.raises(InputError, match=r"missing\.json: no such file"):
        read_genotype(tmp_path / "missing.json")
    with pytest.raises(InputError, match="is a folder, not a genotype"):
        read_genotype(tmp_path)
    (tmp_path / "alphas.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="is a folder, not a genotype: derive one with 'ssfnas derive"):
        read_genotype(tmp_path)


def test_a_huge_file_is_not_read(tmp_path):
    with (tmp_path / "g.json").open("wb") as stream:
        stream.truncate(1 << 40)  # sparse: a terabyte that takes no room
    with pytest.raises(InputError, match="is more than such a file can have"):
        read_genotype(tmp_path / "g.json")


# Published texts

DARTS_V1 = """Genotype(normal=[('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 0), ('sep_conv_3x3', 1),
    ('skip_connect', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 2)], normal_concat=[2, 3, 4, 5],
    reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 0), ('max_pool_3x3', 0),
    ('skip_connect', 2), ('skip_connect', 2), ('avg_pool_3x3', 0)], reduce_concat=[2, 3, 4, 5])"""
FAIR = """Genotype(normal=[('sep_conv_3x3', 2, 0), ('sep_conv_5x5', 2, 1), ('max_pool_3x3', 4, 0),
    ('skip_connect', 5, 4), ('skip_connect', 5, 4)], normal_concat=range(2, 6),
    reduce=[('skip_connect', 3, 1), ('max_pool_3x3', 5, 4)],
    reduce_concat=range(2, 6))"""


def triples(cell):
    return [(edge.op, edge.source, edge.target) for edge in cell.edges]


def test_darts_pairs_give_two_edges_to_each_node_in_turn():
    genotype = parse_published(DARTS_V1, "x")
    assert triples(genotype.normal) == [
        *(("sep_conv_3x3", 1, 2), ("sep_conv_3x3", 0, 2)),
        *(("skip_connect", 0, 3), ("sep_conv_3x3", 1, 3)),
        *(("skip_connect", 0, 4), ("sep_conv_3x3", 1, 4)),
        *(("sep_conv_3x3", 0, 5), ("skip_connect", 2, 5)),
    ]
    assert genotype.normal.concat == genotype.reduce.concat == (2, 3, 4, 5)
    assert genotype.drop_path == "op" and genotype.name is None


def test_fairdarts_triples_are_op_to_from_and_their_concat_is_recomputed():
    genotype = parse_published(FAIR, "x", "FairDARTS_x")
    assert triples(genotype.normal) == [
        *(("sep_conv_3x3", 0, 2), ("sep_conv_5x5", 1, 2), ("max_pool_3x3", 0, 4)),
        *(("skip_connect", 4, 5), ("skip_connect", 4, 5)),
    ]
    assert genotype.normal.concat == (2, 4, 5)
    assert genotype.reduce.concat == (3,), "5 is fed by a node without input only"
    assert genotype.drop_path == "node" and genotype.name == "FairDARTS_x"


@pytest.mark.parametrize(
    "concat", ["range(2, 6)", "list(range(2, 6))", "[2, 3, 4, 5]", "(2, 3, 4, 5)", "tuple(range(2, 6))"]
)
def test_the_concat_may_be_written_as_a_range(concat):
    text = DARTS_V1.replace("[2, 3, 4, 5]", concat)
    assert parse_published(text, "x") == parse_published(DARTS_V1, "x")


FILE = f"""
from collections import namedtuple

Genotype = namedtuple('Genotype', 'normal normal_concat reduce reduce_concat')

PRIMITIVES = ['none', 'max_pool_3x3']
ONE = {DARTS_V1}
TWO = {FAIR}
DARTS = TWO
"""


def test_of_a_file_with_several_a_name_picks_one_and_names_it():
    assert parse_published(FILE, "genotypes.py", "ONE") == parse_published(DARTS_V1, "x", "ONE")
    assert parse_published(FILE, "genotypes.py", "TWO").drop_path == "node"


def test_of_a_file_with_several_the_last_is_taken_without_a_name():
    assert parse_published(FILE, "genotypes.py").normal == parse_published(FAIR, "x").normal


def test_a_single_assignment_needs_no_name():
    assert parse_published(f"  DARTS_V1 = {DARTS_V1}\n", "x").normal == parse_published(DARTS_V1, "x").normal


def test_a_name_that_is_not_there_is_an_error():
    with pytest.raises(InputError, match=r"genotypes\.py: holds no genotype named 'THREE'\. It names ") as refusal:
        parse_published(FILE, "genotypes.py", "THREE")
    assert all(name in str(refusal.value) for name in re.findall(r"^(\w+) = Genotype", FILE, re.MULTILINE))


@pytest.mark.parametrize("text", [DARTS_V1, f"  DARTS_V1 = {DARTS_V1}"])
def test_a_published_text_where_json_is_asked_for_names_the_command_that_imports_it(text):
    with pytest.raises(InputError, match=r"cells\.txt: is a published .* 'ssfnas import-genotype'"):
        parse_genotype(text.encode(), "cells.txt")


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch hacked')",
        "Genotype(normal=__import__('os').system('touch hacked'), normal_concat=[2], reduce=[], reduce_concat=[2])",
        "Genotype(normal=[(open('hacked', 'w'), 0)], normal_concat=[2], reduce=[], reduce_concat=[2])",
        "Genotype(normal=eval('1'), normal_concat=range(2, 6), reduce=[], reduce_concat=[2])",
        "Genotype(normal=[x for x in ()], normal_concat=range(2, 6), reduce=[], reduce_concat=[2])",
        "Genotype(**{'normal': 1})",
        "G = open('hacked', 'w')",
        "import os; os.mkdir('hacked')",
        "(lambda: open('hacked', 'w'))()",
        DARTS_V1.replace("[2, 3, 4, 5]", "range(open('hacked', 'w'))"),
    ],
)
def test_nothing_in_a_text_is_run(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        parse_published(text, "evil.txt")
    assert str(error.value).startswith("evil.txt: ") and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "concat", ["range(-10**12, 6)", "range(-1000000000000, 6)", "range(2, 10**12)", "range(2, 6, 1)", "range()"]
)
def test_a_range_that_would_fill_the_memory_or_is_none_is_refused(concat):
    with pytest.raises(InputError):
        parse_published(DARTS_V1.replace("[2, 3, 4, 5]", concat), "x")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("('sep_conv_3x3', 1)", "('sep_conv3x3', 1)", "Did you mean 'sep_conv_3x3'"),
        ("('sep_conv_3x3', 1), ", "", "needs two for every node"),
        ("('sep_conv_3x3', 1)", "('sep_conv_3x3', 2, 1)", "pairs or"),
        ("('sep_conv_3x3', 1)", "('sep_conv_3x3', 2)", "would make a cycle"),
        ("('sep_conv_3x3', 1)", "('sep_conv_3x3', 'a')", "valid integer"),
        ("normal_concat=[2, 3, 4, 5],", "", "the genotype has no normal_concat"),
        ("normal_concat=[2, 3, 4, 5]", "normal_concat=[1]", "only intermediate nodes"),
        ("normal_concat=[2, 3, 4, 5]", "normal_concat=3", "x: "),
        ("Genotype(normal=[", "Genotype(normal=[3, ", "x: "),
        (")], normal_concat", ")]], normal_concat", "holds no 'Genotype(normal=[...], ...)'"),
    ],
)
def test_a_wrong_text_gets_one_line(old, new, message):
    assert old in DARTS_V1
    with pytest.raises(InputError) as error:
        parse_published(DARTS_V1.replace(old, new, 1), "x")
    assert message in str(error.value) and str(error.value).startswith("x: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "hello", "{}", "((((", "Genotype", "\x00", "(" * 5000, "3 + 4"])
def test_other_texts_are_no_genotypes(text):
    with pytest.raises(InputError, match="x: holds no 'Genotype"):
        parse_published(text, "x")


def test_models_do_not_change():
    genotype = parse(value())
    with pytest.raises(ValidationError, match="frozen"):
        genotype.drop_path = "node"
