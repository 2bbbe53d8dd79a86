"""Genotypes as other repositories write them: imported, or refused in one line; never evaluated."""

import re

import pytest

from ssfnas_cli.artifacts.genotype import parse_genotype
from ssfnas_cli.artifacts.published import parse_published
from ssfnas_cli.console import log
from ssfnas_cli.errors import InputError

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


# Logs and forks

NORMAL = [
    ("sep_conv_3x3", 1, 2),
    ("sep_conv_3x3", 0, 2),
    ("skip_connect", 0, 3),
    ("sep_conv_3x3", 1, 3),
    ("skip_connect", 0, 4),
    ("sep_conv_3x3", 1, 4),
    ("sep_conv_3x3", 0, 5),
    ("skip_connect", 2, 5),
]
ONE_LINE = " ".join(DARTS_V1.split())
AS_DICTIONARY = re.sub(r"(normal|reduce)(_concat)?=", r"'\1\2': ", ONE_LINE).replace("Genotype(", "{")[:-1] + "}"
LOG = f"""2025-01-02 03:04:05,677 epoch 7 lr 2.0e-03
2025-01-02 03:04:05,678 genotype = {ONE_LINE.replace("skip_connect", "avg_pool_3x3")}
2025-01-02 03:04:06,678 genotype = {ONE_LINE}
2025-01-02 03:05:00,000 train_acc 50.0 (of 100"""


@pytest.mark.parametrize(
    "text",
    [
        f"2025-01-02 03:04:05,678 genotype = {ONE_LINE}",
        LOG,
        f'"{ONE_LINE}"',
        "'" + ONE_LINE.replace("'", "\\'") + "'",
        f"Our best cell:\n\n```python\ngenotype = {DARTS_V1}\n```\n\nThanks!",
        f"DARTS: Genotype = {DARTS_V1}",
        f"best: genotypes.Genotype = genotypes.{ONE_LINE}",
        re.sub(r"', (\d)\)", r"', np.int64(\1))", ONE_LINE),
        re.sub(r"\('(\w+)', (\d)\)", r"(np.str_('\1'), tensor(\2, device='cuda:0'))", ONE_LINE),
        ONE_LINE.replace("[2, 3, 4, 5]", "array([2, 3, 4, 5], dtype=int64)"),
        re.sub(r"', (\d)\)", r"', \1, 0.2718)", ONE_LINE),
        re.sub(r"', (\d)\)", r"', \1, np.float32(0.2718))", ONE_LINE),
        re.sub(r"\(('\w+', \d)\), \(('\w+', \d)\)", r"[(\1), (\2)]", ONE_LINE),
        AS_DICTIONARY,
        "genotype = "
        + re.sub(r"(normal|reduce)(_concat)?=", r"'\1\2': ", ONE_LINE).replace("Genotype(", "{")[:-1]
        + "}",
        re.sub(r"(normal|reduce)(_concat)?=", "", ONE_LINE),
    ],
)
def test_what_logs_and_forks_print_is_the_same_genotype(text):
    genotype = parse_published(text, "log.txt")
    assert triples(genotype.normal) == NORMAL
    assert genotype == parse_published(DARTS_V1, "x")


def test_nodes_may_have_lists_of_any_length_and_be_keys():
    cell = "{2: [('sep_conv_3x3', 0)], 3: [('skip_connect', 1), ('sep_conv_3x3', 2), ('max_pool_3x3', 0)]}"
    genotype = parse_published(f"Genotype(normal={cell}, normal_concat=[2, 3], reduce={cell}, reduce_concat=[3])", "x")
    assert triples(genotype.normal) == [
        *(("sep_conv_3x3", 0, 2), ("skip_connect", 1, 3), ("sep_conv_3x3", 2, 3), ("max_pool_3x3", 0, 3))
    ]


def test_triples_whose_second_number_is_higher_are_op_from_to():
    swapped = re.sub(r"', (\d), (\d)\)", r"', \2, \1)", FAIR)
    assert parse_published(swapped, "x") == parse_published(FAIR, "x")


def test_ops_by_number_need_the_list_of_their_source():
    by_number = ONE_LINE.replace("'sep_conv_3x3'", "PRIMITIVES[1]").replace("'skip_connect'", "PRIMITIVES[0]")
    text = f"PRIMITIVES = ['skip_connect', 'sep_conv_3x3']\nG = {by_number}"
    assert triples(parse_published(text, "x").normal) == NORMAL
    with pytest.raises(InputError, match=r"x: names an op by its number, PRIMITIVES\[1\]"):
        parse_published(by_number, "x")
    with pytest.raises(InputError, match=r"PRIMITIVES\[9\] is not in its list PRIMITIVES of 2"):
        parse_published(text.replace("PRIMITIVES[1]", "PRIMITIVES[9]"), "x")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("('sep_conv_3x3', 1)", "(4, 1)", ["normal, entry 1, (4, 1)", "names its op by a number"]),
        (
            "('skip_connect', 0)",
            "('skip_connect', 0, 1, 2)",
            ["normal, entry 3, ('skip_connect', 0, 1, 2)", "pairs or"],
        ),
        ("('skip_connect', 0)", "('skip_connect', 0.5)", ["normal, entry 3", "valid integer"]),
        ("('skip_connect', 0)", "('skip_connect', 3, 0)", ["normal: mixes"]),
        ("('skip_connect', 0)", "best_edge(0)", ["'best_edge(0)' is no literal"]),
        ("[2, 3, 4, 5]", "3", ["normal_concat: should be a list of nodes"]),
    ],
)
def test_an_unknown_form_is_refused_with_the_entry(old, new, words):
    with pytest.raises(InputError) as refusal:
        parse_published(ONE_LINE.replace(old, new, 1), "x")
    assert all(word in str(refusal.value) for word in words), refusal.value


def test_a_text_that_is_cut_off_is_said_to_be(caplog, monkeypatch):
    monkeypatch.setattr(log, "propagate", True)
    with pytest.raises(InputError, match="what follows its last 'Genotype\\(' is cut off or not well formed"):
        parse_published(ONE_LINE[: ONE_LINE.rindex("reduce_concat")], "x")
    genotype = parse_published(LOG[: LOG.rindex("reduce_concat")], "log.txt")
    assert "avg_pool_3x3" in genotype.normal.op_counts(), "it is the one before"
    assert "log.txt: the last genotype is cut off or not well formed: taking the one before it" in caplog.text


@pytest.mark.parametrize("entry", ["('skip_connect', 0)", "('skip_connect', 2, 0)", "[('skip_connect', 0)]"])
def test_more_edges_than_a_cell_can_have_are_refused_before_anything_is_built(entry):
    many = "[" + ", ".join([entry] * 3000) + "]"
    text = f"Genotype(normal={many}, normal_concat=[2], reduce={many}, reduce_concat=[2])"
    with pytest.raises(InputError, match="normal: 3,000 edges are more than a cell can have \\(256\\)"):
        parse_published(text, "x")


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "Genotype(normal=" + "[" * 100_000, "Genotype(" * 100_000, "{'normal'" * 100_000, "-" * 10**6],
)
def test_bottomless_and_endless_texts_are_no_genotypes(text):
    with pytest.raises(InputError, match="x: holds no 'Genotype"):
        parse_published(text, "x")
