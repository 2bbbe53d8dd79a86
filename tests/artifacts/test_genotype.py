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
    live = cell.pruned()
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
    live = cell.pruned()
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
        ({"reduce": cell_value(*[SKIP] * 257)}, "reduce.edges: Tuple should have at most 256 items"),
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


def test_models_do_not_change():
    genotype = parse(value())
    with pytest.raises(ValidationError, match="frozen"):
        genotype.drop_path = "node"
